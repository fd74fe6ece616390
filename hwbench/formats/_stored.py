"""``stored``: the setting with the most stored bytes that are within a share of dense's.

Values, scales, zero points, indices and metadata all count. What a format allows is searched
through its own ``for_budget``, so that every format has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, Self, TypeVar

from hwbench.errors import KnobError, UnreachableError
from hwbench.records import Knob


class Sized(Protocol):
    """The part of a format that is used here."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    @classmethod
    def name(cls) -> str: ...

    @classmethod
    def for_budget(
        cls, out_features: int, in_features: int, density: float, **knobs: Knob
    ) -> Self: ...

    def stored_bytes(self, item_bytes: int) -> int: ...


F = TypeVar("F", bound=Sized)


def check_sides(*sides: object) -> None:
    """Refuse a side of a matrix that is no whole number above zero.

    Raises:
        KnobError: it is not.
    """
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise KnobError(f"out_features and in_features are at least 1, not {side!r}.")


def check_share(name: str, share: object) -> float:
    """A share of dense's parameters or bytes, above 0 and at most 1.

    Raises:
        KnobError: it is none.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise KnobError(f"{name} must be a number, not {share!r}.")
    if not 0 < share <= 1:
        raise KnobError(f"{name} must be above 0 and at most 1, not {share}.")
    return float(share)


def searched(
    kind: type[F],
    out_features: int,
    in_features: int,
    stored: float,
    item_bytes: int,
    **knobs: Knob,
) -> F:
    """The setting of ``for_budget`` with the most stored bytes that ``stored`` allows.

    More parameters are taken to need more bytes, so that the number of parameters is bisected. A
    format of which that is not true gives a ``for_stored`` of its own.

    Raises:
        UnreachableError: the smallest setting needs more; its share is named.
        KnobError: a knob has a value that it cannot take.
    """
    total = out_features * in_features
    limit = allowed(out_features, in_features, stored, item_bytes)
    fits: F | None = None
    above: F | None = None
    refusal: KnobError | None = None
    low, high = 0, 2 * total  # the first number that is tried is that of the dense layer
    while high - low > 1:
        middle = (low + high) // 2
        try:
            # Half a parameter more outlasts the rounding of the division.
            density = min(1.0, (middle + 0.5) / total)
            fitting = kind.for_budget(out_features, in_features, density, **knobs)
        except UnreachableError as error:
            if middle == total:
                raise _refused(kind, stored, str(error)) from error
            low = middle
        except KnobError as error:  # a mistake, or more entries than an index can count
            refusal, high = refusal or error, middle
        else:
            if fitting.stored_bytes(item_bytes) > limit:
                above, high = fitting, middle
            elif middle == total:
                return fitting
            else:
                fits, low = fitting, middle
    if fits is not None:
        return fits
    if above is None:
        assert refusal is not None
        raise refusal
    raise unreachable(kind, stored, item_bytes, [above])


def allowed(out_features: int, in_features: int, stored: float, item_bytes: int) -> int:
    """The bytes that this share of the dense layer's allows."""
    return math.floor(stored * out_features * in_features * item_bytes + 1e-9)


def unreachable(
    kind: type[Sized], stored: float, item_bytes: int, settings: Iterable[Sized]
) -> UnreachableError:
    """The error that names the nearest of these settings; all of them need more bytes."""
    least = min(f.stored_bytes(item_bytes) / (f.out_features * f.in_features) for f in settings)
    return _refused(
        kind,
        stored,
        f"nothing below it can be had, and the nearest above is stored={_up(least / item_bytes)}.",
    )


def _refused(kind: type[Sized], stored: float, why: str) -> UnreachableError:
    return UnreachableError(f"{kind.name()} cannot be stored in {stored:g} of dense's bytes; {why}")


def _up(share: float) -> str:
    """Four digits that are not below the share, so that what is named can be asked for."""
    rounded = f"{share:.4g}"
    if float(rounded) >= share:
        return rounded
    return f"{float(rounded) + 10.0 ** (math.floor(math.log10(share)) - 3):.4g}"
