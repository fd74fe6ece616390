"""Scores with intervals: the bootstrap over blocks of a text, paired between models.

The blocks are the sample, windows of a book or pairs of sentences: what another text would say is
what an interval has to tell, and the tokens of one block are not independent of each other. Two
models are judged on the same blocks, so only the differences of their scores are resampled; what
makes a block hard for both falls out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwbench.errors import UsageError
from hwbench.records import Estimate

COLLAPSED = 10.0
"""From this perplexity over the original's on a model has collapsed; how far means nothing."""
DRAWS = 4000


def collapsed(ratio: float) -> bool:
    """Whether a model of that perplexity over the original's has collapsed."""
    return ratio > COLLAPSED


def log_ratio(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Estimate:
    """The interval of ln(perplexity / perplexity), as ``difference`` has it.

    Args:
        ours: mean nats a token of each block; all blocks have as many tokens.
        theirs: those of the other model, of the same blocks in the same order.
        level: how often the interval holds the value for texts of this kind.

    Raises:
        UsageError: the blocks are not the same, or fewer than eight.
    """
    return difference(ours, theirs, level)


def mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The interval of the mean over blocks, as ``difference`` has it.

    Raises:
        UsageError: the blocks are fewer than eight.
    """
    return difference(values, [0.0] * len(values), level)


def difference(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Estimate:
    """The interval of the mean difference of two models, by a studentised bootstrap over blocks.

    A mean divided by its own standard error follows the skew of few blocks (Efron and Tibshirani,
    An Introduction to the Bootstrap, 1993, section 12.5). The draws are the same every time.

    Args:
        ours: a score of each block.
        theirs: those of the other model, of the same blocks in the same order.
        level: how often the interval holds the value for texts of this kind.

    Raises:
        UsageError: the blocks are not the same, or fewer than eight.
    """
    if len(ours) != len(theirs):
        raise UsageError(
            f"A pair of models needs the same blocks; they have {len(ours)} and {len(theirs)}."
        )
    if len(ours) < 8:
        raise UsageError(f"{len(ours)} blocks tell no interval; eight are the fewest.")
    lost = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    middle = float(lost.mean())
    if not math.isfinite(middle) or float(np.ptp(lost)) == 0:
        return Estimate(value=middle, low=middle, high=middle, count=len(lost), level=level)
    source = np.random.default_rng(0)
    resampled = lost[source.integers(len(lost), size=(DRAWS, len(lost)))]
    errors = resampled.std(axis=1, ddof=1)
    whole = errors > 0  # a draw of one block alone has no error
    scaled = (resampled.mean(axis=1)[whole] - middle) / errors[whole]
    below, above = np.quantile(scaled, [(1 - level) / 2, (1 + level) / 2])
    error = float(lost.std(ddof=1))
    return Estimate(
        value=middle,
        low=middle - float(above) * error,
        high=middle - float(below) * error,
        count=len(lost),
        level=level,
    )
