"""NVML through a made-up ``pynvml``: every branch gives a value or a reason, and never raises."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from hwbench.devices import _nvml
from hwbench.devices._nvml import Nvml, Reason

UUID = "0123-abcd"
MESSAGES = {3: "Not Supported", 4: "Insufficient Permissions", 13: "Function Not Found"}


class NVMLError(Exception):
    """As pynvml's own: made from a number, told in words."""

    def __init__(self, value: int) -> None:
        super().__init__(MESSAGES[value])


def field(value: float, kind: int = 3, failed: int = 0) -> SimpleNamespace:
    name = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal", "?")[kind]
    values = SimpleNamespace(**{name: value})
    return SimpleNamespace(nvmlReturn=failed, valueType=kind, value=values)


FIELDS = {
    74: field(5e9),
    75: field(1e9),
    83: field(7_000_000),
    185: field(300_000, kind=1),
    186: field(350_000, kind=1),
    269: field(2e9),
    270: field(3e9),
    271: field(0),
}


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


ANSWERS: dict[str, Any] = {
    "nvmlInit": None,
    "nvmlSystemGetDriverVersion": "580.1",
    "nvmlDeviceGetHandleByUUID": "handle",
    "nvmlDeviceGetHandleByPciBusId": "handle by PCI",
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetClockInfo": {1: 1500, 2: 3200},
    "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 3201},
    "nvmlDeviceGetTemperatureV": 41,
    "nvmlDeviceGetTemperature": 42,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x40,
    "nvmlDeviceGetPowerUsage": 250_000,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetPowerManagementLimit": 650_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_500,
    "nvmlDeviceGetComputeRunningProcesses_v3": [process(os.getpid(), 100)],
    "nvmlDeviceGetComputeRunningProcesses_v2": [process(2, 200)],
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetPersistenceMode": 0,
    "nvmlDeviceGetFieldValues": FIELDS,
}

