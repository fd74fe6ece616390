"""NVIDIA's management library, thinly: each reading is a value, or in words why there is none.

The functions come from ``pynvml``, the module of the package nvidia-ml-py, which may be missing
where a worker runs. Old names are tried where new ones are missing, nothing raises into a
measurement, and no number is made up. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import metadata
from typing import Any

REASONS = {
    0x1: "idle",
    0x2: "application clocks are set",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Why the clocks are where they are: the bits of NVML's clocks-event (throttle) reasons."""

DISTURBING = (0x8, 0x20, 0x40, 0x80)
"""Reasons that are not the card's own way to run: heat, and power that the machine withholds."""

_IDLE, _POWER_CAP = 0x1, 0x4
_OWN_WAY = {"sm_clock_hertz": _IDLE | _POWER_CAP, "memory_clock_hertz": _IDLE}
"""By a clock: the reasons with which it moves while the card runs as it always does."""

_COUNTERS = {74: "power_cap", 75: "thermal", 269: "sw_thermal", 270: "hw_thermal", 271: "brake"}
_COUNTED = {
    "thermal_seconds": "heat",
    "sw_thermal_seconds": "heat (software)",
    "hw_thermal_seconds": "heat (hardware)",
    "brake_seconds": "the power brake",
}
_SM_CLOCK, _MEMORY_CLOCK, _GPU_SENSOR = 1, 2, 0  # of NVML's enumerations
_ENERGY, _POWER_AVERAGE, _POWER_INSTANT = 83, 185, 186  # of its field values
_UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by value type

_COUNTER_SHARE = 0.01  # of a block may be throttled before it counts as disturbed
_CLOCK_CHANGE = 0.1  # of a clock within a block
_FOREIGN_BYTES = 128_000_000  # that others may take or give back within a block


class Reason(str):
    """Why there is no value, in one sentence."""

    __slots__ = ()


Reading = float | Reason
"""A value, or the reason why there is none."""


def retired_package() -> str | None:
    """Say how to replace the retired PyPI package ``pynvml``; None where it is not installed."""
    try:
        version = metadata.version("pynvml")
    except metadata.PackageNotFoundError:
        return None
    return (
        f"The package pynvml {version} is retired and stands in the way of nvidia-ml-py: "
        "uninstall both, then install nvidia-ml-py."
    )


def load() -> Any:
    """The module ``pynvml``, ready for use, or the reason why it is not."""
    try:
        import pynvml
    except ImportError:
        return Reason("nvidia-ml-py is not installed, so NVML cannot be read.")
    if not hasattr(pynvml, "nvmlInit") or not hasattr(pynvml, "NVMLError"):
        return Reason(retired_package() or "The module pynvml is not the one of nvidia-ml-py.")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Reason(f"NVML does not start: {_words(error)}.")
    return pynvml


