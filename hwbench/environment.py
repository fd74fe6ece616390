"""Reads the machine: facts that must agree to compare runs, and state that may differ.

Everything is read from the system itself (/proc, /sys, cgroup files), because packages that guess
caches and cores were found wrong. No torch here: what only torch knows, the worker adds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hwbench import files
from hwbench.errors import UsageError, shortened

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MKL_DYNAMIC",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ATEN_CPU_CAPABILITY",
)
"""Environment variables that change how many threads run, where, and with which instructions."""

MOST_THREADS = 4096

_PROC, _SYS, _DEV = Path("/proc"), Path("/sys"), Path("/dev")
_ARM_SETS = ("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme")
_WSL_DRIVER = Path("/usr/lib/wsl/lib")  # where Windows puts the driver of an NVIDIA device
_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def _read(path: Path) -> str | None:
    """The text of a file of the system; None where this kernel or container does not have it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


@cache
def cpu_facts() -> dict[str, Any]:
    """Model, cores, caches and limits of the processor that this process may use."""
    text = _read(_PROC / "cpuinfo") or ""
    fields: dict[str, str] = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", *_ARM_SETS)
    named = _arm_name(text) or fields.get("model name")
    return {
        "name": named or platform.processor() or platform.machine(),
        "family": fields.get("cpu family", fields.get("CPU implementer")),
        "model": fields.get("model", fields.get("CPU part")),
        "stepping": fields.get("stepping", fields.get("CPU revision")),
        "cores": usable_cores(),
        "caches_bytes": cpu_caches(),
        "instruction_sets": [flag for flag in names if flag in flags],
        "memory_bytes": memory_total_bytes(),
    }


def instruction_sets() -> str:
    """The processor's instruction sets, as the operating system's kernel lists them."""
    match = re.search(
        r"^(?:flags|Features)\s*:\s*(.*)$", _read(_PROC / "cpuinfo") or "", re.MULTILINE
    )
    return match[1] if match else ""


def _arm_name(text: str) -> str:
    """The kinds of cores of an ARM processor in /proc/cpuinfo's order, with ``+`` between them."""
    field = r"^CPU {}\s*:\s*(\S+)$"
    makers = re.findall(field.format("implementer"), text, re.MULTILINE)
    parts = re.findall(field.format("part"), text, re.MULTILINE)
    kinds = dict.fromkeys(zip(makers, parts, strict=False))
    return " + ".join(_core_name(*kind) for kind in kinds)


@cache
def _core_names() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("arm.toml").read_text(encoding="utf-8"))


def _core_name(implementer: str, part: str) -> str:
    """Maker and core, such as ``ARM Neoverse V1``; the numbers where no name is known.

    Args:
        implementer: as ``CPU implementer`` of ``/proc/cpuinfo`` writes it, such as ``0x41``.
        part: ``CPU part``, such as ``0xd40``.
    """
    try:
        made_by, number = f"{int(implementer, 16):#04x}", f"{int(part, 16):#05x}"
    except ValueError:
        return f"{implementer} {part}".strip()
    maker = _core_names()["makers"].get(made_by, f"implementer {made_by}")
    return f"{maker} {_core_names()['parts'].get(made_by, {}).get(number, f'part {number}')}"


@cache
def cpu_caches() -> dict[str, int]:
    """Bytes of each data cache that one core sees, by level; empty where sysfs hides them."""
    first = min(_allowed_cores())
    return {f"L{level}": size for level, size, _ in sorted(_data_caches(first))}


@cache
def last_level_cache_bytes() -> int:
    """Bytes of the last-level caches of all cores that this process may use; 0 where hidden."""
    return list(cache_totals().values())[-1] if cache_totals() else 0


@cache
def cache_totals() -> dict[str, int]:
    """Bytes of all data caches of a level that this process may use, by level, the first first."""
    totals: dict[str, int] = {}
    caches = {cache for core in _allowed_cores() for cache in _data_caches(core)}
    for level, size, _ in sorted(caches):
        totals[f"L{level}"] = totals.get(f"L{level}", 0) + size
    return totals


def _data_caches(core: int) -> Iterator[tuple[int, int, str]]:
    """Level, bytes and sharing cores of each data cache of a core, in no particular order."""
    for index in (_SYS / f"devices/system/cpu/cpu{core}/cache").glob("index[0-9]*"):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level and kind in ("Data", "Unified") and match:
            shared = _read(index / "shared_cpu_list") or str(core)
            yield int(level), int(match[1]) * _SIZES[match[2]], shared


