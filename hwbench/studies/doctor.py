"""Checks whether this machine can be measured now: one check per fact, each with a verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from hwbench import environment, protocol, units
from hwbench.analysis import peaks
from hwbench.errors import EnvironmentMismatchError, UnknownNameError
from hwbench.measure import ceilings
from hwbench.measure import run as runner
from hwbench.measure.transports import local

_SECONDS = 300.0  # the worker's time limit
_LOAD_SHARE = 0.5  # of the cores may be busy with other work
_SPREAD = 0.25  # of equal samples, 90th percentile over 10th
_SLOW, _OUTDATED = 0.85, 1.1  # of the kept ceiling: the machine, or the ceiling, is too low
_PART = 0.9  # of the best library's rate: below it F.linear leaves much of the machine unused
_COOL = 0.97  # of the card's power limit: above it the card slows down
_LIBRARIES = ("torch", "cuda_runtime", "driver", "cublas", "cudnn", "cusparselt")


class Verdict(StrEnum):
    """The verdict of a check."""

    FINE = "fine"
    DOUBT = "doubt"  # numbers taken now are not to be trusted, or less than they could be
    ABSENT = "absent"  # the machine does not have it
    UNKNOWN = "unknown"  # it could not be read


@dataclass(frozen=True)
class Check:
    """One fact about the machine and its verdict; --require names it by ``key``."""

    key: str
    verdict: Verdict
    says: str


KEYS = (
    *("device", "libraries", "peak", "clocks", "power", "throttling", "processes", "load", "quota"),
    *("quiet", "steady", "speed", "linear", "timer", "two_four", "pynvml"),
)
"""The names of the checks, in the order of the output; --require takes them."""

_ELSEWHERE = "wait until other programs end, or stay on idle cores with --cores"
_REMEDIES = {
    "clocks": "set the governor of the processor to performance",
    "power": "wait until the card draws less than its limit",
    "throttling": "let the device cool, or ask for more of the quota",
    "processes": "end the other processes on the device, or take another one with --device",
    "load": _ELSEWHERE,
    "quota": "ask for whole cores",
    "quiet": _ELSEWHERE,
    "steady": _ELSEWHERE,
    "speed": "wait; where it stays so, measure the ceilings again with hwbench ceilings",
    "linear": "time packed_dense beside dense, which goes through F.linear",
    "timer": "time nothing that takes less than a thousand steps of this clock",
    "pynvml": "uninstall the package pynvml and install nvidia-ml-py",
}
"""The remedy for each check in doubt."""


def examine(device: str, threads: int | None = None) -> list[Check]:
    """Checks one device; a second of work is part of it.

    Raises:
        DeviceError: the device is not there; the message says why.
    """
    # Our own work, which follows, adds to both.
    load = Load(environment.cores_busy_elsewhere(), environment.machine_state()["load_1min"])
    threads = threads or environment.default_threads()
    worker = local.LocalWorker(runner.resolve_device(device), threads)
    try:
        plan, reading = ask(worker, threads)
    finally:
        worker.close()
    return list(checks(plan, reading, load))


def busy_now(seconds: float = 0.2) -> str | None:
    """A warning where other processes keep over half of the usable cores busy now; else None.

    None too where the system does not tell what they do.
    """
    busy, cores = environment.cores_busy_elsewhere(seconds), environment.usable_cores()
    if busy is None or busy <= _LOAD_SHARE * cores:
        return None
    return (
        f"Other processes keep {busy:.1f} of {cores} usable cores busy: the run takes longer, and "
        "may name no winner. hwbench doctor says more."
    )


class Load(NamedTuple):
    """Other work on this machine: cores busy now (None: unknown), and the load of a minute."""

    busy: float | None
    minute: float


@dataclass(frozen=True)
class Reading:
    """The health of a device, and its kept ceilings of float32 products (None without any).

    ``share`` is the rate of ``torch.mm`` now over its kept rate.
    """

    health: protocol.Health
    share: float | None
    kept: Mapping[str, Any] | None


def ask(worker: ceilings.Asked, threads: int) -> tuple[protocol.PlanReply, Reading]:
    """Ask a worker for the facts and the health of its device."""
    plan = worker.ask(protocol.PlanRequest(cases=[]), protocol.PlanReply, _SECONDS)
    stored = ceilings.kept(plan, threads).get("matmul", {}).get("float32")
    plain = plain_product(stored)[1] if stored else None
    request = protocol.HealthRequest(side=plain["shape"][0] if plain else 0)
    health = worker.ask(request, protocol.HealthReply, _SECONDS).found
    rate = health.flops_per_second
    share = rate / plain["flops_per_second"] if plain and rate is not None else None
    return plan, Reading(health, share, stored)


def plain_product(stored: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The library that ``torch.mm`` and ``F.linear`` use by default, and its measured product.

    It is the first library of the kept ceilings.
    """
    libraries = stored.get("libraries") or {stored.get("library", "torch.mm"): stored}
    return next(iter(libraries.items()))


