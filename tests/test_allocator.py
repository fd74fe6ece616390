"""Memory that a worker keeps: who asks for it, what is stored of it, and what it is compared with.

That a real worker keeps it is in ``test_processes.py``; glibc of this process is told nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _check import CASES, Call, kept, made, one_sentence
from _synthetic import linear_case, run_of
from hwbench_simulated import Fake
from msgspec.structs import replace

from hwbench import protocol
from hwbench import suite as suites
from hwbench.devices import _allocator
from hwbench.devices.cpu import Cpu
from hwbench.errors import DeviceError, RunFileError, UnknownNameError
from hwbench.measure import run as runner
from hwbench.meters import allocator
from hwbench.quantities import SYSTEM_FAULTS, SYSTEM_RELATIVE
from hwbench.records import Measurement, Plan
from hwbench.store import Run, read_run
from hwbench.worker import Worker
from hwbench.workloads._base import Subject

KEPT, SYSTEM = "kept", "system"
SENTENCE = "Freed memory is not kept: this is a test."
SUITE = {
    "schema": 1,
    "name": "memory",
    "plan": {"replicates": 2, "budget_seconds": 0.005},
    "cases": [
        {"workload": "linear", "direction": "step", "shape": [16, 16], "tokens": [4],
         "format": [{"name": "dense"}, {"name": "low_rank", "rank": 2}]},
    ],
}  # fmt: skip


def offers(monkeypatch: pytest.MonkeyPatch, kept: str | None) -> list[str]:
    """Have the simulated device keep memory, or say why not; what it is told, in order."""
    recorded: list[str] = []
    known = {SYSTEM: ""} if kept is None else {SYSTEM: "", KEPT: kept}
    monkeypatch.setattr(Fake, "allocators", lambda self: known)
    monkeypatch.setattr(Fake, "use_allocator", lambda self, name: recorded.append(name))
    monkeypatch.setattr(Fake, "release_memory", lambda self: recorded.append("released"))
    return recorded


def measured(folder: Path, **changes: Any) -> Run:
    return read_run(runner.run(SUITE, device="fake", out=folder, threads=1, **changes))


def stood(run: Run) -> tuple[str, Any, Any]:
    """What a run says of it: its plan, its settings, and its state."""
    environment = run.header.environment
    return (
        run.header.plan.allocator,
        environment.settings.get("allocator"),
        environment.state.get("allocator"),
    )


# What is asked for


def test_a_suite_keeps_memory_unless_it_says_otherwise_and_a_slip_names_the_nearest() -> None:
    assert suites.build(SUITE, "cpu").plan.allocator == KEPT
    request = {**SUITE, "plan": {"allocator": SYSTEM}}
    assert suites.build(request, "cpu").plan.allocator == SYSTEM
    with pytest.raises(UnknownNameError, match="kept"):
        suites.allocator("kep")
    with pytest.raises(Exception, match=r"allocator.*sistem.*system"):
        suites.build({**SUITE, "plan": {"allocator": "sistem"}}, "cpu")


def test_a_plan_that_was_stored_before_is_the_systems() -> None:
    assert Plan().allocator == SYSTEM


@pytest.mark.parametrize(
    ("offered", "asked", "says"),
    [
        ("", None, (KEPT, KEPT, None)),
        ("", SYSTEM, (SYSTEM, None, None)),
        (SENTENCE, None, (SYSTEM, None, SENTENCE)),
        (SENTENCE, SYSTEM, (SYSTEM, None, None)),
        (None, None, (SYSTEM, None, None)),  # a device whose times do not depend on it
    ],
)
def test_a_run_says_what_its_workers_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hwbench: Call,
    offered: str | None,
    asked: str | None,
    says: tuple[str, str | None, str | None],
) -> None:
    result = offers(monkeypatch, offered)
    run = measured(tmp_path, **({"allocator": asked} if asked else {}))
    assert stood(run) == says
    assert set(result) == {says[0], "released"}
    assert result[0] == says[0]  # before anything is prepared
    assert (SENTENCE in hwbench("show", str(run.path))[1]) is (says[2] is not None)


def test_the_command_line_asks_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hwbench: Call
) -> None:
    result = offers(monkeypatch, "")
    common = ["run", "-s", "smoke", "-d", "fake", "--quick", "--filter", "format=dense"]
    code, _, err = hwbench(*common, "--allocator", "keep")
    assert code == 2
    assert "kept" in one_sentence(err)
    assert not result
    assert hwbench(*common, "--allocator", SYSTEM)[0] == 0
    assert KEPT not in result


def test_a_run_goes_on_only_with_the_allocator_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = offers(monkeypatch, "")
    run = measured(tmp_path)
    lines = run.path.read_text().splitlines(keepends=True)
    run.path.write_text("".join(lines[:-3]))  # a result and the footer are lost
    result.clear()
    assert read_run(runner.resume(run.path)).complete
    assert result[0] == KEPT
    run.path.write_text("".join(lines[:-3]))
    offers(monkeypatch, SENTENCE)
    with pytest.raises(RunFileError, match="allocator was 'kept' and is 'system'"):
        runner.resume(run.path)


def test_pairs_of_which_one_side_cannot_keep_memory_are_both_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwbench.studies import ab
    from hwbench.studies._sides import Origin

    offers(monkeypatch, "")
    built = suites.build(SUITE, "fake")
    how = ab.How(device="fake", threads=1, seed=0, out=tmp_path, listener=lambda told: None)
    origin = Origin("python", "python", None, None)
    whole = protocol.PlanReply(allocators={SYSTEM: "", KEPT: ""})
    for replies, expected in (([whole, whole], KEPT), ([whole, protocol.PlanReply()], SYSTEM)):
        left = iter(replies)
        monkeypatch.setattr(ab, "_planned", lambda *given, left=left: next(left))
        states = ab._begun(built, [origin, origin], replace_stem(how, expected))
        assert [state.header.plan.allocator for state in states] == [expected] * 2
        for state in states:
            state.writer.discard()


def replace_stem(how: Any, stem: str) -> Any:
    import dataclasses

    return dataclasses.replace(how, stem=stem)


# What is compared


def night(day: int, allocator: str | None, **options: Any) -> Run:
    """A run of that day: with memory kept, with the system's allocator, or from before."""
    run = made(day, **options)
    settings = {"allocator": KEPT} if allocator == KEPT else {}
    where = replace(run.header.environment, settings=settings)
    plan = replace(run.header.plan, allocator=allocator or SYSTEM)
    run.header = replace(run.header, environment=where, plan=plan)
    return run


