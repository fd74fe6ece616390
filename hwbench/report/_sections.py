"""The sections of the page: which figures stand under which heading."""

from __future__ import annotations

from dataclasses import dataclass

from hwbench.analysis.accuracy import Joined
from hwbench.quantities import CHART
from hwbench.report import _costs, _density, _ratios, _samples, _trade, _views
from hwbench.report._views import Figure
from hwbench.report.rows import Row, shown
from hwbench.store import Run


@dataclass(frozen=True)
class Section:
    """Figures of one kind, under one heading; those beyond ``shown`` are chosen from a list."""

    id: str
    figures: list[Figure]
    shown: int
    empty: str  # the sentence where there is nothing to draw
    listed: int = 60  # of the others are in the list without the script, which lists all

    @property
    def more(self) -> list[Figure]:
        """The figures that are chosen from a list."""
        return self.figures[self.shown :]


def compared(rows: list[Row], machines: list[str]) -> list[Section]:
    """One section for every run that is compared with the first one."""
    return [
        Section(
            f"versus{number}",
            _ratios.figures(rows, number, machines[0]),
            4,
            "No case has a ratio: none was timed in both runs within one timing contract.",
        )
        for number in range(1, len(machines))
    ]


def sections(
    rows: list[Row], runs: list[Run], joined: list[Joined], chosen: set[str]
) -> list[Section]:
    """Every section of figures of the runs themselves, whether it has any or not."""
    series = [
        figure
        for number, run in enumerate(runs)
        for figure in _samples.series(run, [r for r in rows if r.run == number], chosen)
    ]
    return [
        Section("winners", _density.winners(rows), 4, ""),
        Section(
            "accuracy",
            [_trade.pareto(each) for each in joined],
            4,
            "The run has no scores that go with its times: nothing to trade. A suite with a second "
            'block, such as workload = "projection", over the same formats gives them.',
        ),
        Section("errors", _trade.errors(rows), 4, ""),
        Section("density", _density.crossover(rows), 4, "No format has several densities."),
        Section("tokens", _density.sweeps(rows), 4, "No shape was timed at several token counts."),
        Section(
            "roofline",
            _views.rooflines(rows),
            4,
            "No roofline: the ceilings of this machine were not measured, or nothing was timed.",
        ),
        Section("memory", _costs.memory(rows), 4, "No case has a known cost."),
        Section(
            "costs",
            _costs.costs(rows, shown(runs, CHART)),
            4,
            "Nothing was read beside time and memory.",
        ),
        Section("spread", _samples.spreads(rows), 2, "Nothing was timed."),
        Section(
            "series",
            series,
            2,
            "No case is flagged and none was asked for: hwbench report RUN --samples CASE shows "
            "every sample of a case.",
        ),
    ]
