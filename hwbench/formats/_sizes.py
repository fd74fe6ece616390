"""How the sizes of a layer are split into blocks, and what a knob is checked for."""

from __future__ import annotations

import math

from hwbench.errors import KnobError
from hwbench.formats._base import Format
from hwbench.records import Knob


def side(size: int, blocks: int) -> int:
    """The side of each of ``blocks`` equal blocks that together hold ``size`` entries."""
    return -(-size // blocks)


def factors(size: int) -> tuple[int, int]:
    """(larger, smaller): the two factors of the size that are nearest to a square."""
    smaller = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
    return size // smaller, smaller


def near_square(size: int) -> tuple[int, int]:
    """(larger, smaller): the factors of the next number that has two within a ratio of two.

    Of several pairs the nearest to a square is taken: 768 gives (32, 24), the prime 37 (8, 5).
    """
    while True:
        larger, smaller = factors(size)
        if larger <= 2 * smaller:
            return larger, smaller
        size += 1


def fits(size: int, blocks: int) -> bool:
    """Whether each of ``blocks`` equal blocks would hold more than padding."""
    return side(size, side(size, blocks)) == blocks


def check_blocks(described: Format, knob: str, size: int) -> None:
    """Demand that the knob's value splits ``size`` into equal blocks, the last perhaps padded.

    Raises:
        KnobError: it is no whole number in [1, size], or a block would hold nothing but padding.
    """
    blocks = described.check_integer(knob, low=1, high=size)
    if not fits(size, blocks):
        filled = side(size, side(size, blocks))
        raise KnobError(
            f"{knob}={blocks} of {described.name()} would leave {blocks - filled} of the blocks of "
            f"{size} features empty; {filled} fits."
        )


def fill(described: Format, **values: Knob) -> None:
    """Give each knob that was left at None its value."""
    for knob, value in values.items():
        if getattr(described, knob) is None:
            object.__setattr__(described, knob, value)


def fill_outer_grid(described: Format) -> None:
    """Give ``out_blocks`` the larger factor of out, and ``in_blocks`` the smaller one of in.

    Raises:
        KnobError: a number of blocks that was given does not divide its size.
    """
    fill(described, out_blocks=factors(described.out_features)[0])
    fill(described, in_blocks=factors(described.in_features)[1])
    described.check_divides("out_blocks", described.out_features)
    described.check_divides("in_blocks", described.in_features)


def check_choice(described: Format, knob: str, choices: tuple[str, ...]) -> None:
    """Demand that the knob is one of the words.

    Raises:
        KnobError: it is not.
    """
    value = getattr(described, knob)
    if value not in choices:
        raise KnobError(
            f"{knob} of {described.name()} must be {' or '.join(choices)}, not {value!r}."
        )


def padding_copies(described: Format, padded_out: int, padded_in: int) -> int:
    """Elements a token that are copied because x is padded and y cut, where they are."""
    copied = padded_in if padded_in != described.in_features else 0
    return copied + (described.out_features if padded_out != described.out_features else 0)
