"""Every weight stored as a code of few bits, with a scale for each group.

Types: ``int8``, and ``int6``, ``int5``, ``int4`` with a centre for each group; ``fp8`` (e4m3),
``nf4`` (quantiles of a normal distribution), and ``bfloat16`` for work in float32. Bytes, and not
parameters, are what a type saves: ask for ``stored``, which takes the widest type, and then the
smallest groups, that fit. ``rounding=gptq`` chooses the codes column by column for the activations
that ``project`` is given; without activations it is ``nearest``.

Kernels: ``linear_dynamic``, ``int_mm`` and ``onednn`` multiply integers by integers, for which
every call rounds its activations to int8, with a scale for each token. That is an error of the
output, and hwbench measures and shows it. On processors without VNNI sums of ``linear_dynamic``
and ``onednn`` overflow, and ``linear_dynamic_7bit`` takes their place, with twice that error;
``int_mm`` is many times slower than a dense product there. ``int8pack`` and ``int4pack`` widen the
codes inside a product in bfloat16, and ``bfloat16_mm`` is one: in another dtype they round
activations to that.
``dequantise`` has every type and makes the dense weight in each call, so that it saves bytes and
gains no time. PyTorch gives a notice that the tensors which ``linear_dynamic`` takes will be
removed; ``int_mm`` and ``onednn`` do without them.

On CUDA there are ``bfloat16_mm``, ``dequantise`` and, where it is asked for, ``torchao``: products
of the library of that name (the extra ``torchao``) in bfloat16, by the codes that are chosen here.
It takes int8 and int4 in weights alone, and int8 and fp8 with ``activations=dynamic``; those of fp8
are rounded to fp8. For int8 in weights alone torchao has no operator: where nothing is compiled it
makes the dense weight in each call, as ``dequantise`` does. None of this was measured on a GPU yet.

The gradient of x is that of the dequantised weight. Codes have no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from hwbench.errors import KnobError, UnreachableError
from hwbench.formats import _quantize, _stored
from hwbench.formats._base import Linear, unreachable
from hwbench.formats._coded import CodedFormat, CodedMap
from hwbench.formats._gram import Seen
from hwbench.records import Knob


@dataclass(frozen=True, kw_only=True)
class Quantized(CodedFormat):
    """ŵ = s · v(code) + c, with s and c for each ``group`` of neighbouring weights of a row.

    Bytes: the codes, and s and c in the layer's dtype. Without ``kernel`` the fastest kernel of
    the type is taken, where it has one; without ``type`` it is that of the kernel.
    """

    PAPER = (
        "Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained "
        "transformers, 2022, arXiv:2210.17323"
    )
    PROJECTION_TOLERANCE: ClassVar[float] = 1e-2  # scales of 16 bits are rounded twice

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        if density < 1:
            raise unreachable(cls.name(), density, "it has a code for every weight (density 1)")
        if "multiple" in knobs:
            raise KnobError("quantized has no rank that 'multiple' could round.")
        return cls(out_features=out_features, in_features=in_features, **knobs)  # type: ignore[arg-type]

    @classmethod
    def for_stored(
        cls, out_features: int, in_features: int, stored: float, item_bytes: int, **knobs: Knob
    ) -> Self:
        """The widest type that fits, and of it the setting with the most bytes."""
        if "multiple" in knobs:
            raise KnobError("quantized has no rank that 'multiple' could round.")
        kinds = [str(knobs.pop("type"))] if "type" in knobs else list(_quantize.TYPES)
        groups = [knobs.pop("group")] if "group" in knobs else _groups(in_features)
        settings: list[Self] = []
        mistake: KnobError | None = None
        for kind in kinds:
            for group in groups:
                given: dict[str, Any] = {"type": kind, "group": group, **knobs}
                try:
                    f = cls(out_features=out_features, in_features=in_features, **given)
                except UnreachableError:
                    raise
                except KnobError as error:  # of this type or group; or of all
                    mistake = mistake or error
                else:
                    settings.append(f)
        if not settings and mistake is not None:
            raise mistake
        limit = _stored.allowed(out_features, in_features, stored, item_bytes)
        within = [f for f in settings if f.stored_bytes(item_bytes) <= limit]
        for kind in kinds:
            if of_kind := [f for f in within if f.type == kind]:
                return max(of_kind, key=lambda f: f.stored_bytes(item_bytes))
        raise _stored.unreachable(cls, stored, item_bytes, settings)

    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        shape, bound = (self.out_features, self.in_features), self.in_features**-0.5
        weight = torch.empty(shape, dtype=dtype, device=generator.device)
        return self.project(weight.uniform_(-bound, bound, generator=generator))

    def project(self, weight: Tensor, *, activations: Tensor | None = None) -> Linear:
        """The nearest codes for given scales; with ``gptq`` those for the activations."""
        seen = None if activations is None else Seen.of(activations.detach(), weight)
        return CodedMap(self, *self.codes_of(weight.detach(), weight.dtype, seen))


def _groups(in_features: int) -> list[int]:
    """The row, and its parts of 16 columns times a power of two, the widest first."""
    parts = [16 * 2**n for n in range(20) if 16 * 2**n < in_features]
    return [in_features, *(part for part in reversed(parts) if in_features % part == 0)]
