"""The changes of a check as a table for the terminal, the worst first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hwbench import quantities, units
from hwbench.analysis.outcome import Outcome, worst_first
from hwbench.records import Change, Verdict
from hwbench.report import _words as words
from hwbench.report.rows import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_LISTED = 40  # changes that the terminal shows; --json has them all
_WIDE = 120  # columns of a terminal that has room for values beside their change
_QUIET = (Verdict.EQUIVALENT,)  # counted, not listed
_STYLES = {
    Verdict.INVALID: "red",
    Verdict.REGRESSED: "red",
    Verdict.GONE: "yellow",
    Verdict.INCOMPARABLE: "yellow",
    Verdict.IMPROVED: "green",
}


def table(outcome: Outcome, width: int = 80) -> list[RenderableType]:
    """The outcome as renderables: what was compared, the changes, what limits them.

    Args:
        outcome: the outcome.
        width: columns of the terminal; a wide one shows the values beside their change too.
    """
    from rich.text import Text

    parts: list[RenderableType] = [Text(printable(line)) for line in head(outcome)]
    listed = notable(outcome)
    if listed:
        parts += [Text(), _table(listed[:_LISTED], wide=width >= _WIDE)]
    if len(listed) > _LISTED:
        parts.append(Text(f"… and {len(listed) - _LISTED} more; --json has them all"))
    parts += [Text(), Text(tally(outcome))]
    if outcome.sight is not None:
        parts.append(Text(outcome.seen(), style="dim"))
    return parts + [Text(printable(note), style="dim") for note in outcome.notes]


def head(outcome: Outcome) -> list[str]:
    """The run and what it was compared with, in lines."""
    lines = [f"{outcome.suite} on {outcome.machine}: {outcome.run}"]
    if outcome.unfinished:
        lines[0] += f" (unfinished: {outcome.unfinished})"
    if len(outcome.baseline) == 1:
        lines.append(f"against {outcome.baseline[0]}")
    elif outcome.baseline:
        first, last = outcome.baseline[0], outcome.baseline[-1]
        lines.append(f"against {len(outcome.baseline)} runs, {first} to {last}")
    return lines


def notable(outcome: Outcome) -> list[Change]:
    """The changes that are listed, the worst first; the equivalent are only counted."""
    return [each for each in worst_first(outcome.changes) if each.verdict not in _QUIET]


def tally(outcome: Outcome) -> str:
    """How many cases have each verdict."""
    counts = outcome.counts()
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items()) or "no cases"


def size(change: Change) -> str:
    """The change with its interval: ``+5.2 % (4.1 to 6.3)``; a dash where there is none."""
    ratio = change.ratio
    if ratio is None:
        return "–"
    value = units.percent(ratio.value - 1)
    low, high = (units.percent(end - 1).removesuffix(" %") for end in (ratio.low, ratio.high))
    sign = "+" if ratio.value > 1 else ""
    ends = "" if "–" in (low, high) or low == high else f" ({low} to {high})"
    return f"{sign}{value}{ends}"


def amounts(change: Change) -> tuple[str, str]:
    """The value of the baseline and that of the run; empty where no values were compared."""
    return _amount(change.metric, change.base), _amount(change.metric, change.new)


def _amount(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    in_unit = {"time": units.seconds, "relative": units.ratio}.get(metric)
    return in_unit(value) if in_unit else words.amount(value, quantities.find(metric))


def reason(change: Change) -> str:
    """Why a change has its verdict, with the replicates that are still needed."""
    needed = change.replicates_needed
    more = f"About {needed} replicates in each run would decide it." if needed else None
    return printable(" ".join(filter(None, [change.reason, more])))


def _table(changes: Iterable[Change], *, wide: bool) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("verdict", no_wrap=True)
    grid.add_column("case", overflow="fold")
    grid.add_column("metric")
    for head in ("baseline", "now") if wide else ():
        grid.add_column(head, justify="right", no_wrap=True)
    grid.add_column("change", justify="right", no_wrap=True)
    grid.add_column("why", overflow="fold")
    for change in changes:
        cells = (
            change.verdict.value,
            words.case(change.case),
            change.metric,
            *(amounts(change) if wide else ()),
            size(change),
            reason(change),
        )
        grid.add_row(*(Text(cell) for cell in cells), style=_STYLES.get(change.verdict, ""))
    return grid
