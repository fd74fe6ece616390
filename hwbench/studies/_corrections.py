"""Plans of a budget of time made anew, because a pass takes what layers alone do not add up to."""

from __future__ import annotations

from collections.abc import Sequence

from hwbench.studies._choosing import Choice, is_single

MOST = 2
"""How often a plan is made anew."""

SPARE = 0.03
"""A correction went too far if it leaves more than this share of a dense pass unused."""


def correction(tried: Sequence[Choice]) -> float | None:
    """Return the seconds that the next plan must save beyond its budget; None if none is needed.

    A plan whose pass exceeds the budget is followed by one that adds up to so much less than it.
    If that one leaves time unused, the next lies between the two, where a straight line through
    their passes meets the budget.

    Args:
        tried: the plans so far, each with a measured pass.
    """
    over = [choice for choice in tried if choice.excess_seconds]
    within = [choice for choice in tried if not choice.excess_seconds]
    if len(tried) > MOST or not over:
        return None
    loose = over[-1]
    if not within:
        return loose.missed_at(loose.planned.time_seconds - loose.excess_seconds)
    tight = within[-1]
    if tight.spare_seconds <= SPARE * tight.dense_pass_seconds:
        return None
    share = loose.excess_seconds / (loose.excess_seconds + tight.spare_seconds)
    gap = loose.planned.time_seconds - tight.planned.time_seconds
    return loose.missed_at(loose.planned.time_seconds - share * gap)


def kept(tried: Sequence[Choice]) -> Choice:
    """The plan that loses least of those within the budget, or the one that exceeds it least.

    Within it is a pass that exceeds it by no more than the tolerance.
    """
    within = [choice for choice in tried if not choice.excess_seconds]
    if within:
        return min(within, key=lambda choice: choice.lost)
    return min(tried, key=lambda choice: choice.excess_seconds)


def known(tried: Sequence[Choice]) -> dict[str, float]:
    """The measured losses of single formats, which are the same models in every plan."""
    return {
        name: lost for choice in tried for name, lost in choice.measured.items() if is_single(name)
    }