def verdict(results: Collection[Check]) -> list[str]:
    """A sentence that says whether to measure now, and a line for each remedy."""
    doubted = [check.key for check in results if check.verdict is Verdict.DOUBT]
    if not doubted:
        return ["This machine can be measured now: no check is in doubt."]
    verb = "is" if len(doubted) == 1 else "are"
    remedies: dict[str, list[str]] = {}
    for key in filter(_REMEDIES.__contains__, doubted):
        remedies.setdefault(_REMEDIES[key], []).append(key)
    return [
        f"Not now, if you can wait: {', '.join(doubted)} {verb} in doubt.",
        *(f"  {', '.join(keys)}: {remedy}." for remedy, keys in remedies.items()),
    ]


def demand(results: Collection[Check], required: Collection[str]) -> None:
    """Fail unless every required check is fine.

    Raises:
        UnknownNameError: there is no such check.
        EnvironmentMismatchError: a required check is not fine (exit code 4).
    """
    for name in required:
        if name not in KEYS:
            raise UnknownNameError("requirement", name, KEYS)
    failed = [c for c in results if c.key in required and c.verdict is not Verdict.FINE]
    if failed:
        reasons = "; ".join(f"{check.key}: {check.says.rstrip('.')}" for check in failed)
        raise EnvironmentMismatchError(f"Required and not fine: {reasons}.")


def checks(plan: protocol.PlanReply, reading: Reading, load: Load) -> Iterator[Check]:
    """Yields the checks, from a worker's facts and health."""
    health = reading.health
    device, state = plan.fingerprint.get("device", {}), plan.state
    gpu = "multiprocessors" in device
    host = state.get("host", {}) if gpu else state
    yield Check("device", Verdict.FINE, _device(device, plan.fingerprint.get("host", {})))
    yield _libraries(plan.fingerprint, device)
    yield _peak(device)
    yield _clocks(state, device, host, gpu=gpu)
    yield _power(state, device)
    yield _throttling(state, health.disturbances, gpu=gpu)
    yield _processes(state, gpu=gpu)
    yield _load(load)
    yield _quota()
    disturbed = health.disturbances
    message = f"{'; '.join(disturbed) or 'undisturbed'} in {units.seconds(health.seconds)} of work"
    yield Check("quiet", Verdict.DOUBT if disturbed else Verdict.FINE, message)
    message = f"equal samples spread by {units.percent(health.spread)} (10th to 90th percentile)"
    yield Check("steady", Verdict.FINE if health.spread <= _SPREAD else Verdict.DOUBT, message)
    yield _speed(reading.share)
    yield _linear(reading.kept, device)
    yield _timer(health)
    yield _two_four(health.two_four)
    retired = health.retired_package
    message = retired or "the retired package pynvml is not installed"
    yield Check("pynvml", Verdict.DOUBT if retired else Verdict.FINE, message)


def _device(device: Mapping[str, Any], host: Mapping[str, Any]) -> str:
    parts = [str(device.get("name", "unknown")), f"{units.nbytes(device.get('memory_bytes'))}"]
    if "multiprocessors" in device:
        parts.append(f"{device['multiprocessors']} multiprocessors")
        parts.append(f"L2 {units.nbytes(device.get('l2_bytes'))}")
    else:
        parts.append(f"{device.get('cores')} usable cores")
        caches = device.get("caches_bytes") or {}
        parts += [f"{name} {units.nbytes(size)}" for name, size in caches.items()]
        if not caches:
            parts.append("caches hidden by the system")
    if host.get("virtual"):
        parts.append("a virtual machine")
    return ", ".join(parts)


def _libraries(fingerprint: Mapping[str, Any], device: Mapping[str, Any]) -> Check:
    versions = {name: device.get(name, fingerprint.get(name)) for name in _LIBRARIES}
    message = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return Check("libraries", Verdict.FINE, message)


def _peak(device: Mapping[str, Any]) -> Check:
    peak = peaks.of_device(dict(device))
    if isinstance(peak, str):
        return Check("peak", Verdict.ABSENT, peak)
    return Check("peak", Verdict.FINE, f"{peak.name} in peaks.toml {peak.note}".rstrip())


def _clocks(
    state: Mapping[str, Any], device: Mapping[str, Any], host: Mapping[str, Any], *, gpu: bool
) -> Check:
    if gpu:
        now, most = state.get("sm_clock_hertz"), device.get("max_sm_clock_hertz")
        if not (isinstance(now, int | float) and isinstance(most, int | float)):
            return Check("clocks", Verdict.UNKNOWN, str(now or state.get("nvml") or "not read"))
        message = f"SM {now / 1e6:.0f} MHz now, {most / 1e6:.0f} MHz at most"
        return Check("clocks", Verdict.FINE, message)
    governor, turbo = host.get("governor"), host.get("turbo")
    message = f"governor {governor or 'not told'}, turbo {turbo or 'not told'}"
    if governor in (None, "not readable"):
        return Check("clocks", Verdict.UNKNOWN, message)
    return Check("clocks", Verdict.FINE if governor == "performance" else Verdict.DOUBT, message)


