"""An option of a workload that is a number has limits, and what lies beyond them is a mistake."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from _synthetic import scored_case

from hwbench import plugins
from hwbench.errors import SuiteError
from hwbench.records import Knob
from hwbench.workloads._base import MOST_SEEDS, Workload

WORKLOADS = {name: plugins.load("workloads", name, Workload) for name in plugins.names("workloads")}


def numbers() -> Iterator[tuple[str, str, Knob]]:
    """Workload, option and default of every option that is a number."""
    for name, kind in WORKLOADS.items():
        for key, value in kind.OPTIONS.items():
            if not isinstance(value, str):
                yield name, key, value


def limits(name: str, key: str) -> tuple[float, float]:
    return {"seeds": (1, MOST_SEEDS), **WORKLOADS[name].LIMITS}[key]


@pytest.mark.parametrize(("name", "key", "value"), list(numbers()))
def test_every_number_has_limits_that_its_default_keeps(name: str, key: str, value: Knob) -> None:
    least, most = limits(name, key)
    assert math.isfinite(least)
    assert math.isfinite(most)
    kind = WORKLOADS[name]()
    assert kind.options(scored_case(name, "dense", 16, **{key: value}))[key] == value


@pytest.mark.parametrize(("name", "key", "value"), list(numbers()))
def test_what_lies_beyond_the_limits_is_a_mistake_that_names_the_option(
    name: str, key: str, value: Knob
) -> None:
    least, most = limits(name, key)
    wrong: list[Knob] = [least - 1, most + 1, -(10**6), 10**12]
    if isinstance(value, float):
        wrong = [float(each) for each in [least, *wrong]] + [math.nan, math.inf, -math.inf]
    else:
        wrong = [int(each) for each in wrong] + [10**400]
    for each in wrong:
        case = scored_case(name, "dense", 16, **{key: each})
        with pytest.raises(SuiteError, match=f"{key} of workload {name} must be .*, not"):
            WORKLOADS[name]().check(case)


def test_limits_are_of_options_that_there_are() -> None:
    for kind in WORKLOADS.values():
        assert set(kind.LIMITS) <= set(kind.OPTIONS)


class Foreign(Workload):
    """A workload of another package, without limits."""

    OPTIONS = {"offset": -1.0, "count": 1}  # noqa: RUF012

    def cost(self, case, described):
        return None

    def prepare(self, case, described, device, seed):
        raise NotImplementedError


def test_what_has_no_limits_has_to_be_a_number_all_the_same() -> None:
    assert Foreign().options(scored_case("foreign", "dense", 16, offset=-5.0)) == {
        "offset": -5.0, "count": 1,
    }  # fmt: skip
    Foreign().check(scored_case("foreign", "dense", 16, count=10**400))
    for wrong in (math.nan, math.inf):
        with pytest.raises(SuiteError, match="offset of workload foreign must be a finite number"):
            Foreign().check(scored_case("foreign", "dense", 16, offset=wrong))
