"""Runs side by side: machines or versions, on the terminal, as JSON and at the head of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwbench import units
from hwbench.analysis.fingerprint import Difference
from hwbench.errors import UsageError
from hwbench.report import _facts, _pack, _ratios, html
from hwbench.report import _words as words
from hwbench.report._versus import (
    Matched,
    Versus,
    answers,
    by_format,
    compare_two,
    headline,
    matters,
    statistics,
    summary,
)
from hwbench.report.rows import Row, groups, known, printable
from hwbench.store import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST = 400  # cases in a table of the terminal
_ON_PAGE = 60  # ratios that the page shows before its script, which has all, shows more


def compare(runs: Sequence[Run], prices: Mapping[str, float] | None = None) -> list[Versus]:
    """Every further run against the first one.

    Args:
        runs: two or more; the first is the base.
        prices: of an hour, by a part of a machine's or a run's name.

    Raises:
        UsageError: there is one run only, two have no case in common, or a price names none.
    """
    if len(runs) < 2:
        raise UsageError("To compare takes two runs or more; name each of them.")
    names = labels(runs)
    priced = _prices(names, prices or {})
    return [
        compare_two(runs[0], run, (names[0], name), priced)
        for run, name in zip(runs[1:], names[1:], strict=True)
    ]


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its machine; with its threads, or its id, where machines are alike."""
    names = _facts.devices(runs)
    if len(set(names)) < len(names):
        threads = [run.header.environment.fingerprint.get("threads") for run in runs]
        names = [
            f"{name}, {units.count(count, 'thread')}" if count else name
            for name, count in zip(names, threads, strict=True)
        ]
    if len(set(names)) < len(names):
        return _facts.machines(list(runs))
    return names


def _prices(names: list[str], prices: Mapping[str, float]) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for part, price in prices.items():
        matching = [name for name in names if part.lower() in name.lower()]
        if not matching:
            listed = ", ".join(names)
            raise UsageError(f"--price {printable(part)!r} names none of the runs: {listed}.")
        by_name |= dict.fromkeys(matching, price)
    return by_name


def page(runs: Sequence[Run], comparisons: Sequence[Versus]) -> str:
    """The report of all runs, with the comparison at its head."""
    return html.render(
        list(runs), comparisons=[_compared(each) for each in comparisons], names=labels(runs)
    )


def _compared(versus: Versus) -> html.Compared:
    """A comparison as the page's template shows it."""
    return html.Compared(
        title=f"{versus.other} against {versus.base}",
        headline=headline(versus),
        answers=answers(versus, formats=False),
        by_format=[(name, units.ratio(middle), who) for name, middle, who in by_format(versus)],
        winners=winners(versus),
        statistics=statistics(versus),
        heads=heads(versus),
        names=(versus.base, versus.other),
        groups=lines(versus, _ON_PAGE),
        environment=environment(versus),
        roofs=[
            (name, units.si(old, ""), units.si(new, ""), units.ratio(new / old))
            for name, old, new in versus.roofs
        ],
        against=_ratios.columns(versus),
    )


def lines(versus: Versus, most: int = _MOST) -> list[tuple[str, list[list[str]]]]:
    """Group titles with their rows: format, density, both times, the ratio, what explains it."""
    by_case = {id(matched.base): matched for matched in versus.matched}
    return [
        (words.group_title(members[0]), [_line(by_case[id(row)]) for row in members])
        for members in groups(_timed(versus)[:most]).values()
    ]


def _timed(versus: Versus) -> list[Row]:
    """The cases of the base that have a ratio, or a reason why they have none."""
    return [m.base for m in versus.matched if m.ratio is not None or m.explained]


def heads(versus: Versus) -> tuple[str, ...]:
    """The columns of ``lines``; both times stand under the names of their machines."""
    return ("format", "density", versus.base, versus.other, "ratio", "expected", "explained by")


def _carried(bound: float) -> float:
    """The digits of a bound that the page carries: its script writes the same text from them."""
    return float(f"{bound:.{_pack.BOUND_DIGITS}g}")