@pytest.mark.parametrize("before", [None, SYSTEM, KEPT])
@pytest.mark.parametrize("now", [SYSTEM, KEPT])
def test_nights_with_different_allocators_are_not_comparable(
    hwbench: Call, before: str | None, now: str
) -> None:
    baseline = kept(night(1, before), "nights")
    code, out, err = hwbench("check", kept(night(2, now)), "-b", baseline, "--json")
    same = (before or SYSTEM) == now
    assert code == (0 if same else 4)
    mismatch = json.loads(out)["mismatch"]
    assert bool(mismatch) is not same
    if not same:
        words = f"settings.allocator was '{before or SYSTEM}' and is '{now}'"
        assert mismatch == [f"{words} (--allocator {before or SYSTEM} measures as before)"]
        assert words in err


def test_a_folder_leaves_the_nights_of_the_other_allocator_out(hwbench: Call) -> None:
    for day in (1, 2):
        kept(night(day, KEPT), "nights")
    kept(night(3, None, slower=0.5), "nights")
    code, out, _ = hwbench("check", kept(night(4, KEPT)), "-b", "nights", "--json")
    document = json.loads(out)
    assert (code, len(document["baseline"])) == (0, 2)
    assert any("1 of another machine" in note for note in document["notes"])


def test_compare_says_in_words_that_it_differs(hwbench: Call) -> None:
    paths = [kept(night(1, None)), kept(night(2, KEPT))]
    code, out, err = hwbench("compare", *paths)
    assert code == 0
    assert "settings.allocator" in out + err


