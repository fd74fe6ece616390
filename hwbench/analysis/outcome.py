"""The outcome of a check, and its exit code. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hwbench import units
from hwbench.records import Change, Verdict

FINE, REGRESSION, UNDECIDED = 0, 1, 3
NOT_COMPARABLE, FAILED, NO_BASELINE = 4, 5, 6

_GRAVEST_FIRST = (
    Verdict.INVALID,
    Verdict.REGRESSED,
    Verdict.GONE,
    Verdict.INCOMPARABLE,
    Verdict.UNDECIDED,
    Verdict.NEW,
    Verdict.IMPROVED,
    Verdict.EQUIVALENT,
)
_JUDGED = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.EQUIVALENT, Verdict.UNDECIDED)
_UNPROVEN = (Verdict.UNDECIDED, Verdict.INCOMPARABLE, Verdict.GONE)  # no proof that all is well
FAILING = (Verdict.INVALID, Verdict.REGRESSED)
"""The verdicts that make every check fail."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdicts of a check, and everything that limits them."""

    run: str
    suite: str
    machine: str
    baseline: Sequence[str] = ()  # the runs compared against, oldest first
    changes: Sequence[Change] = ()
    measured: int = 0  # cases of the run that have values
    threshold: float = 0.03  # as given by the user
    used_threshold: float = 0.03  # as used; higher where the baseline is short of runs
    confirmed: frozenset[str] | None = None  # cases confirmed as regressed; None: not confirmed
    mismatch: Sequence[str] = ()  # the reasons why the machines cannot be compared
    problem: str | None = None  # why there is no usable baseline
    notes: Sequence[str] = ()
    fail_on_undecided: bool = False
    sight: tuple[float, float] | None = None  # slow-downs found in 9 nights of 10: usual, worst
    require_sight: float | None = None  # the largest slow-down that may go unseen
    unfinished: str | None = None  # how far the run got, where it was cut off
    paired: bool = False  # measured against each other, pair by pair

    def counts(self) -> dict[Verdict, int]:
        """How many cases have each verdict, the gravest first."""
        counter = Counter(change.verdict for change in self.changes)
        return {verdict: counter[verdict] for verdict in _GRAVEST_FIRST if counter[verdict]}

    @property
    def compared(self) -> int:
        """The number of cases with a verdict against the baseline."""
        return sum(change.verdict in _JUDGED for change in self.changes)

    @property
    def exit(self) -> int:
        """The first of 5, 4, 6, 1, 3 that applies; 0 where none does."""
        counts = self.counts()
        unproven = self.fail_on_undecided and any(verdict in counts for verdict in _UNPROVEN)
        reasons = (
            (FAILED, Verdict.INVALID in counts or not self.measured),
            (NOT_COMPARABLE, bool(self.mismatch)),
            (NO_BASELINE, bool(self.problem) or not self.compared),
            (REGRESSION, Verdict.REGRESSED in counts),
            (UNDECIDED, self.blind or unproven),
        )
        return next((code for code, holds in reasons if holds), FINE)

    @property
    def blind(self) -> bool:
        """Whether the check sees less than it was required to."""
        if self.require_sight is None:
            return False
        return self.sight is None or not self.sight[0] <= self.require_sight

    def fails(self, change: Change) -> bool:
        """Whether this change alone would make the check fail."""
        if change.verdict in FAILING:
            return True
        return self.fail_on_undecided and change.verdict in _UNPROVEN

    @property
    def quotes(self) -> bool:
        """Whether the sentence holds names or reasons from run files, which are no text of ours."""
        if Verdict.INVALID in self.counts():
            return False
        return bool(not self.measured or self.mismatch or self.problem or not self.compared)

    def sentence(self) -> str:
        """The outcome in one sentence."""
        counts = self.counts()
        if Verdict.INVALID in counts:
            return f"Wrong, crashed or timed out: {cases(counts[Verdict.INVALID])}."
        if not self.measured:
            return f"Nothing could be measured in the run {self.run}."
        if self.mismatch:
            return f"The machines cannot be compared: {'; '.join(self.mismatch)}."
        if self.problem:
            return self.problem
        if not self.compared:
            return f"No case of the baseline can be compared with the run {self.run}{self._why()}."
        return self._judged(counts)

    def _judged(self, counts: dict[Verdict, int]) -> str:
        """The sentence of a run that could be compared."""
        if self.exit == REGRESSION:
            how = "unconfirmed" if self.confirmed is None else "confirmed"
            how = "in pairs" if self.paired else how
            return f"Regressed ({how}): {cases(counts[Verdict.REGRESSED])}."
        if self.exit == UNDECIDED and self.blind:
            return f"Too blind: {self.seen()}"
        if self.exit == UNDECIDED:
            return f"Not decided: {cases(sum(counts.get(verdict, 0) for verdict in _UNPROVEN))}."
        what = f"No regression in {cases(self.compared)}"
        if not {Verdict.EQUIVALENT, Verdict.IMPROVED} & set(counts):
            what = "No regression was shown, and nothing is proven unchanged"
        return f"{what} ({', '.join(f'{count} {verdict}' for verdict, count in counts.items())})."

    def seen(self) -> str:
        """The smallest slow-down that such a check finds, in words."""
        if self.sight is None:
            return "How large a slow-down would be found is not known."
        usual, worst = (
            units.percent(size) if math.isfinite(size) else "any size" for size in self.sight
        )
        return (
            f"A slow-down of {usual} is found in 9 nights of 10 in the usual case, of {worst} in "
            "the worst."
        )

    def _why(self) -> str:
        reasons = Counter(change.reason for change in self.changes if change.reason)
        return f": {reasons.most_common(1)[0][0].rstrip('.')}" if reasons else ""


def cases(count: int) -> str:
    """``1 case`` or ``3 cases``."""
    return "1 case" if count == 1 else f"{count} cases"


def worst_first(changes: Iterable[Change]) -> list[Change]:
    """Changes by gravity, and by the size of the change within it."""

    def key(change: Change) -> tuple[int, float]:
        size = change.ratio.value if change.ratio else math.nan
        positive = size > 0 and math.isfinite(size)
        return _GRAVEST_FIRST.index(change.verdict), -abs(math.log(size)) if positive else -math.inf

    return sorted(changes, key=key)


def plain(outcome: Outcome) -> dict[str, Any]:
    """The outcome as ``check --json`` prints it; unknown values are null."""
    confirmed = outcome.confirmed
    return {
        "exit": outcome.exit,
        "sentence": outcome.sentence(),
        "run": outcome.run,
        "suite": outcome.suite,
        "machine": outcome.machine,
        "baseline": list(outcome.baseline),
        "threshold": outcome.threshold,
        "used_threshold": outcome.used_threshold,
        "sight": [_finite(size) for size in outcome.sight] if outcome.sight else None,
        "unfinished": outcome.unfinished,
        "notes": list(outcome.notes),
        "mismatch": list(outcome.mismatch),
        "changes": [
            {
                "case": change.case,
                "metric": change.metric,
                "ratio": _finite(change.ratio.value if change.ratio else None),
                "low": _finite(change.ratio.low if change.ratio else None),
                "high": _finite(change.ratio.high if change.ratio else None),
                "verdict": change.verdict.value,
                "reason": change.reason,
                "base": _finite(change.base),
                "new": _finite(change.new),
                "replicates_needed": change.replicates_needed,
                "confirmed": None if confirmed is None else change.case in confirmed,
            }
            for change in worst_first(outcome.changes)
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
