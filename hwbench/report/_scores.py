"""What each score is called, its unit, and which way it is better: the one place that says so.

Run files hold a score's name and its direction. A name that is not listed here, of a plug-in or a
later version, is shown as it is written, without a unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hwbench import units
from hwbench.report._rows import Seen, known, printable


@dataclass(frozen=True)
class Score:
    """A score in words: ``PSNR``, in dB, the higher the better."""

    name: str  # as run files write it
    title: str
    unit: str = ""
    better: str = "lower"  # or "higher"
    asked: tuple[float, ...] = ()  # levels at which "the accuracy I need" is answered
    zero: bool = False  # whether an axis begins at zero, where nothing is lost

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

    def said(self, value: float) -> str:
        """A value with its unit: ``31.2 dB``."""
        return f"{units.significant(value)} {self.unit}".rstrip()


_LISTED = (
    Score("projection_error", "projection error", asked=(0.05, 0.1, 0.2, 0.5), zero=True),
    Score("perplexity", "perplexity"),  # what is good depends on the model: no levels
    Score("validation_loss", "validation loss", "nats/token"),  # likewise, and on the text
    Score("psnr_db", "PSNR", "dB", "higher", asked=(40, 35, 30, 25, 20)),
    Score("embedding_cosine", "cosine similarity of embeddings", "", "higher",
          asked=(0.99, 0.95, 0.9, 0.8)),
    Score("test_accuracy", "test accuracy", "", "higher", asked=(0.95, 0.9, 0.8)),
    Score("retrieval_agreement", "retrieval agreement", "", "higher", asked=(0.95, 0.9, 0.8)),
)  # fmt: skip
_SCORES = {score.name: score for score in _LISTED}


def score_of(row: Seen) -> Score:
    """The score of a row, by its name; ``score`` where the row has none."""
    name = row.get("score_name") or "score"
    listed = _SCORES.get(name) or Score(name, printable(name).replace("_", " "))
    return replace(listed, better=row.get("better") or listed.better)


def scores(rows: Iterable[Seen]) -> dict[str, Score]:
    """Every score that some row holds, by its name, in the order of the rows."""
    found: dict[str, Score] = {}
    for row in rows:
        if known(row["score"]):
            score = score_of(row)
            found.setdefault(score.name, score)
    return found