def _line(case: Matched) -> list[str]:
    density = case.base.density
    ratio = case.ratio
    return [
        printable(case.base.series),
        units.significant(density) if known(density) else "–",
        units.seconds(case.base.time_seconds),
        units.seconds(case.other.time_seconds),
        "–"
        if ratio is None
        else words.interval(ratio.value, _carried(ratio.low), _carried(ratio.high)),
        "–" if case.expected is None else units.significant(case.expected),
        _ratios.explained(case),
    ]


def table(comparisons: Sequence[Versus]) -> list[RenderableType]:
    """The comparison as renderables that fit 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for versus in comparisons:
        parts += [Text(sentence) for sentence in summary(versus)]
        for title, cells in lines(versus):
            grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            titles = heads(versus)
            for place, head in enumerate(titles):
                left = place in (0, len(titles) - 1)
                grid.add_column(head, justify="left" if left else "right", overflow="fold")
            for line in cells:
                grid.add_row(*map(Text, line))
            parts += [Text(), Text(title, style="bold"), grid]
        if (further := len(_timed(versus)) - _MOST) > 0:
            where = "--out writes a page with all, --json has them"
            parts += [Text(), Text(f"{units.count(further, 'more case')}: {where}.")]
        if versus.flips:
            parts += [Text(), Text("Where another format is the fastest", style="bold")]
            parts += [Text(f"  {sentence}") for sentence in flips(versus)]
        if versus.environment:
            parts += [Text(), Text("What differs between the environments", style="bold")]
            parts += [
                Text(f"  {name}: {change} ({why})") for name, change, why in environment(versus)
            ]
    return parts


def flips(versus: Versus) -> list[str]:
    """The settings in which another format is the fastest, one line each."""
    return [
        f"{flip.group}, {words.share(flip.base)}: {printable(flip.base.series)} on "
        f"{versus.base}, {printable(flip.other.series)} on {versus.other}"
        f"{'' if flip.sure else ' (intervals overlap)'}"
        for flip in versus.flips
    ]


def winners(versus: Versus) -> list[tuple[str, str, str, str]]:
    """The settings with another fastest format: title, both formats, whether it is significant."""
    return [
        (
            f"{flip.group}, {words.share(flip.base)}",
            printable(flip.base.series),
            printable(flip.other.series),
            "yes" if flip.sure else "no",
        )
        for flip in versus.flips
    ]


def environment(versus: Versus) -> list[tuple[str, str, str]]:
    """The facts that differ, from what to what, and whether that matters."""
    return [(printable(d.key), _change(d), matters(d)) for d in versus.environment]


def _change(difference: Difference) -> str:
    """From what to what, in units; as it is recorded where that alone tells the two apart."""
    ends = [
        "not recorded" if end is None else _facts.worded(difference.key, end)
        for end in (difference.baseline, difference.new)
    ]
    return " → ".join(ends) if ends[0] != ends[1] else _recorded(difference)


def _recorded(difference: Difference) -> str:
    return f"{printable(difference.baseline)} → {printable(difference.new)}"


def plain(comparisons: Sequence[Versus]) -> list[dict[str, Any]]:
    """The comparison for ``--json``; what is unknown is null."""
    return [
        {
            "base": versus.base,
            "other": versus.other,
            "summary": summary(versus),
            "cases": [_plain(matched) for matched in versus.matched],
            "agreement": versus.agreement,
            "flips": flips(versus),
            "environment": [
                {"fact": printable(d.key), "change": _recorded(d), "matters": matters(d)}
                for d in versus.environment
            ],
        }
        for versus in comparisons
    ]


def _plain(case: Matched) -> dict[str, Any]:
    ends = (case.ratio.value, case.ratio.low, case.ratio.high) if case.ratio else (math.nan,) * 3
    return {
        "case": case.base.case,
        **{
            name: end if math.isfinite(end) else None
            for name, end in zip(("ratio", "low", "high"), ends, strict=True)
        },
        "expected": case.expected,
        "explained": case.explained or None,
    }
