"""The sections of the page: which figures stand under which heading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hwbench.analysis.accuracy import Joined
from hwbench.quantities import CHART
from hwbench.report import _costs, _density, _ratios, _samples, _trade, _views
from hwbench.report._views import Figure
from hwbench.report.rows import Group, Row, quantities_shown
from hwbench.store import Run


@dataclass(frozen=True)
class Section:
    """Figures of one kind, under one heading; those beyond ``shown`` are chosen from a list."""

    id: str
    figures: list[Figure]
    shown: int
    listed: int = 60  # of the others are in the list without the script, which lists all

    @property
    def more(self) -> list[Figure]:
        """The figures that are chosen from a list."""
        return self.figures[self.shown :]


def compared(rows: list[Row], machines: list[str]) -> list[Section]:
    """One section for every run that is compared with the first one, on one axis of ratios each."""
    comparisons = [
        Section(f"versus{number}", _ratios.figures(rows, number, machines[0]), 4)
        for number in range(1, len(machines))
    ]
    for section in comparisons:
        for figure in section.figures:
            figure.extra["beside"] = section.id
    return comparisons


def sections(
    rows: list[Row], runs: list[Run], joined: list[Joined], chosen: set[str]
) -> list[Section]:
    """Every section of figures of the runs themselves, whether it has any or not."""
    series = [
        figure
        for number, run in enumerate(runs)
        for figure in _samples.series(run, [r for r in rows if r.run == number], chosen)
    ]
    every = [
        Section("winners", _density.winners(rows), 4),
        Section("accuracy", [_trade.pareto(each) for each in joined], 4),
        Section("errors", _trade.errors(rows), 4),
        Section("density", _density.crossover(rows), 4),
        Section("tokens", _density.sweeps(rows), 4),
        Section("roofline", _views.rooflines(rows), 4),
        Section("memory", _costs.memory(rows), 4),
        Section("costs", _costs.costs(rows, quantities_shown(runs, CHART)), 4),
        Section("spread", _samples.spreads(rows), 2),
        Section("series", series, 2),
    ]
    if len(runs) > 1:
        _set_beside(every, rows)
    return every


def _set_beside(sections: Iterable[Section], rows: Sequence[Row]) -> None:
    """Name the figures that show one thing of several runs: the page draws them on one axis."""
    for section in (each for each in sections if each.id in _BESIDE):
        twins: dict[tuple[str, str, Group], list[Figure]] = {}
        for figure in section.figures:
            first = rows[figure.rows[0]]
            share = first.density_word if section.id == "tokens" else ""
            twins.setdefault((figure.kind, share, first.group.without("run")), []).append(figure)
        for number, members in enumerate(twins.values()):
            for figure in members if len(members) > 1 else ():
                figure.extra["beside"] = f"{section.id}.{number}"


_BESIDE = ("accuracy", "density", "tokens", "memory", "costs")
"""Sections whose figures of several runs are compared by eye."""

TITLES = {
    "compare": "Comparison",
    "answer": "Answer",
    "questions": "Questions",
    "winners": "Who wins where",
    "accuracy": "Accuracy",
    "density": "Crossover",
    "roofline": "Roofline",
    "memory": "Memory and cost",
    "samples": "Samples",
    "rows": "Every row",
    "method": "Machine and method",
}
"""The headings of the page as its contents name them, in their order."""


def contents(sections: Iterable[Section], under: Mapping[str, object]) -> dict[str, str]:
    """The headings under which something stands.

    Args:
        sections: the sections of figures.
        under: for a heading, what stands under it beside figures; true where that is something.
    """
    drawn = {section.id for section in sections if section.figures}
    below = {
        "accuracy": ("accuracy", "errors"),
        "density": ("density", "tokens"),
        "memory": ("memory", "costs"),
        "samples": ("spread", "series"),
    }
    return {
        name: title
        for name, title in TITLES.items()
        if under.get(name) or drawn.intersection(below.get(name, (name,)))
    }
