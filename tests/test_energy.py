"""Energy is read where it is asked for, in one replicate, and a run that goes on asks again."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from _check import TINY, Call
from hwbench_simulated import Fake

from hwbench.measure import schedule
from hwbench.meters import energy
from hwbench.store import Run, read_run


@pytest.fixture(autouse=True)
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that moves by a joule at each look, and a window of an instant."""
    (tmp_path / "s.toml").write_text(TINY)
    looks = count(1)
    monkeypatch.setattr(Fake, "energy_joules", lambda self: float(next(looks)))
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.001)
    monkeypatch.setattr(energy, "SETTLE_SECONDS", 0.001)


def the_run() -> Run:
    (path,) = Path("runs").glob("*.jsonl")
    return read_run(path)


def read(run: Run) -> dict[tuple[str, int], list[float]]:
    """The joules by case and replicate, of those results in which the meter was asked."""
    return {
        (result.case, result.replicate): list(measurement.values)
        for result in run.results
        for measurement in result.measurements
        if measurement.quantity == "energy_joules"
    }


def first_of_timed(run: Run) -> set[tuple[str, int]]:
    return {(case, 0) for case, planned in run.planned.items() if planned.seeds is None}


def test_energy_is_read_once_for_each_timed_case(hwbench: Call) -> None:
    code, _, err = hwbench("run", "--suite", "s.toml", "--device", "fake", "--energy")
    run = the_run()
    assert (code, run.complete) == (0, True), err
    joules = read(run)
    assert joules.keys() == first_of_timed(run)
    assert all(len(values) == 1 and values[0] > 0 for values in joules.values())


def test_without_the_option_no_counter_is_asked(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "energy_joules", lambda self: pytest.fail("it was asked"))
    assert hwbench("run", "--suite", "s.toml", "--device", "fake")[0] == 0
    assert read(the_run()) == {}


def test_a_run_that_goes_on_reads_energy_as_it_was_begun(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(schedule.Ends, "spent", property(lambda self: self.budget is not None))
        options = ("--suite", "s.toml", "--device", "fake", "--energy", "--time-budget", "1s")
        assert hwbench("run", *options)[0] == 5
    assert read(the_run()) == {}
    assert hwbench("run", "--resume", str(the_run().path))[0] == 0
    assert read(the_run()).keys() == first_of_timed(the_run())


@pytest.mark.parametrize("reading", ["It has no counter here.", 7.0])
def test_a_counter_that_cannot_be_read_or_stands_still_is_said(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch, reading: float | str
) -> None:
    monkeypatch.setattr(Fake, "energy_joules", lambda self: reading)
    assert hwbench("run", "--suite", "s.toml", "--device", "fake", "--energy")[0] == 0
    notes = {
        (tuple(measurement.values), measurement.note)
        for result in the_run().results
        for measurement in result.measurements
        if measurement.quantity == "energy_joules"
    }
    said = (
        reading
        if isinstance(reading, str)
        else "The energy counter did not move during the window."
    )
    assert notes == {((), said)}
