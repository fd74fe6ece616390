"""Winners by paired quotients: simulated runs of formats whose truth is known."""

from __future__ import annotations

import math
import random
from collections import Counter
from statistics import fmean

import pytest

from hwbench.analysis.contest import (
    Entrant,
    Outcome,
    standings,
)


def entrant(name: str, *values: float) -> Entrant:
    return Entrant(name, dict(enumerate(values)))


def simulated(
    truths: dict[str, float], rng: random.Random, *, own: float, shared: float, count: int = 5
) -> list[Entrant]:
    """What formats take; a replicate slows all alike by ``shared`` and each by ``own`` (sd)."""
    luck = [rng.gauss(0, shared) for _ in range(count)]
    return [
        Entrant(
            name,
            {n: truth * math.exp(luck[n] + rng.gauss(0, own)) for n in range(count)},
        )
        for name, truth in truths.items()
    ]


def fastest(entrants: list[Entrant]) -> Entrant:
    return min(entrants, key=lambda each: fmean(map(math.log, each.values.values())))


def outcomes(entrants: list[Entrant]) -> dict[str, Outcome]:
    best = fastest(entrants)
    standing = standings(best, [each for each in entrants if each is not best])
    return {each.rival: each.outcome for each in standing}


def test_what_a_replicate_does_to_both_is_no_doubt() -> None:
    """Intervals of the two overlap by far; their quotient is the same in every replicate."""
    fast = entrant("fast", 1.0, 1.2, 0.9, 1.1)
    slow = entrant("slow", 1.051, 1.261, 0.946, 1.154)
    (standing,) = standings(fast, [slow])
    assert standing.outcome is Outcome.SLOWER
    assert standing.ratio.value == pytest.approx(1.05, rel=2e-3)
    assert standing.ratio.low > 1.04


def test_only_common_replicates_are_set_against_each_other() -> None:
    fast = Entrant("fast", {0: 1.0, 1: 1.01, 2: 9.0})
    slow = Entrant("slow", {0: 1.1, 1: 1.11, 3: 0.1})
    (standing,) = standings(fast, [slow])
    assert standing.ratio.value == pytest.approx(1.1, rel=2e-3)


def test_within_three_per_cent_is_tied_where_that_is_proved() -> None:
    fast = entrant("fast", 1.0, 1.1, 0.95, 1.05)
    same = entrant("same", 1.004, 1.098, 0.955, 1.049)
    (standing,) = standings(fast, [same])
    assert standing.outcome is Outcome.TIED
    noisy = entrant("noisy", 1.06, 1.05, 0.9, 1.1)
    (standing,) = standings(fast, [noisy])
    assert standing.outcome is Outcome.UNDECIDED


def test_a_rival_that_was_measured_badly_is_named_and_undoes_nothing() -> None:
    fast, slow = entrant("fast", 0.50, 0.51, 0.50, 0.50), entrant("slow", 0.6, 0.61, 0.6, 0.6)
    spiked = entrant("btt", 0.9, 0.91, 2.5, 0.92)
    standing = standings(fast, [slow, spiked])
    assert [each.outcome for each in standing] == [Outcome.SLOWER, Outcome.BADLY]
    never = Entrant("never", {})
    standing = standings(fast, [slow, never])
    assert [each.outcome for each in standing] == [Outcome.SLOWER, Outcome.BADLY]


def test_a_best_that_was_measured_badly_leaves_all_open() -> None:
    """Dense was slowed beside it in two replicates: its relative times stand below all others."""
    best = entrant("blast", 0.26, 0.081, 0.261, 0.103)
    rivals = [entrant("btt", 0.125, 0.207, 0.196, 0.141), entrant("csr", 0.27, 0.34, 0.32, 0.31)]
    assert {each.outcome for each in standings(best, rivals)} == {Outcome.UNDECIDED}


def test_whoever_scatters_more_was_measured_badly() -> None:
    rng = random.Random(0)
    found = Counter()
    for _ in range(200):
        one, other = (simulated({name: 1.0}, rng, own=own, shared=0.0)[0]
                      for name, own in (("steady", 0.005), ("scattered", 0.5)))  # fmt: skip
        (of_other,), (of_one,) = standings(one, [other]), standings(other, [one])
        assert of_one.outcome is not Outcome.BADLY
        found[of_other.outcome] += 1
    assert found[Outcome.BADLY] > 150


def test_one_replicate_decides_nothing() -> None:
    (standing,) = standings(entrant("fast", 1.0), [entrant("slow", 2.0)])
    assert standing.outcome is Outcome.UNDECIDED


def test_the_spread_between_runs_of_both_is_added() -> None:
    fast, slow = entrant("fast", 1.0, 1.001, 1.0), entrant("slow", 1.02, 1.021, 1.02)
    assert outcomes([fast, slow])["slow"] is Outcome.SLOWER
    night = (0.02**2, 10.0)
    (standing,) = standings(
        Entrant("fast", fast.values, night), [Entrant("slow", slow.values, night)]
    )
    assert standing.outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("rivals", [1, 7])
def test_equal_formats_are_hardly_ever_told_apart(rivals: int) -> None:
    """However many rivals there are: a wrong winner in at most 5 % of groups."""
    rng = random.Random(rivals)
    result = 0
    for _ in range(400):
        names = {f"format{n}": 1.0 for n in range(rivals + 1)}
        actual = outcomes(simulated(names, rng, own=0.015, shared=0.05))
        result += any(each is Outcome.SLOWER for each in actual.values())
    assert result <= 0.07 * 400


def test_a_format_that_is_slower_is_told_from_the_best_beside_others() -> None:
    rng = random.Random(5)
    counts: Counter[Outcome] = Counter()
    for _ in range(200):
        truths = {"fast": 1.0, "ten": 1.1, "twenty": 1.2, "far": 3.0}
        entrants = simulated(truths, rng, own=0.012, shared=0.1)
        assert fastest(entrants).name == "fast"
        counts[outcomes(entrants)["ten"]] += 1
    assert counts[Outcome.SLOWER] > 190


def test_a_tie_is_proved_wrongly_in_at_most_one_of_twenty() -> None:
    """Formats that are 3.1 % apart are not tied."""
    rng = random.Random(6)
    tied = 0
    for _ in range(400):
        entrants = simulated({"fast": 1.0, "near": 1.031}, rng, own=0.01, shared=0.05)
        fast, near = entrants
        (standing,) = standings(fast, [near])
        tied += standing.outcome is Outcome.TIED
    assert tied <= 0.07 * 400
