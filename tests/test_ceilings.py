"""Ceilings: plateaus found, sweeps that say what they did, and a cache that is keyed and whole."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from _check import Call
from _fuzz import changed, places
from hwbench_simulated import BYTES_PER_SECOND, FLOPS_PER_SECOND, LAUNCH_SECONDS, Fake
from msgspec.structs import replace

from hwbench import protocol
from hwbench.analysis.plateaus import Plateau, levels, named, plateaus
from hwbench.cli import ceilings as verb
from hwbench.devices._base import Device
from hwbench.devices.cpu import Cpu
from hwbench.formats._base import FORWARD
from hwbench.measure import ceilings
from hwbench.measure import run as runner
from hwbench.measure.schedule import Progress
from hwbench.meters import _ceilings, _libraries
from hwbench.meters._ceilings import _working_sets, measure_ceilings
from hwbench.workloads._base import DTYPES

MIB = 2**20


# --- plateaus ----------------------------------------------------------------------------------


def sweep(*steps: tuple[int, float]) -> list[tuple[float, float]]:
    """So many working sets at each rate, each √2 larger than the one before."""
    rates = [rate for count, rate in steps for _ in range(count)]
    return [(65536 * 2 ** (number / 2), rate) for number, rate in enumerate(rates)]


def test_three_levels_are_found_with_their_working_sets() -> None:
    points = sweep((6, 200.0), (6, 90.0), (5, 20.0))
    plateaus_ = plateaus(points)
    assert [level.bytes_per_second for level in plateaus_] == [200.0, 90.0, 20.0]
    assert [level.least_bytes for level in plateaus_] == [points[at][0] for at in (0, 6, 12)]
    assert [level.most_bytes for level in plateaus_] == [points[at][0] for at in (5, 11, 16)]


def test_noise_makes_no_level_and_hides_none() -> None:
    noisy = [
        (size, rate * (1.0, 0.94, 1.05, 0.97)[number % 4])
        for number, (size, rate) in enumerate(sweep((8, 200.0), (8, 60.0)))
    ]
    plateaus_ = plateaus(noisy)
    assert [level.bytes_per_second for level in plateaus_] == [210.0, 63.0]


def test_a_slope_is_no_level_and_what_rises_is_the_cost_of_the_call() -> None:
    rising = [(1, 20.0), (1, 40.0), (1, 80.0), (1, 130.0)]
    falling = [(1, 150.0), (1, 110.0), (1, 70.0), (1, 40.0)]
    plateaus_ = plateaus(sweep(*rising, (6, 200.0), *falling, (4, 30.0)))
    assert [level.bytes_per_second for level in plateaus_] == [200.0, 30.0]


def test_a_slow_plateau_before_the_fastest_is_no_level() -> None:
    plateaus_ = plateaus(sweep((4, 50.0), (5, 200.0), (4, 30.0)))
    assert [level.bytes_per_second for level in plateaus_] == [200.0, 30.0]


def test_two_plateaus_of_one_rate_are_one_level() -> None:
    points = sweep((4, 100.0), (1, 60.0), (4, 104.0), (4, 20.0))
    plateaus_ = plateaus(points)
    assert [level.bytes_per_second for level in plateaus_] == [104.0, 20.0]
    assert plateaus_[0].least_bytes == points[0][0]


def test_a_level_is_named_after_the_smallest_cache_that_holds_its_middle() -> None:
    caches = {"L1": 64 * 1024, "L2": 2 * MIB, "L3": 32 * MIB}
    assert named(Plateau(16384, 65536, 1.0), caches) == "L1"
    assert named(Plateau(4 * MIB, 40 * MIB, 1.0), caches) == "L3"
    assert named(Plateau(40 * MIB, 90 * MIB, 1.0), caches) == "cache"
    assert named(Plateau(1, 2, 1.0), {}) == "cache"


# --- what is measured --------------------------------------------------------------------------


def fake() -> Fake:
    return Fake(effects={"replicate": 0})


def measured(device: Device, dtypes: list[str], *, full: bool = False) -> dict[str, Any]:
    """The ceilings as the runner gets them, and a run file holds them."""
    reply = protocol.CeilingsReply(ceilings=measure_ceilings(device, dtypes, full=full))
    result = protocol.decode_reply(protocol.encode(reply))
    assert isinstance(result, protocol.CeilingsReply)
    actual: dict[str, Any] = msgspec.to_builtins(result.ceilings)
    return actual


def test_the_last_level_of_a_sweep_is_the_memory() -> None:
    sweep = [
        protocol.Moved(working_set_bytes=2**each, bytes_per_second=9e10 if each < 18 else 2e10)
        for each in range(14, 24)
    ]
    actual = levels(sweep, {"L2": 2**18})
    assert [level.name for level in actual] == ["L2", "memory"]
    assert actual[-1].working_set_bytes == [2**18, 2**23]
    (alone,) = levels(sweep[-1:], {})  # one working set is no plateau, and the memory all the same
    assert (alone.name, alone.working_set_bytes) == ("memory", [2**23, 2**23])


def test_the_short_form_has_what_a_run_needs() -> None:
    values = measured(fake(), ["float32", "bfloat16"])
    assert set(values) == {"matmul", "copy", "launch", "disturbed"}
    assert values["disturbed"] == 0
    rate = 2 * 64**3 / (2 * 64**3 / FLOPS_PER_SECOND + LAUNCH_SECONDS)
    reached = {"flops_per_second": pytest.approx(rate), "shape": [64, 64, 64]}
    assert values["matmul"]["float32"] == {
        **reached,
        "library": "torch.mm",
        "libraries": {"torch.mm": reached},
    }
    assert values["copy"]["bytes_per_second"] == pytest.approx(BYTES_PER_SECOND, rel=0.05)
    assert values["launch"]["seconds"] == pytest.approx(LAUNCH_SECONDS, rel=1e-3)
    assert values["launch"]["graph"] == "fake has no graphs."


def test_the_full_form_names_the_best_size_and_keeps_the_sweep() -> None:
    values = measured(fake(), ["float32"], full=True)
    sizes = {at["shape"][0]: at["flops_per_second"] for at in values["matmul"]["float32"]["sweep"]}
    assert sizes[32] < sizes[64] == values["matmul"]["float32"]["flops_per_second"]
    for name, arrays in (("copy", 2), ("triad", 3)):
        sets = [at["working_set_bytes"] for at in values[name]["sweep"]]
        assert sets == sorted(sets)
        assert values[name]["working_set_bytes"] == sets[-1] <= Fake.copy_bytes
        assert all(size % (4 * arrays) == 0 for size in sets)


def test_other_precisions_belong_to_the_full_form_and_are_set_back() -> None:
    switched: list[str] = []

    class Two(Fake):
        def matmul_modes(self, dtype: str) -> Any:
            @contextmanager
            def other() -> Any:
                switched.append("on")
                yield
                switched.append("off")

            return {**super().matmul_modes(dtype), f"{dtype}_other": other}

    assert list(measured(Two(), ["float32"])["matmul"]) == ["float32"]
    assert switched == []
    values = measured(Two(), ["float32"], full=True)
    assert list(values["matmul"]) == ["float32", "float32_other"]
    assert switched == len(switched) // 2 * ["on", "off"] != []


def rounding(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product that is quick because it computes in fewer bits."""
    return (left.bfloat16() @ right.bfloat16()).float()