# What the processor does


def test_the_processor_keeps_memory_once_and_gives_it_back_when_a_case_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[Any] = []
    monkeypatch.setattr(_allocator, "_set", recorded.append)
    monkeypatch.setattr(_allocator, "trim", lambda: recorded.append("trim"))
    device = Cpu()
    device.release_memory()  # nothing is kept yet
    device.use_allocator(SYSTEM)
    assert recorded == []
    for _ in range(2):
        device.use_allocator(KEPT)
    assert recorded == [((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20))]
    Worker(device).answer(protocol.ForgetRequest())
    assert recorded[1:] == ["trim"]
    with pytest.raises(DeviceError, match="no allocator none"):
        device.use_allocator("none")


@pytest.mark.parametrize(
    ("missing", "says"), [("process", "another libc"), ("library", "LD_PRELOAD")]
)
def test_where_the_allocator_is_not_glibcs_the_processor_says_so(
    monkeypatch: pytest.MonkeyPatch, missing: str, says: str
) -> None:
    opened = _allocator._opened
    monkeypatch.setattr(
        _allocator, "_opened", lambda name: None if (name is None) == (missing == "process")
        else opened(name),
    )  # fmt: skip
    _allocator.refusal.cache_clear()
    try:
        assert says in Cpu().allocators()[KEPT]
        with pytest.raises(DeviceError, match=says):
            Cpu().use_allocator(KEPT)
    finally:
        _allocator.refusal.cache_clear()


# What a process of its own takes


class Faulting(Fake):
    """A device on which a call faults, and takes longer for it, until memory is kept."""

    def __init__(self, faults: float, seconds: float) -> None:
        super().__init__(effects={})
        self.faults, self.more, self.count = faults, seconds, 0.0

    def run(self, step: Any, states: Any) -> None:
        super().run(step, states)
        self.count += len(states) * self.faults
        self.advance(len(states) * self.more)

    def probe(self) -> dict[str, float]:
        return {**super().probe(), "minor_faults": self.count}

    def use_allocator(self, name: str) -> None:
        assert name == KEPT
        self.faults = self.more = 0.0


@pytest.mark.parametrize(
    ("faults", "seconds", "ratio", "flagged"),
    [
        (0.0, 0.0, None, False),
        (0.5, 0.0, None, False),
        (100.0, 5e-6, 1.5, True),  # a call takes 10 µs
        (100.0, 0.9e-6, 1.09, False),
        (100.0, 1.1e-6, 1.11, True),
        (1.0, 9e-6, None, False),  # more than a fault takes: it was something else
        (1.0, 90e-6, None, False),  # a fault cannot cost a tenth of a call of 100 µs
    ],
)
def test_what_faults_cost_is_told_and_nothing_else(
    faults: float, seconds: float, ratio: float | None, flagged: bool
) -> None:
    actual = allocator.compared(Subject(step=lambda _: None), Faulting(faults, seconds))
    read = {each.quantity: each for each in actual}
    assert read[SYSTEM_FAULTS.name].values == [pytest.approx(faults, abs=0.1)]
    relative = read.get(SYSTEM_RELATIVE.name)
    assert (relative.values if relative else []) == ([pytest.approx(ratio)] if ratio else [])
    assert (relative is not None and relative.note == allocator.DISTURBED) is (seconds == 9e-6)
    assert allocator.flags(actual) == (["system_slower"] if flagged else [])


