"""Which order formats come in by each score of stored runs, and where the orders disagree.

Reads run files of ``projection`` or ``linear`` (output error), ``compress_lm`` (divergence of the
next token) and ``compress`` (how early a sentence finds its partner), any of them. A row is a
format with its knobs, as asked for; layers of all shapes are pooled. The first table has a column
for each score and the place in it; the second Kendall's τ-b between every two scores, over the
formats that both have.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from scipy.stats import kendalltau

from hwbench.records import Case, Status
from hwbench.store import read_run

SCORES = {
    "output_error": "output error",
    "next_token_divergence": "KL of the next token",
    "partner_mrr": "partner retrieval",
}
"""The quantities that are set against each other, and their headings."""
HIGHER = ("partner_mrr",)
FEWEST = 3
"""The fewest formats that two scores must share for an agreement to be reported."""


class Kind(NamedTuple):
    """A contestant: a format with its knobs, and the inputs that its projection saw."""

    format: str
    knobs: str
    weighting: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


Found = dict[str, dict[Kind, float]]
"""Each score, by kind."""


def kind(case: Case) -> Kind:
    """The kind of a case."""
    words = " ".join(f"{key}={value}" for key, value in sorted(case.knobs.items()))
    return Kind(case.format, words, str(case.options.get("weighting", "none")))


def scores(paths: list[Path]) -> Found:
    """The median over the layers of all shapes, or the windows, of every score.

    It is taken in each run and for each seed; what stands for a kind is the mean of these medians.
    """
    values_of: dict[str, dict[Kind, dict[tuple[Path, int], list[float]]]] = {
        name: defaultdict(lambda: defaultdict(list)) for name in SCORES
    }
    for path in paths:
        run = read_run(path)
        for result in run.results:
            case = run.planned[result.case].case
            if result.status is not Status.OK or case.format == "dense":
                continue
            for measurement in result.measurements:
                name = measurement.quantity if measurement.quantity != "score" else measurement.note
                if name in values_of and (values := measurement.kept()):
                    values_of[name][kind(case)][path, result.replicate] += values
    means = {
        name: {key: fmean(map(median, each.values())) for key, each in some.items()}
        for name, some in values_of.items()
    }
    return {name: some for name, some in means.items() if some}


def places(some: dict[Kind, float], name: str) -> dict[Kind, int]:
    """The place of each kind by one score, 1 for the best; equal values share one."""
    sign = -1 if name in HIGHER else 1
    return {
        key: 1 + sum(sign * other < sign * value for other in some.values())
        for key, value in some.items()
    }


def table(scores_of: Found) -> str:
    """Every kind with its scores and places, by the mean of its places."""
    orders = {name: places(some, name) for name, some in scores_of.items()}
    every = {key for some in scores_of.values() for key in some}
    heads = [SCORES[name] for name in scores_of]
    lines = [f"| format | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]

    def middle(key: Kind) -> tuple[float, Kind]:
        return fmean(order[key] for order in orders.values() if key in order), key

    for key in sorted(every, key=middle):
        cells = (
            f"{some[key]:.3g} ({orders[name][key]})" if key in some else "not measured"
            for name, some in scores_of.items()
        )
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(scores_of: Found) -> str:
    """Kendall's τ-b of every two scores, and the pair of formats that they disagree on most."""
    lines = ["| scores | formats | Kendall's τ | farthest apart |", "|---|--:|--:|---|"]
    for first, second in combinations(scores_of, 2):
        both = sorted(scores_of[first].keys() & scores_of[second].keys())
        heads = f"{SCORES[first]}, {SCORES[second]}"
        if len(both) < FEWEST:
            lines.append(f"| {heads} | {len(both)} | too few | |")
            continue
        orders = [places({k: scores_of[name][k] for k in both}, name) for name in (first, second)]
        tau = float(kendalltau(*([order[k] for k in both] for order in orders)).statistic)
        apart = max(both, key=lambda k: abs(orders[0][k] - orders[1][k]))
        where = f"{apart}: {orders[0][apart]} and {orders[1][apart]}"
        words = "all are level" if math.isnan(tau) else f"{tau:.2f}"
        lines.append(f"| {heads} | {len(both)} | {words} | {where} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run files, *.jsonl")
    scores_of = scores(parser.parse_args().runs)
    if not scores_of:
        parser.error(f"The runs hold none of {', '.join(SCORES)}.")
    print(table(scores_of))
    print()
    print(agreement(scores_of))


if __name__ == "__main__":
    main()