class Nvml:
    """One device, found by what torch says of it: indices differ under CUDA_VISIBLE_DEVICES.

    ``uuid`` and ``pci_bus_id`` are as the CUDA runtime tells them. ``missing`` is the reason why
    nothing at all can be read, None otherwise; ``mig`` whether it is a slice of a card, whose
    power and energy belong to the whole card.
    """

    def __init__(self, uuid: str | None, pci_bus_id: str | None = None) -> None:
        self.mig = False
        self.missing: Reason | None = None
        self._handle: Any = None
        self._library: Any = load()
        if isinstance(self._library, Reason):
            self.missing = self._library
        else:
            self.missing = self._find(uuid, pci_bus_id)

    def _find(self, uuid: str | None, pci_bus_id: str | None) -> Reason | None:
        """Take the handle of the device, or tell the reason why it is not found."""
        plain = (uuid or "").removeprefix("GPU-").removeprefix("MIG-")
        tries = [("nvmlDeviceGetHandleByUUID", f"{kind}-{plain}") for kind in ("GPU", "MIG")]
        if not plain:
            tries = []
        if pci_bus_id:
            tries.append(("nvmlDeviceGetHandleByPciBusId", pci_bus_id))
        failure = Reason("NVML cannot be asked: torch tells neither UUID nor PCI address.")
        for name, key in tries:
            self._handle = self._call("device", name, key)
            if not isinstance(self._handle, Reason):
                self._see_mig(named=key.startswith("MIG-"))
                return None
            failure = Reason(f"NVML does not know the device {key}: {self._handle}")
        return failure

    def _see_mig(self, *, named: bool) -> None:
        """Whether this is a slice; its clocks and temperature are those of the card."""
        if named:
            self.mig = True
            card = self._ask("card", "nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
            self._handle = self._handle if isinstance(card, Reason) else card
        else:
            mode = self._ask("MIG mode", "nvmlDeviceGetMigMode")
            self.mig = not isinstance(mode, Reason) and mode[0] == 1

    def _call(self, what: str, name: str, *arguments: Any) -> Any:
        """The answer of one function, or the reason why there is none."""
        if self.missing is not None:
            return self.missing
        function = getattr(self._library, name, None)
        if function is None:
            return Reason(f"The installed nvidia-ml-py cannot ask for the {what}.")
        try:
            return function(*arguments)
        except self._library.NVMLError as error:
            return Reason(f"NVML does not tell the {what}: {_words(error)}.")

    def _ask(self, what: str, *names: str, arguments: tuple[Any, ...] = ()) -> Any:
        """The answer of the first of these functions that has one, or the last one's reason."""
        answer: Any = Reason(f"NVML was not asked for the {what}.")
        for name in names:
            answer = self._call(what, name, self._handle, *arguments)
            if not isinstance(answer, Reason):
                return answer
        return answer

    def _scaled(
        self, what: str, scale: float, *names: str, arguments: tuple[Any, ...] = ()
    ) -> Reading:
        answer = self._ask(what, *names, arguments=arguments)
        return answer if isinstance(answer, Reason) else float(answer * scale)

    def _fields(self, what: str, scale: float, fields: Iterable[int]) -> dict[int, Reading]:
        """Several field values in one call, each a value or a reason."""
        numbers = list(fields)
        answers = self._ask(what, "nvmlDeviceGetFieldValues", arguments=(numbers,))
        if isinstance(answers, Reason):
            return dict.fromkeys(numbers, answers)
        return {
            field: self._field(what, scale, answer)
            for field, answer in zip(numbers, answers, strict=True)
        }

    def _field(self, what: str, scale: float, answer: Any) -> Reading:
        if answer.nvmlReturn != 0:
            error = _words(self._library.NVMLError(answer.nvmlReturn))
            return Reason(f"NVML does not tell the {what}: {error}.")
        if not 0 <= answer.valueType < len(_UNION):
            return Reason(f"NVML tells the {what} in a way that hwbench does not know.")
        return float(getattr(answer.value, _UNION[answer.valueType]) * scale)

    def driver(self) -> str:
        """The version of the driver."""
        return str(self._call("driver version", "nvmlSystemGetDriverVersion"))

    def clock_hertz(self, *, memory: bool = False, most: bool = False) -> Reading:
        """The current clock, or the highest that the card is made for."""
        name = "nvmlDeviceGetMaxClockInfo" if most else "nvmlDeviceGetClockInfo"
        kind = _MEMORY_CLOCK if memory else _SM_CLOCK
        return self._scaled("clock", 1e6, name, arguments=(kind,))

    def temperature_celsius(self) -> Reading:
        """The temperature of the chip."""
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return self._scaled("temperature", 1.0, *names, arguments=(_GPU_SENSOR,))

    def event_reasons(self) -> Reading:
        """The bits that say why the clocks are where they are."""
        names = (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        )
        return self._scaled("clocks-event reasons", 1.0, *names)

    def throttled_seconds(self) -> dict[str, Reading]:
        """Since the driver was loaded, by cause: counters see what a look now and then misses."""
        readings = self._fields("throttling counters", 1e-9, _COUNTERS)
        return {f"{_COUNTERS[field]}_seconds": value for field, value in readings.items()}

    def power_watts(self) -> tuple[Reading, str]:
        """The power, and what it means: instant, average, or as this generation defines it."""
        readings = self._fields("power", 1e-3, (_POWER_INSTANT, _POWER_AVERAGE))
        for field, meaning in ((_POWER_INSTANT, "instant"), (_POWER_AVERAGE, "average of 1 s")):
            if not isinstance(readings[field], Reason):
                return readings[field], meaning
        usage = self._scaled("power", 1e-3, "nvmlDeviceGetPowerUsage")
        return usage, "instant up to GA100, else average of 1 s"

    def power_limit_watts(self) -> Reading:
        """The limit that holds now."""
        names = ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit")
        return self._scaled("power limit", 1e-3, *names)

    def energy_joules(self) -> Reading:
        """The card's energy since its driver was loaded; only differences mean something."""
        if self.mig:
            return Reason("The energy counter is that of the whole card, and this is a MIG slice.")
        total = self._scaled("energy", 1e-3, "nvmlDeviceGetTotalEnergyConsumption")
        if isinstance(total, Reason):
            field = self._fields("energy", 1e-3, (_ENERGY,))[_ENERGY]
            return total if isinstance(field, Reason) else field
        return total

    def processes(self) -> list[dict[str, int | None]] | Reason:
        """Return the processes on the card, by the driver's process number, and their bytes."""
        names = [f"nvmlDeviceGetComputeRunningProcesses{version}" for version in ("_v3", "_v2", "")]
        answer = self._ask("compute processes", *names)
        if isinstance(answer, Reason):
            return answer
        return [{"pid": process.pid, "bytes": process.usedGpuMemory} for process in answer]

    def switch(self, what: str, name: str) -> str:
        """One of the card's switches: on, off, or the reason why it is not known."""
        answer = self._ask(what, name)
        if isinstance(answer, Reason):
            return str(answer)
        now = answer[0] if isinstance(answer, (list, tuple)) else answer
        return "on" if now else "off"

    def info(self) -> dict[str, Any]:
        """Facts that must agree for two runs to be compared."""
        if self.missing is not None:
            return {"nvml": str(self.missing)}
        return _plain(
            {
                "power_limit_watts": self.power_limit_watts(),
                "max_sm_clock_hertz": self.clock_hertz(most=True),
                "max_memory_clock_hertz": self.clock_hertz(memory=True, most=True),
                "ecc": self.switch("ECC mode", "nvmlDeviceGetEccMode"),
                "mig": self.mig,
            }
        )

    def state(self) -> dict[str, Any]:
        """Facts that may differ between runs, in words where they are words."""
        if self.missing is not None:
            return {"nvml": str(self.missing)}
        power, meaning = self.power_watts()
        bits = self.event_reasons()
        facts: dict[str, Any] = {
            "sm_clock_hertz": self.clock_hertz(),
            "memory_clock_hertz": self.clock_hertz(memory=True),
            "temperature_celsius": self.temperature_celsius(),
            "power_watts": power,
            "power_meaning": "not read" if isinstance(power, Reason) else meaning,
            "clocks_event_reasons": bits if isinstance(bits, Reason) else words_of(int(bits)),
            "throttled_seconds": self.throttled_seconds(),
            "persistence": self.switch("persistence mode", "nvmlDeviceGetPersistenceMode"),
            **self._neighbours(),
        }
        if retired := retired_package():
            facts["package"] = retired
        return dict(_plain(facts))

    def _neighbours(self) -> dict[str, Any]:
        processes = self.processes()
        if isinstance(processes, Reason):
            return {"other_processes": processes}
        others = [process for process in processes if process["pid"] != os.getpid()]
        facts: dict[str, Any] = {"other_processes": others}
        if len(others) == len(processes):
            facts["other_processes_note"] = (
                "The driver knows this process by another number, or does not show it: one of "
                "these may be itself, and others may be hidden."
            )
        return facts

    def probe(self) -> dict[str, float]:
        """The readings that tell what disturbed a block; what cannot be read is left out."""
        readings: dict[str, Reading] = {
            "sm_clock_hertz": self.clock_hertz(),
            "memory_clock_hertz": self.clock_hertz(memory=True),
            "temperature_celsius": self.temperature_celsius(),
            "event_reasons": self.event_reasons(),
            **self.throttled_seconds(),
        }
        return {key: value for key, value in readings.items() if not isinstance(value, Reason)}


def words_of(bits: int) -> list[str]:
    """The clocks-event reasons that are set, in words; bits without a name by their number."""
    unknown = bits & ~sum(REASONS)
    named = [word for bit, word in REASONS.items() if bits & bit]
    return [*named, f"reason 0x{unknown:x}"] if unknown else named


def disturbances(before: dict[str, float], after: dict[str, float], seconds: float) -> list[str]:
    """What disturbed a block of that many seconds, in words; what was not read says nothing.

    Warming up is none: heat that matters lowers the clocks, and has reasons and counters of its
    own. Nor is a clock that moves because the card was idle, or is at its power cap.
    """
    change = {key: after[key] - before[key] for key in after if key in before}
    bits = int(before.get("event_reasons", 0)) | int(after.get("event_reasons", 0))
    causes = [REASONS[bit] for bit in DISTURBING if bits & bit]
    for key, what in _COUNTED.items():
        if change.get(key, 0.0) > _COUNTER_SHARE * seconds:
            causes.append(f"throttled for {change[key]:.2g} s by {what}")
    for key, what in (("sm_clock_hertz", "SM"), ("memory_clock_hertz", "memory")):
        if bits & _OWN_WAY[key]:
            continue
        if abs(change.get(key, 0.0)) > _CLOCK_CHANGE * max(before.get(key, 0.0), after.get(key, 0)):
            moved = f"from {before[key] / 1e6:.0f} to {after[key] / 1e6:.0f} MHz"
            causes.append(f"the {what} clock went {moved}")
    foreign = change.get("foreign_bytes", 0.0)
    if abs(foreign) > _FOREIGN_BYTES:
        verb = "took" if foreign > 0 else "gave back"
        causes.append(f"others {verb} {abs(foreign) / 1e6:.0f} MB of its memory")
    return causes


def _plain(facts: Any) -> Any:
    """Facts as they are stored: reasons are plain text there."""
    if isinstance(facts, dict):
        return {key: _plain(value) for key, value in facts.items()}
    return str(facts) if isinstance(facts, Reason) else facts


def _words(error: Exception) -> str:
    return str(error).strip().rstrip(".")