def _allowed_cores() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return affinity(0) if affinity else set(range(os.cpu_count() or 1))


def core_list() -> str:
    """The cores that this process may run on, as the kernel writes lists: ``0-3,8``."""
    cores = sorted(_allowed_cores())
    starts = [core for core in cores if core - 1 not in cores]
    ends = [core for core in cores if core + 1 not in cores]
    pairs = zip(starts, ends, strict=True)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in pairs)


def pin(cores: str) -> None:
    """Keep this process, and the processes that it starts, on some cores, such as ``0-3,8``.

    Raises:
        UsageError: it is no such list, or names cores that this process may not run on.
    """
    if not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", cores):
        raise UsageError(f"{cores!r} is no list of cores such as 0-3,8.")
    numbers: set[int] = set()
    for part in cores.split(","):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    if not numbers or not numbers <= _allowed_cores():
        raise UsageError(f"The cores {cores} are not all among those allowed here, {core_list()}.")
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("This system cannot keep a process on some cores.")
    os.sched_setaffinity(0, numbers)


def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity, and the container's quota."""
    allowed = len(_allowed_cores())
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def default_threads() -> int:
    """The default threads of a CPU worker: ``OMP_NUM_THREADS``, else one per usable core.

    The variable may hold a list, one number a level of nested regions; the first one counts.
    Cores are those that the kernel schedules on: two hardware threads of a core are two.

    Raises:
        UsageError: the variable is no number from 1 to 4096.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not setting:
        return usable_cores()
    first = setting.split(",")[0].strip()
    if not (re.fullmatch(r"[0-9]{1,4}", first) and 1 <= int(first) <= MOST_THREADS):
        raise UsageError(
            f"OMP_NUM_THREADS must be a number between 1 and {MOST_THREADS}, not "
            f"{shortened(setting)!r}; set it, or give --threads."
        )
    return int(first)


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, innermost first (v2 and v1)."""
    lines = (_read(_PROC / "self/cgroup") or f"0::/\n1:{controller}:/").splitlines()
    root = _SYS / "fs/cgroup"
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        places = (controllers, controller) if controllers else ("unified", ".")
        mount = next((root / place for place in places if (root / place).is_dir()), root)
        inner = Path(name.strip("/"))
        if ".." in inner.parts:  # outside of what this container is shown
            inner = Path()
        yield from (mount / part for part in (inner, *inner.parents))


def cpu_quota() -> float | None:
    """The tightest limit of its control groups in cores, or None where there is none."""
    quotas = []
    for folder in _control_groups("cpu"):
        limit, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        if not limit:
            limit = _read(folder / "cpu.cfs_quota_us") or ""
            period = _read(folder / "cpu.cfs_period_us") or ""
        if limit.isdigit() and period.isdigit() and int(limit) > 0:
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def memory_total_bytes() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit_bytes() -> int:
    """Bytes of memory that its control groups allow; those of the machine without a limit."""
    limits = [limit for limit, _ in _memory_limits()]
    return min([memory_total_bytes(), *limits])