ROUTES: dict[str, tuple[float, Any]] = {
    "quick": (0.5, torch.mm),
    "slow": (2.0, torch.mm),
    "rounding": (0.1, rounding),
}
"""Made-up libraries: how long they take, over torch.mm's time, and what they compute."""


def route(name: str, device: Fake) -> _libraries.Route:
    """One of them, on the simulated machine."""
    share, product = ROUTES[name]

    def step(arrays: list[torch.Tensor]) -> Any:
        def call(_: Any) -> torch.Tensor:
            made: torch.Tensor = product(*arrays[:2])
            return made

        plain = 2 * arrays[0].shape[0] ** 3 / FLOPS_PER_SECOND + LAUNCH_SECONDS
        device.describe(call, added_seconds=(share - 1) * plain)
        return call

    return _libraries.Route(name, step)


@pytest.mark.parametrize("full", [False, True])
def test_the_roof_is_the_best_library_whose_products_are_exact(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    plain = _libraries.routes
    monkeypatch.setattr(
        _ceilings,
        "routes",
        lambda device, dtype: [*plain(device, dtype), *(route(name, device) for name in ROUTES)],
    )
    entry = measured(fake(), ["float32"], full=full)["matmul"]["float32"]
    assert list(entry["libraries"]) == ["torch.mm", "quick", "slow"]
    rates = {name: each["flops_per_second"] for name, each in entry["libraries"].items()}
    assert rates["slow"] < rates["torch.mm"] < rates["quick"]
    assert (entry["library"], entry["flops_per_second"]) == ("quick", rates["quick"])
    assert all("sweep" not in each for each in entry["libraries"].values())
    assert not full or max(each["flops_per_second"] for each in entry["sweep"]) == rates["quick"]


@pytest.mark.parametrize("dtype", _libraries.TOLERANCE)
def test_every_library_of_this_processor_is_tried_and_exact(dtype: str) -> None:
    device = Cpu()
    device.matmul_sides = (128,)  # type: ignore[misc]
    ways = _libraries.routes(device, dtype)
    subjects = _ceilings._products(device, dtype, len(ways), full=False)
    kept = _libraries.exact(ways, subjects.values(), dtype)
    assert kept[0] is ways[0]
    for way in kept:
        assert _libraries.error(way, subjects[128]) < _libraries.TOLERANCE[dtype]
    names = {way.name for way in kept}
    for kernel, name in _libraries.PACKED.items():
        runs = kernel.refuses(None, "cpu", DTYPES[dtype], FORWARD) is None
        assert (name in names) == runs
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_switch_that_changes_nothing_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(self: Fake, dtype: str) -> Any:
        return {"torch.mm": nullcontext, "torch.mm (the same)": nullcontext}

    monkeypatch.setattr(Fake, "matmul_libraries", two)
    entry = measured(fake(), ["float32"])["matmul"]["float32"]
    assert list(entry["libraries"]) == ["torch.mm"]


def test_what_disturbs_the_measuring_is_told() -> None:
    disturbed = Fake(effects={"replicate": 0, "disturb_probability": 1.0})
    assert measured(disturbed, ["float32"])["disturbed"] == 1


def test_every_sweep_is_visited_in_every_pass() -> None:
    visited: list[str] = []

    class Told(Fake):
        def matmul_modes(self, dtype: str) -> Any:
            @contextmanager
            def visit() -> Any:
                visited.append(dtype)
                yield

            return {dtype: visit}

    measure_ceilings(Told(), ["float32", "bfloat16"])
    passes = len(visited) // 2 - 1  # and once each to read the clock
    assert passes > 3
    assert visited == [*(passes * ["float32", "bfloat16"]), "float32", "bfloat16"]


def test_a_sweep_takes_no_more_memory_than_its_largest_size() -> None:
    device = Cpu()
    device.copy_bytes = 64 * MIB
    sets = _working_sets(device, "copy", full=True)
    starts = {subject.inputs[0].data_ptr() for subject in sets.values()}
    assert len(sets) > 10
    assert len(starts) == 1
    assert all(size % 8192 == 0 == start % 64 for size in sets for start in starts)


def test_a_size_that_would_take_all_the_time_is_left_out() -> None:
    class Slow(Fake):
        matmul_sweep = (64, 65536)

    values = measured(Slow(effects={"replicate": 0}), ["float32"], full=True)
    assert [at["shape"][0] for at in values["matmul"]["float32"]["sweep"]] == [64]


def test_a_processor_copies_more_than_its_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwbench import environment

    monkeypatch.setattr(environment, "last_level_cache_bytes", lambda: 200 * MIB)
    assert Cpu().copy_bytes == 800 * MIB
    monkeypatch.setattr(environment, "last_level_cache_bytes", lambda: 0)
    assert Cpu().copy_bytes == 256_000_000


# --- what is kept ------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hwbench"


SHAPE = [64, 64, 64]


class Worker:
    """Answers with made-up ceilings, and remembers what it was asked."""

    def __init__(self, rate: float = 1.0, disturbed: float = 0.0) -> None:
        self.rate, self.disturbed = rate, disturbed
        self.asked: list[tuple[list[str], bool]] = []

    def ask(self, request: Any, expected: Any, timeout_seconds: float) -> Any:
        self.asked.append((request.dtypes, request.full))
        best = protocol.BestProduct(flops_per_second=self.rate, shape=SHAPE)
        return protocol.CeilingsReply(
            ceilings=protocol.Ceilings(
                matmul=dict.fromkeys(request.dtypes, best),
                copy=protocol.Bandwidth(bytes_per_second=self.rate, working_set_bytes=8),
                launch=protocol.Launch(seconds=1.0),
                disturbed=self.disturbed,
            )
        )


def reply(**facts: Any) -> protocol.PlanReply:
    device = {"name": "example", "memory_bytes": 1, **facts}
    return protocol.PlanReply(
        fingerprint={"device": device, "torch": "2.13", "hwbench": "1"}, settings={"tf32": False}
    )


def test_only_the_first_run_measures_and_a_new_dtype_is_added(cache: Path) -> None:
    worker = Worker()
    first = ceilings.of_machine(worker, reply(), 2, {"float32"})
    assert ceilings.of_machine(worker, reply(), 2, {"float32"}) == first
    worker.rate = 2.0
    both = ceilings.of_machine(worker, reply(), 2, {"float32", "bfloat16"})
    assert worker.asked == [(["float32"], False), (["bfloat16"], False)]
    assert both["matmul"]["float32"] == {"flops_per_second": 1.0, "shape": SHAPE}
    assert both["matmul"]["bfloat16"] == {"flops_per_second": 2.0, "shape": SHAPE}
    assert both["copy"] == {"bytes_per_second": 2.0, "working_set_bytes": 8}
    assert ceilings.of_machine(worker, reply(), 2, {"bfloat16"}) == both


def test_a_run_says_that_it_measures_peaks_before_it_does(cache: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    case = {"workload": "linear", "direction": "forward", "shape": [16, 16], "tokens": 4,
            "format": [{"name": "dense"}]}  # fmt: skip
    asked = {"schema": 1, "name": "small", "plan": {"replicates": 1}, "cases": [case]}
    for _ in range(2):
        runner.run(asked, device="fake", out=tmp_path, threads=1, listener=told.append)
    first, *others = told
    assert (first.done, first.begun) == (0, False)
    assert "peaks of this machine" in first.note
    assert all(each.begun and not each.note for each in others), "the second run finds them kept"


def test_what_a_busy_machine_gave_is_measured_again_and_the_higher_is_kept(cache: Path) -> None:
    worker = Worker(rate=2.0, disturbed=0.8)
    first = ceilings.of_machine(worker, reply(), 2, {"float32", "bfloat16"})
    assert ceilings.busy(first)
    worker.rate, worker.disturbed = 1.0, 0.9
    assert ceilings.of_machine(worker, reply(), 2, {"float32"})["matmul"] == first["matmul"]
    worker.rate, worker.disturbed = 3.0, 0.1
    quiet = ceilings.of_machine(worker, reply(), 2, {"float32"})
    assert quiet["copy"] == {"bytes_per_second": 3.0, "working_set_bytes": 8}
    assert {at["flops_per_second"] for at in quiet["matmul"].values()} == {3.0}
    assert not ceilings.busy(quiet)
    assert ceilings.of_machine(worker, reply(), 2, {"float32"}) == quiet
    assert worker.asked == 3 * [(["bfloat16", "float32"], False)]


def test_of_two_looks_each_library_keeps_its_better_one(cache: Path) -> None:
    def entry(**rates: float) -> dict[str, Any]:
        best = max(rates, key=lambda name: rates[name])
        products = {n: {"flops_per_second": rate, "shape": SHAPE} for n, rate in rates.items()}
        return {**products[best], "library": best, "libraries": products}

    looks = [entry(mm=4.0, packed=3.0), entry(mm=2.0, packed=5.0)]

    class Two(Worker):
        def ask(self, request: Any, expected: Any, timeout_seconds: float) -> Any:
            actual = super().ask(request, expected, timeout_seconds).ceilings
            best = msgspec.convert(looks.pop(0), protocol.BestProduct)
            return protocol.CeilingsReply(ceilings=replace(actual, matmul={"float32": best}))

    worker = Two(disturbed=0.8)
    ceilings.of_machine(worker, reply(), 2, {"float32"})
    actual = ceilings.of_machine(worker, reply(), 2, {"float32"})["matmul"]["float32"]
    assert actual == entry(mm=4.0, packed=5.0)


def test_a_dtype_added_on_a_busy_machine_marks_them_all(cache: Path) -> None:
    ceilings.of_machine(Worker(), reply(), 2, {"float32"})
    both = ceilings.of_machine(Worker(disturbed=0.8), reply(), 2, {"bfloat16"})
    assert ceilings.busy(both)


def test_without_dtypes_nothing_is_measured(cache: Path) -> None:
    worker = Worker()
    assert ceilings.of_machine(worker, reply(), 2, []) == {}
    assert worker.asked == []


def test_the_full_form_takes_the_place_of_what_was_kept(cache: Path) -> None:
    ceilings.of_machine(Worker(), reply(), 2, {"float32"})
    actual = ceilings.measure(Worker(3.0), reply(), 2, ["float32"])
    assert actual["form"] == "full"
    after = Worker()
    assert ceilings.of_machine(after, reply(), 2, {"float32"}) == actual
    assert after.asked == []


def test_another_machine_setting_or_torch_has_ceilings_of_its_own(cache: Path) -> None:
    base = ceilings.path(reply(), 2)
    assert base.parent == cache
    assert ceilings.path(reply(), 2) == base
    assert ceilings.path(reply(uuid="another of the same"), 2) == base
    others = {
        ceilings.path(reply(), 1),
        ceilings.path(reply(name="other"), 2),
        ceilings.path(reply(driver="2"), 2),
        ceilings.path(protocol.PlanReply(fingerprint={"torch": "2.12"}), 2),
    }
    assert len({base, *others}) == 5


WHOLE = {
    "matmul": {"float32": {"flops_per_second": 1e11, "shape": [1, 1, 1]}},
    "copy": {"bytes_per_second": 1e10},
    "launch": {"seconds": 1e-6},
    "disturbed": 0.0,
}


def damaged() -> list[str]:
    """Files that are none, and one that is whole with each of its numbers made impossible."""
    actual = ["", "{", "[]", "{}", '{"matmul": 3}', '{"matmul": {"x": {}}}', "[" * 100_000]
    for place in places(WHOLE):
        actual.append(json.dumps(changed(WHOLE, place, None, drop=True)))
        if place[-1] not in ("shape", 0, 1, 2):
            values = ("x", None, True, [], -1.0, 1e308)
            actual += [json.dumps(changed(WHOLE, place, v, drop=False)) for v in values]
        if str(place[-1]).endswith("second"):
            actual.append(json.dumps(changed(WHOLE, place, 1e-300, drop=False)))
    whole = [json.dumps(changed(WHOLE, ("matmul", "float32"), None, drop=True))]
    unread = [changed(WHOLE, ("matmul", "float32", "shape", *at), None, drop=True)
              for at in [(), (0,), (1,), (2,)]]  # fmt: skip
    return [text for text in actual if text not in whole + [json.dumps(each) for each in unread]]


@pytest.mark.parametrize("text", damaged(), ids=lambda text: text[:80])
def test_a_file_that_is_not_whole_is_measured_again(cache: Path, text: str) -> None:
    file = ceilings.path(reply(), 2)
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    worker = Worker()
    ceilings.of_machine(worker, reply(), 2, {"float32"})
    assert worker.asked == [(["float32"], False)]
    assert json.loads(file.read_text(encoding="utf-8"))["matmul"]["float32"]
    aside = file.with_suffix(".damaged")
    assert sorted(cache.iterdir()) == sorted([file, aside])
    assert aside.read_text(encoding="utf-8") == text


def test_where_nothing_can_be_kept_the_ceilings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    actual = ceilings.of_machine(Worker(), reply(), 2, {"float32"})
    assert actual["matmul"]["float32"] == {"flops_per_second": 1.0, "shape": SHAPE}
    assert "cannot be written" in actual["not_kept"]


def test_the_folder_follows_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for platform, folder in (("linux", ".cache"), ("darwin", "Library/Caches")):
        monkeypatch.setattr(sys, "platform", platform)
        assert ceilings.folder() == Path("/home/me") / folder / "hwbench"


# --- the verb ----------------------------------------------------------------------------------


def test_the_verb_measures_shows_and_keeps(cache: Path, hwbench: Call) -> None:
    code, out, err = hwbench("ceilings", "--device", "fake", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert set(document["matmul"]) == {"float32", "bfloat16", "float16", "float64"}
    code, out, err = hwbench("ceilings", "--device", "fake")
    assert code == 0, err
    for words in ("matrix product", "memory level", "smallest call", f"Kept in {cache}"):
        assert words in out
    moved = re.search(r"^Against those of (\S+ \S+ UTC): (.*)\.$", out, re.MULTILINE)
    assert moved
    assert moved[1][:10] == document["measured"][:10]
    names = [part.split()[0] for part in moved[2].split(", ")]
    assert names == [*document["matmul"], "copy"]


def test_peaks_are_compared_with_those_that_were_kept() -> None:
    def peaks(rate: float, copy: float, *dtypes: str) -> dict[str, Any]:
        matmul = {dtype: {"flops_per_second": rate} for dtype in dtypes}
        return {
            "matmul": matmul,
            "copy": {"bytes_per_second": copy},
            "measured": "2026-11-21T09:30",
        }

    told = verb._against(peaks(100.0, 50.0, "float32"), peaks(102.0, 49.0, "float32", "bfloat16"))
    assert told == "Against those of 2026-11-21 09:30: float32 +2.0 %, copy -2.0 %."
    assert verb._against({}, peaks(1.0, 1.0, "float32")) is None


def test_the_verb_refuses_a_dtype_that_there_is_not(cache: Path, hwbench: Call) -> None:
    code, _, err = hwbench("ceilings", "--device", "fake", "--dtype", "int3")
    assert code == 2
    assert "--dtype takes float64" in err
    assert "Traceback" not in err
