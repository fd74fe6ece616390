"""The doctor: every check from what a worker tells, the gate, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from _check import Call
from _inline import Workers
from hwbench_simulated import Fake
from msgspec.structs import replace
from typer.main import get_command

from hwbench import environment, protocol
from hwbench.cli import app
from hwbench.errors import EnvironmentMismatchError, UnknownNameError
from hwbench.measure import ceilings
from hwbench.meters import _health
from hwbench.studies import doctor
from hwbench.studies.doctor import KEYS, Check, Load, Reading, Verdict, ask, checks, demand, verdict

ALONE = Load(busy=0.1, minute=0.0)
DOCTOR = ("doctor", "--device", "fake")
HEALTH = protocol.Health(
    disturbances=[],
    seconds=1.0,
    spread=0.02,
    timer_seconds=4e-8,
    resolution_seconds=1e-9,
    two_four={"cusparselt": "no kernel.", "cutlass": "no kernel."},
)
OF_FLOAT32 = {"flops_per_second": 2e11, "library": "torch.mm (MKL)", "shape": [512, 512, 512]}
CPU = {"name": "Example 9000", "memory_bytes": 8 * 10**9, "cores": 2, "caches_bytes": {"L2": 10**6}}
CPU_STATE = {"governor": "performance", "turbo": "off", "throttled_periods": 0.0}
GPU = {
    "name": "NVIDIA A100-SXM4-80GB",
    "memory_bytes": 85_049_475_072,
    "multiprocessors": 108,
    "l2_bytes": 41_943_040,
    "driver": "580.1",
    "cusparselt": "not in this PyTorch",
    "max_sm_clock_hertz": 1.41e9,
    "power_limit_watts": 400.0,
}
GPU_STATE = {
    "sm_clock_hertz": 1.2e9,
    "power_watts": 80.0,
    "power_meaning": "instant",
    "clocks_event_reasons": ["idle"],
    "other_processes": [],
    "host": CPU_STATE,
}


def told(
    device: dict[str, Any],
    state: dict[str, Any],
    *,
    load: Load = ALONE,
    share: float | None = 0.97,
    kept: dict[str, Any] | None = OF_FLOAT32,
    **health: Any,
) -> dict[str, Check]:
    reply = protocol.PlanReply(fingerprint={"device": device, "torch": "2.13"}, state=state)
    reading = Reading(replace(HEALTH, **health), share, kept)
    return {check.key: check for check in checks(reply, reading, load)}


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    monkeypatch.setattr(environment, "cpu_quota", lambda: None)


def test_every_key_that_can_be_required_is_checked_once_and_in_order() -> None:
    for device, state in ((CPU, CPU_STATE), (GPU, GPU_STATE)):
        assert tuple(told(device, state)) == KEYS


def test_a_quiet_processor_is_fine_but_for_what_it_does_not_have() -> None:
    actual = told(CPU, CPU_STATE)
    assert {key for key, check in actual.items() if check.verdict is not Verdict.FINE} == {
        *("peak", "power", "two_four")
    }
    assert "L2 1.00 MB" in actual["device"].says
    assert actual["two_four"].says == "no kernel."


def test_a_quiet_gpu_is_fine() -> None:
    actual = told(GPU, GPU_STATE, two_four={"cusparselt": "", "cutlass": "no kernel."})
    assert {check.verdict for check in actual.values()} == {Verdict.FINE}
    assert actual["two_four"].says == "ran with cusparselt"
    assert "cusparselt not in this PyTorch" in actual["libraries"].says
    assert "NVIDIA A100-SXM4-80GB in peaks.toml" in actual["peak"].says
    assert "80 W of 400 W" in actual["power"].says


def products(**rates: float) -> dict[str, Any]:
    """What is kept of float32 products, by library, the first being that of F.linear."""
    names = {"mkl": "torch.mm (MKL)", "blas": "torch.mm", "onednn": "oneDNN, packed"}
    best = max(rates, key=lambda name: rates[name])
    libraries = {
        names[name]: {"flops_per_second": rate, "shape": [512, 512, 512]}
        for name, rate in rates.items()
    }
    return {**libraries[names[best]], "library": names[best], "libraries": libraries}


@pytest.mark.parametrize(
    ("kept", "name", "verdict", "words"),
    [
        (None, "Example", Verdict.ABSENT, ["no ceiling is kept"]),
        (products(mkl=4.9e11, onednn=5e11), "AMD EPYC", Verdict.FINE, ["98 %", "490 GFLOP/s"]),
        (
            products(mkl=2.2e11, onednn=5e11),
            "AMD EPYC",
            Verdict.DOUBT,
            ["44 %", "220 GFLOP/s by torch.mm (MKL)", "oneDNN, packed reaches 500", "AVX2 path"],
        ),
        (products(mkl=2.2e11, onednn=5e11), "Intel(R) Xeon(R)", Verdict.DOUBT, ["44 %"]),
        (products(blas=2.2e11, onednn=5e11), "AMD EPYC", Verdict.DOUBT, ["by torch.mm,"]),
    ],
)
def test_it_is_told_what_part_of_the_device_a_linear_layer_reaches(
    kept: dict[str, Any] | None, name: str, verdict: Verdict, words: list[str]
) -> None:
    actual = told({**CPU, "name": name}, CPU_STATE, kept=kept)["linear"]
    assert actual.verdict is verdict
    assert all(each in actual.says for each in words), actual.says
    assert ("AVX2" in actual.says) == ("AVX2 path" in words)


@pytest.mark.parametrize(
    ("key", "device", "state", "extra", "verdict", "says"),
    [
        ("clocks", CPU, {**CPU_STATE, "governor": "powersave"}, {}, "doubt", "powersave"),
        ("clocks", CPU, {**CPU_STATE, "governor": "not readable"}, {}, "unknown", "not readable"),
        ("clocks", GPU, {**GPU_STATE, "sm_clock_hertz": "NVML: no."}, {}, "unknown", "NVML: no."),
        ("clocks", GPU, {"nvml": "NVML does not start."}, {}, "unknown", "does not start"),
        ("throttling", CPU, {**CPU_STATE, "throttled_periods": 3.0}, {}, "fine",
         "not now; 3 periods since"),
        ("throttling", CPU, {**CPU_STATE, "throttled_periods": 3.0},
         {"disturbances": ["throttled by the container's quota"]}, "doubt", "container's quota; 3"),
        ("throttling", GPU, {**GPU_STATE, "clocks_event_reasons": ["software thermal slowdown"]},
         {}, "doubt", "thermal"),
        ("throttling", GPU, {**GPU_STATE, "clocks_event_reasons": "NVML: no."}, {}, "unknown",
         "NVML: no."),
        ("power", GPU, {**GPU_STATE, "power_watts": 399.0}, {}, "doubt", "399 W"),
        ("power", GPU, {**GPU_STATE, "power_watts": "Not permitted."}, {}, "unknown", "permitted"),
        ("processes", GPU, {**GPU_STATE, "other_processes": [{"pid": 1, "bytes": 2}]}, {}, "doubt",
         "1 other"),
        ("processes", GPU, {**GPU_STATE, "other_processes": [{"pid": 1, "bytes": 2}],
         "other_processes_note": "One may be itself."}, {}, "unknown", "One may be itself."),
        ("processes", GPU, {**GPU_STATE, "other_processes": "Hidden."}, {}, "unknown", "Hidden."),
        ("load", CPU, CPU_STATE, {"load": Load(1.5, 0.0)}, "doubt", "1.50 of 2 usable cores"),
        ("load", CPU, CPU_STATE, {"load": Load(0.02, 1.9)}, "fine", "last minute is 1.90"),
        ("load", CPU, CPU_STATE, {"load": Load(None, 1.5)}, "doubt", "1.50, on 2 usable cores"),
        ("quiet", CPU, CPU_STATE, {"disturbances": ["0.10 s stolen"]}, "doubt", "stolen"),
        ("steady", CPU, CPU_STATE, {"spread": 0.5}, "doubt", "50.0 %"),
        ("speed", CPU, CPU_STATE, {"share": 0.6}, "doubt", "60.0 %"),
        ("speed", CPU, CPU_STATE, {"share": 1.2}, "doubt", "hwbench ceilings"),
        ("speed", CPU, CPU_STATE, {"share": None}, "absent", "no ceiling is kept"),
        ("timer", CPU, CPU_STATE, {"timer_seconds": 1e-3}, "doubt", "1.00 ms"),
        ("pynvml", CPU, CPU_STATE, {"retired_package": "Uninstall pynvml."}, "doubt", "Uninstall"),
        ("peak", {**GPU, "multiprocessors": 99}, GPU_STATE, {}, "absent", "unknown variant"),
        ("device", {**CPU, "caches_bytes": {}}, CPU_STATE, {}, "fine", "caches hidden"),
    ],
)  # fmt: skip
def test_what_speaks_against_a_machine_is_said(
    key: str, device: Any, state: Any, extra: Any, verdict: str, says: str
) -> None:
    check = told(device, state, **extra)[key]
    assert check.verdict == verdict
    assert says in check.says


@pytest.mark.parametrize(("quota", "verdict"), [(2.0, "fine"), (1.5, "doubt"), (0.5, "doubt")])
def test_a_quota_of_whole_cores_is_fine(
    monkeypatch: pytest.MonkeyPatch, quota: float, verdict: str
) -> None:
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    assert told(CPU, CPU_STATE)["quota"].verdict == verdict


def test_the_gate_passes_what_is_fine_and_names_what_is_not() -> None:
    actual = list(told(CPU, CPU_STATE, disturbances=["noise"]).values())
    demand(actual, ["load", "timer"])
    with pytest.raises(EnvironmentMismatchError, match="quiet: noise in .* two_four: no kernel"):
        demand(actual, ["load", "quiet", "two_four"])
    with pytest.raises(UnknownNameError, match="did you mean 'two_four'"):
        demand(actual, ["twofour"])


def test_the_work_is_sampled_on_the_device_and_its_disturbances_are_told() -> None:
    actual = _health.examine(Fake(effects={"replicate": 0, "disturb_probability": 1.0}))
    assert actual.disturbances == ["a scripted disturbance"]
    assert actual.spread == pytest.approx(0.0)
    assert set(actual.two_four) == {"cusparselt", "cusparselt_searched", "cutlass"}
    assert all(actual.two_four.values())
    noisy = _health.examine(Fake(effects={"replicate": 0, "noise": 0.3}))
    assert noisy.spread > 0.3


KEPT = {
    "copy": {"bytes_per_second": 4e10},
    "launch": {"seconds": 4e-6},
    "disturbed": 0.0,
}
"""Ceilings as they are kept, beside those of products."""


class _Worker:
    """Answers as a worker does, and takes note of what it is asked."""

    def __init__(self) -> None:
        self.side: int | None = None

    def ask(self, request: Any, expected: Any, timeout_seconds: float) -> Any:
        if isinstance(request, protocol.PlanRequest):
            return protocol.PlanReply(fingerprint={"device": CPU}, state=CPU_STATE)
        self.side = request.side
        rate = 80e9 if request.side else None
        return protocol.HealthReply(found=replace(HEALTH, flops_per_second=rate))


def test_speed_is_taken_against_the_ceiling_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    worker = _Worker()
    plan, reading = ask(worker, 2)
    assert (worker.side, reading.share) == (0, None)
    best = {"flops_per_second": 100e9, "shape": [768, 768, 768]}
    file = ceilings.path(plan, 2)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**KEPT, "matmul": {"float32": best}}))
    _, reading = ask(worker, 2)
    assert (worker.side, reading.share) == (768, pytest.approx(0.8))
    _, reading = ask(worker, 1)  # other threads have other ceilings
    assert reading.share is None


def test_the_rate_of_a_product_is_measured_where_it_is_asked_for() -> None:
    fake = Fake(effects={"replicate": 0})
    assert _health.examine(fake).flops_per_second is None
    rates = [_health.examine(fake, side).flops_per_second for side in (64, 128)]
    assert all(rate > 0 for rate in rates)


def test_the_verb_is_a_page_and_a_gate(hwbench: Call) -> None:
    code, page, err = hwbench(*DOCTOR, "--require", "timer,device")
    assert code == 0, err
    table, _, advice = page.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == list(KEYS)
    assert advice.startswith(("This machine can be measured now", "Not now"))
    code, gate, err = hwbench(*DOCTOR, "--json", "--require", "two_four")
    assert code == 4
    assert [check["key"] for check in json.loads(gate)] == list(KEYS)
    assert err.startswith("hwbench: Required and not fine: two_four")


def test_the_page_ends_with_a_verdict_and_with_what_to_do() -> None:
    fine = [Check(key, Verdict.FINE, "") for key in KEYS]
    assert verdict(fine) == ["This machine can be measured now: no check is in doubt."]
    doubted = [Check(key, Verdict.DOUBT, "") for key in ("load", "quiet", "clocks")]
    head, *remedies = verdict([*fine, *doubted, Check("two_four", Verdict.ABSENT, "")])
    assert head == "Not now, if you can wait: load, quiet, clocks are in doubt."
    assert [line.split(":")[0].strip() for line in remedies] == ["load, quiet", "clocks"]
    assert "--cores" in remedies[0]


def test_the_help_names_every_check_that_can_be_required() -> None:
    (option,) = [o for o in get_command(app).commands["doctor"].params if o.name == "require"]
    words = re.findall(r"\w+", option.help.partition(":")[2].partition(".")[0])
    assert tuple(word for word in words if word != "or") == KEYS


def test_a_requirement_that_is_none_is_told_before_anything_is_measured(
    hwbench: Call, workers: Workers
) -> None:
    code, _, err = hwbench(*DOCTOR, "--require", "fast")
    assert code == 2
    assert "Unknown requirement 'fast'" in err
    assert not workers.started


@pytest.mark.parametrize(
    ("busy", "says"),
    [(None, None), (0.0, None), (1.0, None), (1.04, "keep 1.0 of 2"), (1.9, "keep 1.9 of 2")],
)
def test_a_run_warns_where_other_processes_keep_over_half_of_the_cores_busy(
    busy: float | None, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cores_busy_elsewhere", lambda _: busy)
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    warning = doctor.busy_now()
    assert (warning is None) is (says is None)
    assert (says or "") in (warning or "")
