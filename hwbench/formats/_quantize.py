"""Weights as codes of few bits: the types, how codes are chosen, packed and read back.

A group of neighbouring weights of a row shares a scale s and, in the integer types below eight
bits, a centre c, so that a weight is ŵ = s · v(code) + c. The values v of a type are whole numbers,
or those of a float of eight bits, or the quantiles of a normal distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hwbench.formats._gram import Seen

FP8_LARGEST = 448.0  # of float8_e4m3fn
_NF4_TAIL = 0.9677083  # the outermost quantile, by which the ends of the table become ±1
TINY = torch.finfo(torch.float32).tiny  # the least scale, which a token of zeros has
ROUNDING_ERROR = 3e-2
"""By how much rounded activations may change a product, relatively, for normal activations.

A step is 2/254 of the largest value of a token, which is below five deviations, and its root mean
square error is a step over √12: 1.2 %. What is measured is shown.
"""
_BLOCK = 128  # columns after which GPTQ passes its errors on to the rest in one product


@dataclass(frozen=True)
class Type:
    """What a stored weight is.

    ``groups`` are the sizes of a group that are tried, the usual first, where none is asked for;
    without any of them, or where none divides a row, the whole row is a group.
    """

    name: str
    bits: int
    centred: bool = False
    scaled: bool = True
    groups: tuple[int, ...] = ()

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return 2**self.bits

    def group(self, in_features: int) -> int:
        """The columns of a group, where none are asked for."""
        return next((g for g in self.groups if in_features % g == 0), in_features)

    def code_bytes(self, in_features: int) -> int:
        """Bytes of a row of codes, whose last byte may be padded."""
        return -(-in_features * self.bits // 8)


_SMALL = (128, 64, 32)
TYPES = {
    each.name: each
    for each in (
        Type("bfloat16", 16, scaled=False),
        Type("int8", 8),
        Type("fp8", 8),
        Type("int6", 6, centred=True, groups=_SMALL),
        Type("int5", 5, centred=True, groups=_SMALL),
        Type("int4", 4, centred=True, groups=_SMALL),
        Type("nf4", 4, groups=(64, 32)),
    )
}
"""The types by their names, the widest first."""

ELSEWHERE = {"mxfp8": "8.9", "mxfp4": "10.0", "nvfp4": "10.0"}
"""Types of blocks with a shared exponent, and the compute capability that multiplies them."""


def nf4_table() -> Tensor:
    """(16,) float64: quantiles of a normal distribution between −1 and 1, zero among them.

    Eight above zero and seven below lie at equal steps of probability (Dettmers et al., QLoRA,
    2023, arXiv:2305.14314).
    """
    tail = partial(torch.linspace, _NF4_TAIL, 0.5, dtype=torch.float64, device="cpu")
    above, below = (torch.special.ndtri(tail(steps)[:-1]) for steps in (9, 8))
    table = torch.cat([-below, above.new_zeros(1), above])
    return (table / table.max()).sort().values


# Scales and codes


def scales(kind: Type, grouped: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and centre of each group, rounded to the dtype in which they are stored.

    Args:
        kind: the type.
        grouped: (…, group), in a wide dtype.
        dtype: of the layer.

    Returns:
        Two tensors of (…), in the wide dtype. A group whose weights are equal has the scale 0.
    """
    if not kind.centred:
        largest = {"int8": 127.0, "fp8": FP8_LARGEST}.get(kind.name, 1.0)
        scale = _rounded(grouped.abs().amax(-1) / largest, dtype)
        return scale, torch.zeros_like(scale)
    low, high = grouped.aminmax(dim=-1)
    scale = _rounded((high - low) / (kind.levels - 1), dtype)
    return scale, _rounded(low + scale * (kind.levels // 2), dtype)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).to(values.dtype)


def encode(kind: Type, weights: Tensor, scale: Tensor, centre: Tensor) -> Tensor:
    """The nearest code of each weight; scale and centre are broadcast to them."""
    at = torch.where(scale == 0, 0.0, (weights - centre) / torch.where(scale == 0, 1.0, scale))
    if kind.name == "fp8":
        return at.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)
    if kind.name == "nf4":
        table = nf4_table().to(at)
        return torch.bucketize(at, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    if kind.name == "int8":
        return at.round().clamp(-127, 127).to(torch.int8)
    half = kind.levels // 2
    return (at.round() + half).clamp(0, kind.levels - 1).to(torch.uint8)


def values(kind: Type, codes: Tensor, table: Tensor | None, dtype: torch.dtype) -> Tensor:
    """v of the codes, in the dtype; ``table`` is that of nf4."""
    if kind.name == "fp8":
        return codes.view(torch.float8_e4m3fn).to(dtype)
    if kind.name == "nf4":
        assert table is not None
        return table.to(dtype)[codes.int()]
    return codes.to(dtype) if kind.name == "int8" else codes.to(dtype) - kind.levels // 2


# Choosing the codes of a matrix


def nearest(
    kind: Type, weight: Tensor, group: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, in), scales and centres (out, in / group), each weight rounded by itself."""
    grouped = weight.unflatten(1, (-1, group))
    scale, centre = scales(kind, grouped, dtype)
    codes = encode(kind, grouped, scale[..., None], centre[..., None])
    return codes.flatten(1), scale, centre


def gptq(
    kind: Type, weight: Tensor, group: int, dtype: torch.dtype, seen: Seen
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``nearest``, but the columns that are still free take up the error of those that are not.

    With G the Gram matrix of the inputs, as ``_gram.moments`` has it, and G⁻¹ = Uᵀ U, U upper
    triangular, the error e of column j changes the later columns by −e U[j, j+1:] / U[j, j], which
    is where the output error in G has its least value once column j is fixed (Frantar et al.,
    GPTQ, 2022, arXiv:2210.17323).

    Args:
        kind: the type.
        weight: (out, in), float64.
        group: columns of a group; its scale follows from what its columns are when it is reached.
        dtype: of scales and centres.
        seen: what the layer sees.
    """
    left, spread = weight.clone(), seen.upper
    out, columns = weight.shape
    codes = torch.empty(out, columns, dtype=encode_dtype(kind), device=weight.device)
    found: list[tuple[Tensor, Tensor]] = []
    table = nf4_table().to(weight) if kind.name == "nf4" else None
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.zeros(out, stop - start, dtype=weight.dtype, device=weight.device)
        for j in range(start, stop):
            if j % group == 0:
                # What this block owes to the columns of the group that lie beyond it comes first.
                pending = errors[:, : j - start] @ spread[start:j, stop : j + group]
                here = torch.cat([left[:, j:stop], left[:, stop : j + group] - pending], 1)
                found.append(scales(kind, here[:, :group], dtype))
            scale, centre = found[-1]
            codes[:, j] = encode(kind, left[:, j], scale, centre)
            fixed = scale * values(kind, codes[:, j], table, weight.dtype) + centre
            errors[:, j - start] = (left[:, j] - fixed) / spread[j, j]
            left[:, j + 1 : stop] -= errors[:, j - start, None] * spread[j, j + 1 : stop]
        left[:, stop:] -= errors @ spread[start:stop, stop:]
    scale, centre = (torch.stack(each, 1) for each in zip(*found, strict=True))
    return codes, scale, centre


def encode_dtype(kind: Type) -> torch.dtype:
    """The dtype in which single codes are held."""
    return torch.int8 if kind.name == "int8" else torch.uint8


# Bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """(rows, ceil(columns · bits / 8)) uint8: a row's codes one after another, lowest first."""
    rows, columns = codes.shape
    eights = torch.nn.functional.pad(codes, (0, -columns % 8)).long().view(rows, -1, 8)
    shifts = torch.arange(0, 8 * bits, bits, device=codes.device)
    words = (eights << shifts).sum(-1)
    places = torch.arange(0, 8 * bits, 8, device=codes.device)
    packed = (words[..., None] >> places & 255).to(torch.uint8).flatten(1)
    return packed[:, : -(-columns * bits // 8)].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The first ``columns`` codes of every row of ``pack``, as uint8."""
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :columns]
    filled = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).long()
    places = torch.arange(0, 8 * bits, 8, device=packed.device)
    words = (filled.unflatten(1, (-1, bits)) << places).sum(-1)
    shifts = torch.arange(0, 8 * bits, bits, device=packed.device)
    codes = words[..., None] >> shifts & (2**bits - 1)
    return codes.flatten(1)[:, :columns].to(torch.uint8)


# Activations


def quantised_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of x, (tokens, in), and a scale for each token, (tokens, 1), in float32.

    A single scale for all tokens would be that of the largest; language models have a few values a
    hundred times as large as the rest, beside which everything else would be rounded to zero.
    """
    wide = in_rows(x, torch.float32)
    scale = largest_of_rows(wide).div_(127).clamp_min_(TINY)
    return (wide / scale).round_().to(torch.int8), scale


def unsigned_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """As ``quantised_tokens``, with 128 added to every code, in uint8."""
    codes, scale = quantised_tokens(x)
    return codes.view(torch.uint8).bitwise_xor_(128), scale


def largest_of_rows(x: Tensor) -> Tensor:
    """The largest magnitude of each row, (rows, 1).

    On a CPU the infinity norm, which says the same, takes eight times as long.
    """
    return x.abs().amax(1, keepdim=True)


def in_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, (tokens, in), in a dtype, with the strides of rows one after another.

    ``contiguous`` takes the stride of a side of one for meaningless, and operators read it. PyTorch
    is not called where x is so already: small calls notice even what does nothing.
    """
    if x.dtype != dtype:
        x = x.to(dtype)
    if x.stride() == (x.shape[1], 1):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def as_before(y: Tensor, x: Tensor) -> Tensor:
    """y in the dtype of x."""
    return y if y.dtype == x.dtype else y.to(x.dtype)
