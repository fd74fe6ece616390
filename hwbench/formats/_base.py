"""``Format`` describes how a weight is stored; ``Linear``, of ``_linear``, is the live map of one.

Conventions (every format): the weight W has shape (out_features, in_features); x has shape
(…, in_features) and y = x Wᵀ + bias. ``tokens`` is the number of rows of x. P is the number of
stored parameters, without the bias. A multiply-add is two FLOPs.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from hwbench.errors import KnobError, UnknownNameError, UnreachableError
from hwbench.formats import _stored
from hwbench.formats._directions import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    STEP,
    by_direction,
    chain_flops,
    dense_flops,
)
from hwbench.formats._given import checked
from hwbench.formats._kernel import Kernel, Named, Torch
from hwbench.formats._linear import Linear
from hwbench.records import Cost, Knob

if TYPE_CHECKING:
    from hwbench.formats._gram import Seen

__all__ = [
    "BACKWARD",
    "BACKWARD_INPUT",
    "BACKWARD_WEIGHT",
    "FORWARD",
    "STEP",
    "Format",
    "Linear",
    "budget",
    "by_direction",
    "round_down",
    "unreachable",
]


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A description of how a weight of (out_features, in_features) is stored and applied.

    It is frozen and hashable, survives JSON (``knobs``), and never holds a tensor. ``revision`` is
    raised when a change makes old timings of the format incomparable with new ones. ``KERNELS``
    are the names of the kernels on offer, the default first. A kernel offers itself, see
    ``Kernel``; a format that names its kernels in ``KERNELS`` tells them apart by ``self.kernel``.
    """

    out_features: int
    in_features: int
    kernel: str = ""

    revision: ClassVar[int] = 1
    IMPLEMENTATIONS: ClassVar[tuple[Kernel, ...]] = (Torch(),)
    KERNELS: ClassVar[tuple[str, ...]] = (Torch.name,)
    PAPER: ClassVar[str] = ""
    OUTPUTS: ClassVar[str] = ""  # how it is projected by outputs, a word of ``_gram``

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "KERNELS" in vars(cls):
            cls.IMPLEMENTATIONS = tuple(Named(name) for name in cls.KERNELS)
        if "project" in vars(cls):
            cls.project = checked(vars(cls)["project"])  # type: ignore[method-assign]

    @classmethod
    def offer(cls, kernel: Kernel, *, default: bool = False) -> None:
        """Put a kernel on offer, in the place of one of its name; called by ``Kernel`` alone.

        Raises:
            TypeError: the kernel has no name.
        """
        if not kernel.name:
            raise TypeError(f"The kernel {type(kernel).__name__} of {cls.__name__} needs a name.")
        offered = {} if cls.IMPLEMENTATIONS is Format.IMPLEMENTATIONS else cls.kernels()
        offered = {**offered, kernel.name: kernel}
        if default:
            offered = {kernel.name: kernel, **offered}
        cls.IMPLEMENTATIONS, cls.KERNELS = tuple(offered.values()), tuple(offered)

    @classmethod
    def kernels(cls) -> dict[str, Kernel]:
        """The kernels on offer by their names, the default first."""
        return {kernel.name: kernel for kernel in cls.IMPLEMENTATIONS}

    def __post_init__(self) -> None:
        for name in ("out_features", "in_features"):
            self.check_integer(name, low=1)
        if self.kernel == "":
            object.__setattr__(self, "kernel", self.KERNELS[0])
        if self.kernel not in self.KERNELS:
            raise KnobError(
                f"{self.name()} has no kernel {self.kernel!r}; it offers {', '.join(self.KERNELS)}."
            )

    # What a format must give

    @abstractmethod
    def parameters(self) -> int:
        """The number of values that carry information, without the bias."""

    @abstractmethod
    def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Linear:
        """A layer with the format's usual initialisation, on the generator's device."""

    @abstractmethod
    def project(self, weight: Any, *, activations: Tensor | None = None) -> Linear:
        """The member nearest to ``weight`` in the Frobenius norm, in its dtype and on its device.

        A format fills this in for a weight of shape (out_features, in_features). Callers may give
        an ``nn.Linear``, or transformers' ``Conv1D``, in the weight's place: the layer then keeps
        a copy of its bias.

        ``activations`` of shape (samples, in_features), where a format can use them, weigh the
        columns of the weight by what the layer sees; a format that cannot ignores them.

        Raises:
            UsageError: weight or activations have another shape, or the weight holds no values.
        """

    # What may be given

    @classmethod
    def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Knob) -> Self:
        """The largest setting with at most density · out_features · in_features parameters.

        Here the one knob without a default is searched, with which the parameters grow. A format
        that has several, or whose parameters fall with it, gives a ``for_budget`` of its own.

        Raises:
            UnreachableError: the format cannot reach that density; said by ``unreachable``.
            KnobError: a knob has a value that it cannot take, whatever the density.
        """
        decided = cls.decided_knobs()
        if len(decided) > 1:
            raise NotImplementedError(
                f"{cls.name()} needs a for_budget of its own: a density decides {decided}."
            )
        if "multiple" in knobs and not decided:
            raise KnobError(f"{cls.name()} has no rank that 'multiple' could round.")
        multiple = knobs.pop("multiple", 1)
        smallest = cls(
            out_features=out_features,
            in_features=in_features,
            **{**knobs, **dict.fromkeys(decided, 1)},  # type: ignore[arg-type]
        )
        allowed = budget(out_features, in_features, density)
        if smallest.parameters() > allowed:
            raise unreachable(cls.name(), density, smallest.smallest_words())
        if not decided:
            return smallest
        (knob,) = decided
        largest = min(allowed, smallest.largest_setting() or allowed)
        # ``key`` is monotone, so that bisection counts the values that are within the budget.
        value = bisect.bisect_right(
            range(1, largest + 1), allowed, key=lambda value: smallest._parameters_at(knob, value)
        )
        setting: dict[str, Any] = {knob: round_down(value, multiple)}
        return dataclasses.replace(smallest, **setting)

    def largest_setting(self) -> int | None:
        """The largest value of the knob that a density decides; None where nothing bounds it."""
        return None

    def smallest_words(self) -> str:
        """Name the smallest density, for ``unreachable``; called on the smallest setting."""
        return f"{' and '.join(self.decided_knobs())} 1 has density {self.density():.4g}"

    def _parameters_at(self, knob: str, value: int) -> int:
        """The parameters with another value of a knob, which need not be one it can take."""
        other = copy.copy(self)
        object.__setattr__(other, knob, value)
        return other.parameters()

    def project_outputs(self, weight: Tensor, activations: Tensor | Seen) -> Linear:
        """The member whose outputs on these inputs are nearest: ‖(W − Ŵ)X‖, with all of XᵀX.

        Args:
            weight: (out_features, in_features).
            activations: (samples, in_features), or a ``Seen`` of it that layers share.

        Raises:
            UsageError: the format is not projected by outputs, or the activations do not fit.
        """
        from hwbench.formats._gram import nearest

        return nearest(self, weight, activations)

    @classmethod
    def for_stored(
        cls, out_features: int, in_features: int, stored: float, item_bytes: int, **knobs: Knob
    ) -> Self:
        """The setting with the most stored bytes that are at most this share of dense's.

        Here ``for_budget`` is asked for ever more parameters. A format whose bytes are decided by
        other knobs, such as a narrow type, gives a ``for_stored`` of its own.

        Raises:
            UnreachableError: the smallest setting needs more; its share is named.
            KnobError: a knob has a value that it cannot take, whatever the bytes.
        """
        return _stored.searched(cls, out_features, in_features, stored, item_bytes, **knobs)

    def index_bytes(self) -> int:
        """Bytes of indices and metadata that are stored beside the values."""
        return 0

    def stages(self) -> tuple[int, ...]:
        """Parameters of each factor, in the order in which they are applied to x."""
        return (self.parameters(),)

    def products(self) -> tuple[int, ...]:
        """Multiply-adds a token of each factor: its parameters, unless it is padded or reused."""
        return self.implementation.products(self)

    def intermediate_width(self) -> int:
        """Elements a token of all intermediates that the kernel writes (H of the papers)."""
        return self.implementation.intermediate_width(self)

    def copied_width(self) -> int:
        """Elements a token of extra permuted copies that the kernel makes (C)."""
        return self.implementation.copied_width(self)

    def flops(self, tokens: int, direction: str) -> int:
        """Executed FLOPs of one call in one direction.

        The weight gradient of a chain of factors passes every later factor on its way, and what
        the kernel did not keep of the forward pass is computed once more for it.
        """
        again = self.implementation.recomputed(self, tokens)
        return chain_flops(tokens, self.products(), direction, again)

    def needed_flops(self, tokens: int, direction: str) -> int:
        """The FLOPs of one call that the format's values need, however its kernel computes.

        Each value is used once a token. A format that uses values more often says its own.
        """
        needed = chain_flops(tokens, self.stages(), direction)
        return min(needed, self.flops(tokens, direction))

    def rate_multipliers(self) -> dict[str, float]:
        """Return the factor on a dense layer's learning rate, by parameter; 1 where none is named.

        A factor that sees fewer inputs than the layer has may learn faster (Qiu et al., Compute
        Better Spent, 2024, arXiv:2406.06248).
        """
        return {}

    def unsupported(self, device: str, dtype: torch.dtype, direction: str) -> str | None:
        """Why this cannot run on that kind of device ("cpu", "cuda"), or None where it can."""
        return self.implementation.refuses(self, device, dtype, direction)

    def on(self, device: str) -> Self:
        """The same format, with what a knob leaves to the kind of device ("cpu", "cuda") decided.

        Its costs are then those on that device.
        """
        del device
        return self

    # What all share

    @property
    def implementation(self) -> Kernel:
        """The kernel that ``kernel`` names, for these knobs."""
        return self.kernels()[self.kernel].for_knobs(self)

    @property
    def MATERIALISES(self) -> bool:  # noqa: N802
        """Whether the kernel forms a dense tensor of the weight's size."""
        return self.implementation.materialises

    @classmethod
    def decided_knobs(cls) -> list[str]:
        """The knobs without a default, which a density decides."""
        return [knob for knob in cls.knob_names() if knob not in cls.knob_defaults()]

    @classmethod
    def name(cls) -> str:
        """The format's name: that of the file that defines it."""
        return cls.__module__.rpartition(".")[2]

    def knobs(self) -> dict[str, Knob]:
        """Every setting beside the shape; ``type(f)(out_features=…, in_features=…, **knobs)``."""
        return {name: getattr(self, name) for name in self.knob_names()}

    @classmethod
    def knob_names(cls) -> list[str]:
        """The names of all knobs, in the order of the class."""
        return [
            field.name
            for field in dataclasses.fields(cls)
            if field.name not in ("out_features", "in_features")
        ]

    @classmethod
    def knob_defaults(cls) -> dict[str, Knob | None]:
        """The knobs that need not be given; None where the value follows from shape and knobs."""
        defaults: dict[str, Knob | None] = {}
        for field in dataclasses.fields(cls):
            if field.name not in cls.knob_names():
                continue
            if field.default is not dataclasses.MISSING:
                defaults[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                defaults[field.name] = field.default_factory()
        return {**defaults, "kernel": cls.KERNELS[0]}

    @classmethod
    def from_knobs(
        cls, out_features: int, in_features: int, *, item_bytes: int = 4, **knobs: Knob
    ) -> Self:
        """Build a format from knobs as a suite writes them.

        ``density`` asks for a share of dense's parameters, ``stored`` for a share of its bytes,
        a value of which takes ``item_bytes``. Either gives the largest setting that is not above
        what was asked for.

        Raises:
            UnreachableError: the knobs are right, and the share cannot be reached with them.
            KnobError: a knob has a value that it cannot take.
            UnknownNameError: there is no such knob; the message names the nearest.
        """
        _stored.check_sides(out_features, in_features)
        density, stored = knobs.pop("density", None), knobs.pop("stored", None)
        free = density is None and stored is None
        for key in knobs:
            if key not in cls.knob_names() and (free or key != "multiple"):
                shares = ["density", "stored", *([] if free else ["multiple"])]
                raise UnknownNameError(f"knob of {cls.name()}", key, [*cls.knob_names(), *shares])
        decided = cls.decided_knobs()
        if free:
            if missing := [key for key in decided if key not in knobs]:
                raise KnobError(f"{cls.name()} needs {' and '.join(missing)}, or a density.")
            return cls(out_features=out_features, in_features=in_features, **knobs)  # type: ignore[arg-type]
        if density is not None and stored is not None:
            raise KnobError(f"Give {cls.name()} either a density or stored bytes, not both.")
        if any(key in knobs for key in decided):
            what = "a density" if stored is None else "stored bytes"
            raise KnobError(
                f"Give {cls.name()} either {what} or {' and '.join(decided)}, not both."
            )
        if stored is not None:
            share = _stored.check_share("stored", stored)
            return cls.for_stored(out_features, in_features, share, item_bytes, **knobs)
        share = _stored.check_share("density", density)
        try:
            return cls.for_budget(out_features, in_features, share, **knobs)
        except UnreachableError:
            with suppress(UnreachableError):  # a mistake in another knob is told first
                cls.for_budget(out_features, in_features, 1.0, **knobs)
            raise

    def density(self) -> float:
        """Parameters over those of the dense layer."""
        return self.parameters() / (self.out_features * self.in_features)

    def stored_bytes(self, item_bytes: int) -> int:
        """Bytes at rest: values, indices and metadata, without the bias."""
        return self.parameters() * item_bytes + self.index_bytes()

    def cost(self, tokens: int, item_bytes: int, direction: str) -> Cost:
        """The exact cost of one call in one direction.

        Compulsory bytes read and write every operand once. Intermediate bytes are what the chain
        of factors moves beside that: each intermediate is written and read once in the forward
        pass; in the backward pass every stage reads its incoming gradient twice, its saved input
        once, and writes its input gradient once.
        """
        executed, needed = self.flops(tokens, direction), self.needed_flops(tokens, direction)
        return Cost(
            parameters=self.parameters(),
            stored_bytes=self.stored_bytes(item_bytes),
            flops=executed,
            needed_flops=None if needed == executed else needed,
            dense_flops=dense_flops(tokens, self.out_features * self.in_features, direction),
            compulsory_bytes=self.compulsory_bytes(tokens, item_bytes, direction),
            intermediate_bytes=self.intermediate_bytes(tokens, item_bytes, direction),
        )

    def compulsory_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """Bytes of all operands, each read or written once; a format adds what it must also read.

        Args:
            tokens: rows of x.
            item_bytes: bytes of a value.
            direction: the part of a step that is asked for.
        """
        x, y, p = tokens * self.in_features, tokens * self.out_features, self.parameters()
        one_way = item_bytes * (x + y + p) + self.index_bytes()
        both = item_bytes * (2 * x + y + 2 * p) + 2 * self.index_bytes()
        return by_direction(
            direction, forward=one_way, to_input=one_way, to_weight=one_way, backward=both
        )

    def intermediate_bytes(self, tokens: int, item_bytes: int, direction: str) -> int:
        """Bytes that the kernel moves beside the operands; a format adds what else it moves.

        Follows from ``intermediate_width``, ``copied_width`` and ``stages``; a kernel that takes
        its backward pass from another (``Kernel.backward_as``) moves there what the other does.

        Args:
            tokens: rows of x.
            item_bytes: bytes of a value.
            direction: the part of a step that is asked for.
        """
        kernel = self.implementation
        forward = 2 * tokens * (self.intermediate_width() + self.copied_width())
        other = kernel.backward_as
        behind = self if other is None else dataclasses.replace(self, kernel=other.name)
        between, copied = behind.intermediate_width(), behind.copied_width()
        y = tokens * self.out_features
        later = sum(self.stages()[1:])  # parameters that a weight gradient passes on its way
        again = kernel.recomputed_values(self, tokens)
        weight = (y if later else 0) + tokens * (3 * between + 2 * copied) + later
        return item_bytes * by_direction(
            direction,
            forward=forward,
            to_input=2 * tokens * (between + copied),
            to_weight=weight + again,
            backward=y + tokens * (4 * between + 2 * copied) + again,
        )

    # Checks that formats share

    def check_integer(self, knob: str, *, low: int, high: int | None = None) -> int:
        """The knob's value, if it is a whole number in [low, high].

        Raises:
            KnobError: it is not.
        """
        value = getattr(self, knob)
        if isinstance(value, bool) or not isinstance(value, int):
            raise KnobError(f"{knob} of {self.name()} must be a whole number, not {value!r}.")
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"between {low} and {high}"
            raise KnobError(
                f"{knob} of {self.name()} must be {allowed} for "
                f"{self.out_features}x{self.in_features}, not {value}."
            )
        return value

    def check_divides(self, knob: str, *sizes: int) -> None:
        """Demand that the knob's value divides each size; without any, both dimensions.

        Raises:
            KnobError: it does not; the message names the divisors that would.
        """
        sizes = sizes or (self.out_features, self.in_features)
        common = math.gcd(*sizes)
        value = self.check_integer(knob, low=1, high=min(sizes))
        if common % value:
            small = [d for d in range(1, math.isqrt(common) + 1) if common % d == 0]
            fit = sorted({*small, *(common // d for d in small)})
            both = "both " if len(sizes) == 2 else ""
            raise KnobError(
                f"{knob}={value} of {self.name()} must divide {both}"
                f"{' and '.join(map(str, sizes))}; possible: {', '.join(map(str, fit))}."
            )


def budget(out_features: int, in_features: int, density: float) -> int:
    """The number of parameters that ``density`` allows."""
    return math.floor(density * out_features * in_features + 1e-9)


def round_down(value: int, multiple: Knob, *, least: int = 1) -> int:
    """``value`` rounded down to a multiple, where that leaves at least ``least``; else ``value``.

    Raises:
        KnobError: ``multiple`` is not a whole number above zero.
    """
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise KnobError(f"multiple must be a whole number above zero, not {multiple!r}.")
    rounded = value // multiple * multiple
    return rounded if rounded >= least else value


def unreachable(name: str, density: float, reachable: str) -> UnreachableError:
    """The error of ``for_budget`` when a format cannot be that small (or that large)."""
    return UnreachableError(f"{name} cannot reach density {density:g}; {reachable}.")