def _power(state: Mapping[str, Any], device: Mapping[str, Any]) -> Check:
    watts, limit = state.get("power_watts"), device.get("power_limit_watts")
    if not isinstance(watts, int | float) or not isinstance(limit, int | float):
        notes = [value for value in (watts, limit) if isinstance(value, str)]
        message = notes[0] if notes else str(state.get("nvml", "no power is read of this device"))
        return Check("power", Verdict.UNKNOWN, message)
    message = f"{watts:.0f} W of {limit:.0f} W ({state.get('power_meaning')})"
    return Check("power", Verdict.DOUBT if watts > _COOL * limit else Verdict.FINE, message)


def _throttling(state: Mapping[str, Any], disturbances: Sequence[str], *, gpu: bool) -> Check:
    """Whether the device is slowed now; what a quota did before is told and in no doubt."""
    if not gpu:
        now = [each for each in disturbances if "throttled" in each]
        periods = state.get("throttled_periods", 0)
        message = f"{now[0] if now else 'not now'}; {periods:.0f} periods since its quota began"
        return Check("throttling", Verdict.DOUBT if now else Verdict.FINE, message)
    reasons = state.get("clocks_event_reasons")
    if not isinstance(reasons, list):
        return Check("throttling", Verdict.UNKNOWN, str(reasons or state.get("nvml", "not read")))
    bad = [r for r in reasons if "slowdown" in r or "brake" in r]
    verdict = Verdict.DOUBT if bad else Verdict.FINE
    return Check("throttling", verdict, ", ".join(reasons) or "no reason to be slower")


def _processes(state: Mapping[str, Any], *, gpu: bool) -> Check:
    if not gpu:
        return Check("processes", Verdict.FINE, "asked of GPUs only; see load")
    others = state.get("other_processes")
    if not isinstance(others, list):
        return Check("processes", Verdict.UNKNOWN, str(others or state.get("nvml", "not read")))
    message = f"{len(others)} other processes on the device"
    if note := state.get("other_processes_note"):
        return Check("processes", Verdict.UNKNOWN, f"{message}. {note}")
    return Check("processes", Verdict.DOUBT if others else Verdict.FINE, message)


def _load(load: Load) -> Check:
    cores = environment.usable_cores()
    minute = f"the load of the last minute is {load.minute:.2f}"
    if load.busy is None:
        says, busy = f"{minute}, on {cores} usable cores", load.minute
    else:
        says = f"other processes keep {load.busy:.2f} of {cores} usable cores busy now; {minute}"
        busy = load.busy
    return Check("load", Verdict.FINE if busy <= _LOAD_SHARE * cores else Verdict.DOUBT, says)


def _quota() -> Check:
    quota = environment.cpu_quota()
    if quota is None:
        return Check("quota", Verdict.FINE, "no quota")
    whole = quota >= 1 and quota == int(quota)
    message = f"a quota of {quota:g} cores"
    return Check("quota", Verdict.FINE if whole else Verdict.DOUBT, message)


def _speed(share: float | None) -> Check:
    """Checks the rate of a product now against the kept ceiling."""
    if share is None:
        return Check("speed", Verdict.ABSENT, "no ceiling is kept to compare with; see ceilings")
    message = f"a float32 product reaches {units.percent(share)} of the ceiling that is kept"
    if share > _OUTDATED:
        message += "; hwbench ceilings measures it again"
    return Check("speed", Verdict.FINE if _SLOW <= share <= _OUTDATED else Verdict.DOUBT, message)


def _linear(stored: Mapping[str, Any] | None, device: Mapping[str, Any]) -> Check:
    """Checks the rate of ``F.linear`` against the fastest library's float32 product."""
    if not stored:
        message = "no ceiling is kept, so it is not known what F.linear could reach; see ceilings"
        return Check("linear", Verdict.ABSENT, message)
    name, plain = plain_product(stored)
    share = plain["flops_per_second"] / stored["flops_per_second"]
    rate = units.flops_per_second(plain["flops_per_second"])
    if share >= _PART:
        message = f"F.linear reaches {units.percent(share, 0)} of the best float32 product, {rate}"
        return Check("linear", Verdict.FINE, f"{message} by {name}")
    message = (
        f"F.linear reaches {units.percent(share, 0)} of this device in float32: {rate} by {name}, "
        f"where {stored['library']} reaches {units.flops_per_second(stored['flops_per_second'])}"
    )
    if "MKL" in name and str(device.get("name", "")).startswith("AMD"):
        message += "; MKL computes by its AVX2 path on AMD's processors"
    return Check("linear", Verdict.DOUBT, message)


def _timer(health: protocol.Health) -> Check:
    step = max(health.timer_seconds, health.resolution_seconds)
    message = (
        f"the host's clock moves in {units.seconds(health.timer_seconds)}, marks resolve "
        f"{units.seconds(health.resolution_seconds)}"
    )
    return Check("timer", Verdict.FINE if step <= 1e-6 else Verdict.DOUBT, message)


def _two_four(kernels: Mapping[str, str]) -> Check:
    ran = [kernel for kernel, reason in kernels.items() if not reason]
    if ran:
        return Check("two_four", Verdict.FINE, f"ran with {', '.join(ran)}")
    return Check("two_four", Verdict.ABSENT, " ".join(dict.fromkeys(kernels.values())))