Install = Callable[..., list[tuple[str, tuple[Any, ...]]]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a made-up pynvml in place: without some functions, failing in others, else as above."""

    def put(
        without: tuple[str, ...] = (), failing: dict[str, int] | None = None, **answers: Any
    ) -> list[tuple[str, tuple[Any, ...]]]:
        module, calls = ModuleType("pynvml"), []
        module.NVMLError = NVMLError  # type: ignore[attr-defined]

        def function(name: str, answer: Any) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                calls.append((name, arguments))
                if name in (failing or {}):
                    raise NVMLError((failing or {})[name])
                if callable(answer):
                    return answer(*arguments)
                if isinstance(answer, dict):
                    expected = arguments[-1]
                    return (
                        [answer[i] for i in expected]
                        if isinstance(expected, list)
                        else answer[expected]
                    )
                return answer

            return call

        for name, answer in {**ANSWERS, **answers}.items():
            if name not in without:
                setattr(module, name, function(name, answer))
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return calls

    return put


# --- whether there is an NVML at all -----------------------------------------------------------


def test_without_the_package_everything_has_the_same_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    device = Nvml(UUID)
    assert device.missing == "nvidia-ml-py is not installed, so NVML cannot be read."
    assert device.probe() == {}
    assert device.info() == device.state() == {"nvml": device.missing}
    assert device.energy_joules() == device.missing
    assert isinstance(device.energy_joules(), Reason)
    assert device.driver() == device.missing


@pytest.mark.parametrize(("code", "words"), [(4, "Insufficient Permissions"), (13, "Not Found")])
def test_a_library_that_does_not_start_says_why(install: Install, code: int, words: str) -> None:
    install(failing={"nvmlInit": code})
    device = Nvml(UUID)
    assert device.missing is not None
    assert re.fullmatch(rf"NVML does not start: .*{words}\.", device.missing)
    assert device.probe() == {}


def test_another_module_of_that_name_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    assert Nvml(UUID).missing == "The module pynvml is not the one of nvidia-ml-py."


def test_the_retired_package_is_named_with_what_to_do(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr(metadata, "version", {"pynvml": "13.0.1"}.__getitem__)
    sentence = _nvml.retired_package()
    assert sentence is not None
    assert "pynvml 13.0.1" in sentence
    assert "install nvidia-ml-py" in sentence
    assert Nvml(UUID).state()["package"] == sentence
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    assert Nvml(UUID).missing == sentence


def test_without_the_retired_package_nothing_is_said_of_it(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    install()
    monkeypatch.setattr(metadata, "version", version)
    assert _nvml.retired_package() is None
    assert "package" not in Nvml(UUID).state()


def test_every_function_asked_for_exists_in_the_package() -> None:
    import pynvml

    source = Path(_nvml.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'"(nvml(?:Device|System)\w+)"', source))
    names |= {f"nvmlDeviceGetComputeRunningProcesses{v}" for v in ("", "_v2", "_v3")}
    assert len(names) > 15
    assert {name for name in names if not hasattr(pynvml, name)} == set()
    numbers = (
        pynvml.NVML_CLOCK_SM,
        pynvml.NVML_CLOCK_MEM,
        pynvml.NVML_TEMPERATURE_GPU,
        pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
        pynvml.NVML_FI_DEV_POWER_AVERAGE,
        pynvml.NVML_FI_DEV_POWER_INSTANT,
    )
    ours = (_nvml._SM_CLOCK, _nvml._MEMORY_CLOCK, _nvml._GPU_SENSOR)
    assert numbers == (*ours, _nvml._ENERGY, _nvml._POWER_AVERAGE, _nvml._POWER_INSTANT)
    assert [name for name, _ in pynvml.c_nvmlValue_t._fields_] == list(_nvml._UNION)
    reasons = {
        "GpuIdle": "idle",
        "ApplicationsClocksSetting": "application clocks are set",
        "SwPowerCap": "power cap",
        "HwSlowdown": "hardware slowdown",
        "SyncBoost": "sync boost",
        "SwThermalSlowdown": "software thermal slowdown",
        "HwThermalSlowdown": "hardware thermal slowdown",
        "HwPowerBrakeSlowdown": "power brake",
        "DisplayClockSetting": "display clocks",
    }
    bits = {
        getattr(pynvml, f"nvmlClocksEventReason{name}"): words for name, words in reasons.items()
    }
    assert bits == _nvml.REASONS
    counters = {
        pynvml.NVML_FI_DEV_PERF_POLICY_POWER: "power_cap",
        pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL: "thermal",
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: "sw_thermal",
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: "hw_thermal",
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: "brake",
    }
    assert counters == _nvml._COUNTERS


# --- which device it is ------------------------------------------------------------------------


@pytest.mark.parametrize("uuid", [UUID, f"GPU-{UUID}"])
def test_the_device_is_found_by_its_uuid(install: Install, uuid: str) -> None:
    calls = install()
    assert Nvml(uuid).missing is None
    assert ("nvmlDeviceGetHandleByUUID", (f"GPU-{UUID}",)) in calls
    assert ("nvmlDeviceGetClockInfo", ("handle", 1)) not in calls
    Nvml(uuid).clock_hertz()
    assert ("nvmlDeviceGetClockInfo", ("handle", 1)) in calls


def test_the_device_is_found_by_its_address_where_the_uuid_fails(install: Install) -> None:
    calls = install(failing={"nvmlDeviceGetHandleByUUID": 3})
    device = Nvml(UUID, "00000000:3b:00.0")
    assert device.missing is None
    assert ("nvmlDeviceGetHandleByPciBusId", ("00000000:3b:00.0",)) in calls
    assert device.clock_hertz() == 1.5e9


def test_a_device_that_nvml_does_not_know_has_a_reason(install: Install) -> None:
    install(failing={"nvmlDeviceGetHandleByUUID": 3, "nvmlDeviceGetHandleByPciBusId": 4})
    reason = Nvml(UUID, "00000000:3b:00.0").missing
    assert reason is not None
    assert reason.startswith("NVML does not know the device 00000000:3b:00.0")
    assert reason.endswith("Insufficient Permissions.")
    nothing = Nvml(None).missing
    assert nothing == "NVML cannot be asked: torch tells neither UUID nor PCI address."


def test_a_slice_found_by_its_own_uuid_reads_the_card_but_not_its_energy(install: Install) -> None:
    def handle(uuid: str) -> str:
        if not uuid.startswith("MIG-"):
            raise NVMLError(13)
        return "slice"

    calls = install(
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle="card",
    )
    device = Nvml(UUID)
    assert device.mig
    assert device.info()["mig"] is True
    device.clock_hertz()
    assert calls[-1] == ("nvmlDeviceGetClockInfo", ("card", 1))
    assert "MIG slice" in str(device.energy_joules())
    assert isinstance(device.energy_joules(), Reason)


def test_a_card_in_mig_mode_tells_no_energy_of_a_slice(install: Install) -> None:
    install(nvmlDeviceGetMigMode=[1, 1])
    assert Nvml(UUID).mig
    assert isinstance(Nvml(UUID).energy_joules(), Reason)


def test_a_card_that_knows_no_mig_is_a_whole_card(install: Install) -> None:
    install(failing={"nvmlDeviceGetMigMode": 3})
    assert not Nvml(UUID).mig
    assert Nvml(UUID).energy_joules() == 5000.5


# --- readings ----------------------------------------------------------------------------------


def test_readings_are_in_si_units(install: Install) -> None:
    install()
    device = Nvml(UUID)
    assert device.clock_hertz() == 1.5e9
    assert device.clock_hertz(memory=True) == 3.2e9
    assert device.clock_hertz(most=True) == 1.98e9
    assert device.temperature_celsius() == 41.0
    assert device.power_watts() == (350.0, "instant")
    assert device.power_limit_watts() == 700.0
    assert device.energy_joules() == 5000.5
    assert device.throttled_seconds() == {
        "power_cap_seconds": 5.0,
        "thermal_seconds": 1.0,
        "sw_thermal_seconds": 2.0,
        "hw_thermal_seconds": 3.0,
        "brake_seconds": 0.0,
    }
    assert device.switch("ECC mode", "nvmlDeviceGetEccMode") == "on"
    assert device.switch("persistence mode", "nvmlDeviceGetPersistenceMode") == "off"


OLD = [
    ("nvmlDeviceGetTemperatureV", "temperature_celsius", 42.0),
    ("nvmlDeviceGetCurrentClocksEventReasons", "event_reasons", 0x40),
    ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_watts", 650.0),
    ("nvmlDeviceGetComputeRunningProcesses_v3", "processes", [{"pid": 2, "bytes": 200}]),
    ("nvmlDeviceGetTotalEnergyConsumption", "energy_joules", 7000.0),
    (
        "nvmlDeviceGetFieldValues",
        "power_watts",
        (250.0, "instant up to GA100, else average of 1 s"),
    ),
]


@pytest.mark.parametrize(("new", "reading", "value"), OLD)
@pytest.mark.parametrize("how", ["the package lacks it", "the library lacks it"])
def test_old_names_are_asked_where_new_ones_are_missing(
    install: Install, new: str, reading: str, value: Any, how: str
) -> None:
    if how == "the package lacks it":
        install(without=(new,))
    else:
        install(failing={new: 13})
    assert getattr(Nvml(UUID), reading)() == value


@pytest.mark.parametrize(
    ("reading", "names"),
    [
        ("temperature_celsius", ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")),
        ("clock_hertz", ("nvmlDeviceGetClockInfo",)),
        ("energy_joules", ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues")),
        ("processes", ("nvmlDeviceGetComputeRunningProcesses_v3",)),
    ],
)
def test_what_is_not_permitted_has_a_reason_and_no_number(
    install: Install, reading: str, names: tuple[str, ...]
) -> None:
    install(failing=dict.fromkeys(names, 4), without=("nvmlDeviceGetComputeRunningProcesses_v2",))
    actual = getattr(Nvml(UUID), reading)()
    assert isinstance(actual, Reason)
    assert actual.startswith(("NVML does not tell the", "The installed nvidia-ml-py cannot ask"))


def test_power_falls_back_to_the_average_field(install: Install) -> None:
    install(nvmlDeviceGetFieldValues={**FIELDS, 186: field(0, failed=3)})
    assert Nvml(UUID).power_watts() == (300.0, "average of 1 s")


def test_a_counter_that_is_absent_is_left_out_of_the_probe(install: Install) -> None:
    absent = {**FIELDS, 269: field(0, failed=3), 270: field(1, kind=7)}
    install(nvmlDeviceGetFieldValues=absent)
    device = Nvml(UUID)
    result = device.throttled_seconds()
    assert (
        result["sw_thermal_seconds"] == "NVML does not tell the throttling counters: Not Supported."
    )
    assert isinstance(result["hw_thermal_seconds"], Reason)
    assert "sw_thermal_seconds" not in device.probe()
    assert "hw_thermal_seconds" not in device.probe()
    assert device.probe()["thermal_seconds"] == 1.0


def test_the_energy_counter_that_is_absent_has_the_first_reason(install: Install) -> None:
    install(
        failing={"nvmlDeviceGetTotalEnergyConsumption": 3},
        nvmlDeviceGetFieldValues={**FIELDS, 83: field(0, failed=13)},
    )
    assert Nvml(UUID).energy_joules() == "NVML does not tell the energy: Not Supported."


def test_a_probe_holds_numbers_only(install: Install) -> None:
    install()
    probe = Nvml(UUID).probe()
    assert probe["sm_clock_hertz"] == 1.5e9
    assert probe["event_reasons"] == 4.0
    assert all(type(value) is float for value in probe.values())


def test_what_is_told_can_be_stored(install: Install) -> None:
    install(failing={"nvmlDeviceGetEccMode": 3, "nvmlDeviceGetTemperatureV": 4})
    device = Nvml(UUID)
    assert msgspec.json.encode([device.info(), device.state()])
    assert device.info()["ecc"] == "NVML does not tell the ECC mode: Not Supported."
    assert device.state()["clocks_event_reasons"] == ["power cap"]


# --- who else is there -------------------------------------------------------------------------


def test_other_processes_are_told_without_this_one(install: Install) -> None:
    both = [process(os.getpid(), 100), process(77, None)]
    install(nvmlDeviceGetComputeRunningProcesses_v3=both)
    state = Nvml(UUID).state()
    assert state["other_processes"] == [{"pid": 77, "bytes": None}]
    assert "other_processes_note" not in state


@pytest.mark.parametrize("seen", [[], [process(4_000_000, 5)]])
def test_in_a_container_this_process_may_not_be_told_from_others(
    install: Install, seen: list[Any]
) -> None:
    install(nvmlDeviceGetComputeRunningProcesses_v3=seen)
    state = Nvml(UUID).state()
    assert len(state["other_processes"]) == len(seen)
    assert "another number" in state["other_processes_note"]
