"""What a score is called, its unit, and which way it is better, as its declaration says.

A name that nobody declared, of a later version, is shown as it is written, without a unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hwbench import quantities, units
from hwbench.quantities import SCORE, Quantity
from hwbench.report.rows import Row, known, printable

_FAR = 100.0  # the quotient of two scores that one linear axis does not show together


@dataclass(frozen=True)
class Score:
    """A score in words: ``PSNR``, in dB, the higher the better."""

    name: str  # as run files write it
    title: str
    unit: str = ""
    better: str = "lower"  # or "higher"
    levels: tuple[float, ...] = ()  # at which "the accuracy I need" is answered
    zero: bool = False  # whether an axis begins at zero, where nothing is lost
    log: bool = False  # whether an axis is logarithmic, because its values are far apart

    @property
    def higher(self) -> bool:
        """Whether a higher score is better."""
        return self.better == "higher"

    @property
    def measured(self) -> str:
        """Title and unit: ``PSNR (dB)``."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def axis(self) -> str:
        """The title of an axis: ``PSNR (dB), higher is better``."""
        return f"{self.measured}, {self.better} is better"

    @property
    def bound(self) -> str:
        """On which side of a level a score keeps it: ``at least``, ``at most``."""
        return "at least" if self.higher else "at most"

    def amount(self, value: float) -> str:
        """A value with its unit: ``31.2 dB``."""
        return f"{units.significant(value)} {self.unit}".rstrip()


def score_of(row: Row) -> Score:
    """The score of a row; ``score`` where the row has none."""
    return named(row.score_name or SCORE.name, row.score_quantity, row.better)


def named(name: str, declared: Quantity | None = None, better: str | None = None) -> Score:
    """A score by its name; by its declaration where it is not one of hwbench's own."""
    quantity = declared or quantities.find(name)
    return Score(
        name=name,
        title=printable(quantity.heading),
        unit=printable(quantity.unit),
        better=better or quantity.better,
        levels=quantity.levels,
        zero=quantity.zero,
    )


def scores(rows: Iterable[Row]) -> dict[str, Score]:
    """Every score that some row holds, by its name, in the order of the rows."""
    by_name: dict[str, Score] = {}
    values: dict[str, list[float]] = {}
    for row in rows:
        if known(row.score):
            score = score_of(row)
            by_name.setdefault(score.name, score)
            values.setdefault(score.name, []).append(row.score)
    return {name: replace(score, log=_far(score, values[name])) for name, score in by_name.items()}


def _far(score: Score, values: list[float]) -> bool:
    """Whether most of these values would lie on one another where the axis is linear."""
    return not score.zero and min(values) > 0 and max(values) > _FAR * min(values)