class Slow(Faulting):
    """A device on which a call takes so long, by every clock."""

    def __init__(self, seconds: float) -> None:
        super().__init__(0.5, 0.0)
        self.call_seconds, self.now = seconds, 0.0

    def run(self, step: Any, states: Any) -> None:
        super().run(step, states)
        self.now += len(states) * self.call_seconds

    def seconds(self, start: Any, end: Any) -> float:
        return self.call_seconds


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Slow]:
    def made(seconds: float) -> Slow:
        device = Slow(seconds)
        monkeypatch.setattr(allocator.time, "monotonic", lambda: device.now)
        return device

    return made


SUBJECT = Subject(step=lambda _: None)


@pytest.mark.parametrize(
    ("seconds", "calls"), [(1e-3, 30), (10e-3, 8), (0.12, 8), (0.2, 5), (0.4, 3), (30.0, 3)]
)
def test_long_calls_are_timed_less_often(
    slow: Callable[[float], Slow], seconds: float, calls: int
) -> None:
    samples, faults = allocator._sampled(slow(seconds), SUBJECT, allocator._SECONDS)
    assert len(samples) == calls
    assert faults == 0.5


@pytest.mark.parametrize("seconds", [1e-3, 0.1, 0.2, 0.5])
def test_calls_that_warmed_for_long_are_not_calibrated(
    slow: Callable[[float], Slow], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    device, calibrated = slow(seconds), []
    monkeypatch.setattr(allocator, "calibrate", lambda *_: calibrated.append(1))
    samples, _ = allocator._warmed(device, SUBJECT)
    assert allocator._timed(device, SUBJECT, sum(samples))[0] == seconds
    assert bool(calibrated) is (seconds < 0.2)


@pytest.mark.parametrize("count", range(3, 12))
def test_the_time_is_the_lower_quartile_or_the_least_of_few_calls(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    times = [float(n) for n in range(count, 0, -1)]
    monkeypatch.setattr(allocator, "_sampled", lambda *_: (times, 0.0))
    seconds, _ = allocator._timed(Faulting(0.0, 0.0), SUBJECT, warmed=math.inf)
    assert seconds == (1.0 if count < 8 else sorted(times)[count // 4])


def reading(note: str | None = None) -> list[Measurement]:
    return [Measurement(quantity=SYSTEM_RELATIVE.name, unit="×", values=[], note=note)]


def test_a_disturbed_reading_is_tried_once_more_and_a_process_that_died_is_not() -> None:
    meter, tried = allocator.SystemAllocator(), []

    def read(answers: list[Any]) -> list[Measurement]:
        left = iter(answers)
        tried.clear()

        def once() -> Any:
            tried.append(1)
            return next(left)

        return meter.read(Subject(step=lambda _: None, in_own_process=once), Fake())

    assert read([reading("noise"), reading()]) == reading()
    assert read([reading("noise"), reading("again")]) == reading("again")
    assert {each.note for each in read(["It died."])} == {"It died."}
    assert len(tried) == 1
    assert meter.read(Subject(step=lambda _: None), Fake()) == []


def test_faults_are_counted_a_call_in_each_block() -> None:
    from hwbench.meters import latency

    member = latency.Member("case", Subject(step=lambda _: None), calls=4, samples=3)
    latency._block(member, Faulting(7.0, 0.0), 0)
    assert member.faults == [7.0]
    plain = latency.Member("case", Subject(step=lambda _: None))
    latency._block(plain, Fake(), 0)
    assert plain.faults == []


def test_a_flagged_row_says_what_a_users_own_process_will_see(hwbench: Call) -> None:
    run = run_of([linear_case("dense", None), *CASES[1:]])
    slow = next(case for case in run.planned if "low_rank" in case)
    run.results = [
        replace(each, flags=["system_slower"]) if each.case == slow else each
        for each in run.results
    ]
    out = hwbench("show", kept(run), "--wide")[1]
    (row,) = (line for line in out.splitlines() if "low_rank" in line and "system slower" in line)
    assert "in a process of its own" in out
    assert row