def memory_available_bytes() -> int:
    """Bytes that could still be allocated without swapping or being killed."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(_PROC / "meminfo") or "", re.MULTILINE)
    available = int(match[1]) * 1024 if match else memory_total_bytes()
    left = [max(0, limit - used) for limit, used in _memory_limits()]
    return min([available, *left])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """The limit of each of its control groups, and the bytes in use that cannot be reclaimed."""
    version_2 = ("memory.max", "memory.current")
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for folder in _control_groups("memory"):
        for name, usage in (version_2, version_1):
            limit, used = _read(folder / name) or "", _read(folder / usage) or "0"
            if limit.isdigit() and int(limit) < memory_total_bytes():
                stat = _read(folder / "memory.stat") or ""
                cached = re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
                yield int(limit), int(used) - max(map(int, cached), default=0)


def steal_seconds() -> float:
    """Seconds that the hypervisor has taken from all cores since boot; 0 where it is unknown."""
    fields = (_read(_PROC / "stat") or "").split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def _busy_seconds() -> float | None:
    """Processor seconds of all work on the usable cores since boot; None where unknown."""
    stat = _read(_PROC / "stat") or ""
    columns = {
        int(number): [int(field) for field in fields.split()]
        for number, fields in re.findall(r"^cpu(\d+) (.+)$", stat, re.MULTILINE)
    }
    cores = _allowed_cores() & columns.keys()
    if not cores or any(len(columns[core]) < 7 for core in cores):
        return None
    # The first seven columns: user, nice, system, idle, iowait, irq, softirq.
    ticks = sum(sum(columns[core][:3]) + sum(columns[core][5:7]) for core in cores)
    return ticks / os.sysconf("SC_CLK_TCK")


def cores_busy_elsewhere(seconds: float = 0.5) -> float | None:
    """How many usable cores other processes keep busy now, in the mean of so many seconds.

    The load of the last minute also counts what has just ended, such as one's own last run. None
    where the system does not tell (there is no ``/proc/stat``).
    """
    before, own, begun = _busy_seconds(), time.process_time(), time.monotonic()
    time.sleep(seconds)
    after, own_after, ended = _busy_seconds(), time.process_time(), time.monotonic()
    if before is None or after is None:
        return None
    return max(0.0, after - before - (own_after - own)) / (ended - begun)


def throttled_periods() -> float:
    """Periods in which a quota stopped its control groups so far; 0 where there is no quota."""
    stats = "\n".join(_read(folder / "cpu.stat") or "" for folder in _control_groups("cpu"))
    return float(sum(map(int, re.findall(r"^nr_throttled (\d+)$", stats, re.MULTILINE))))


def machine_state() -> dict[str, Any]:
    """State that may differ between runs: load, frequency governor, steal and throttling so far."""
    first = f"devices/system/cpu/cpu{min(_allowed_cores())}"
    governor = _read(_SYS / first / "cpufreq/scaling_governor")
    return {
        "load_1min": os.getloadavg()[0],
        "governor": governor or "not readable",
        "turbo": _turbo(),
        "steal_seconds": steal_seconds(),
        "throttled_periods": throttled_periods(),
        "hostname": platform.node(),
    }


def _turbo() -> str:
    boost = _read(_SYS / "devices/system/cpu/cpufreq/boost")
    without = _read(_SYS / "devices/system/cpu/intel_pstate/no_turbo")
    if boost is None and without is None:
        return "not readable"
    return "on" if boost == "1" or without == "0" else "off"


def host_facts() -> dict[str, Any]:
    """Facts of the host beside its processor: system and Python."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "python": platform.python_version(),
        "virtual": "hypervisor" in (_read(_PROC / "cpuinfo") or ""),
    }


def nvidia_devices() -> int:
    """NVIDIA devices that this process is shown; counted without torch and without NVML.

    The Windows Subsystem for Linux does not show how many there are: it counts as one.
    """
    present = sum(1 for path in _DEV.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if not present and (_DEV / "dxg").exists():  # Linux in Windows: one node for all makers
        present = int(any(_WSL_DRIVER.glob("libcuda.so*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = [part.strip() for part in visible.split(",")]
    valid = next((i for i, part in enumerate(named) if part in ("", "-1")), len(named))
    return min(present, valid)  # CUDA stops at the first name that is none


def rapl_joules() -> float | str:
    """The energy of all processor packages since boot (RAPL), or why it cannot be read."""
    packages = sorted((_SYS / "class/powercap").glob("intel-rapl:[0-9]"))
    if not packages:
        return "This kernel offers no RAPL energy counter (/sys/class/powercap)."
    total = 0.0
    for package in packages:
        try:
            total += int((package / "energy_uj").read_text(encoding="ascii")) * 1e-6
        except OSError as error:
            return f"The RAPL energy counter cannot be read: {error.strerror}."
    return total


def cache_folder() -> Path:
    """``XDG_CACHE_HOME/hwbench``, or where the system keeps caches of its users."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "hwbench"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/hwbench"
    return Path.home() / ".cache/hwbench"


def kept(file: Path) -> dict[str, Any]:
    """The JSON object of a file of the cache; empty where there is none, or something else."""
    try:
        values = json.loads(files.read_text(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def keep(file: Path, values: Mapping[str, Any]) -> str | None:
    """Write a file of the cache in one step; why that was not possible, in words."""
    try:
        with files.whole(file) as beside:
            beside.write_text(json.dumps(values), encoding="utf-8")
    except OSError as error:
        return f"{file.parent} cannot be written: {error.strerror}."
    return None
