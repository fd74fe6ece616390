"""What the machine was: facts that must agree to compare runs, and state that may differ.

Everything is read from the system itself (/proc, /sys, cgroup files), because packages that guess
caches and cores were found wrong. No torch here: what only torch knows, the worker adds.
"""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "ONEDNN_MAX_CPU_ISA",
)
"""Environment variables that change how many threads run, where, and with which instructions."""

_CGROUP = Path("/sys/fs/cgroup")


def _read(path: Path) -> str | None:
    """The text of a file of the system; None where this kernel or container does not have it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


@cache
def cpu_facts() -> dict[str, Any]:
    """Model, cores, caches and limits of the processor that this process may use."""
    text = _read(Path("/proc/cpuinfo")) or ""
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve")
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "stepping": fields.get("stepping"),
        "cores": usable_cores(),
        "caches_bytes": cpu_caches(),
        "instruction_sets": [flag for flag in wanted if flag in flags],
        "memory_bytes": memory_total_bytes(),
    }


@cache
def cpu_caches() -> dict[str, int]:
    """Bytes of each data cache of the first core, by level, from sysfs; empty where it is hidden."""
    found: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level and kind in ("Data", "Unified") and match:
            scale = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}[match[2]]
            found[f"L{level}"] = int(match[1]) * scale
    return found


def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity, and the container's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota() -> float | None:
    """The container's limit in cores (cgroup v2, then v1), or None where there is none."""
    text = _read(_CGROUP / "cpu.max")
    if text:
        limit, period = text.split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    limit_v1 = _read(_CGROUP / "cpu/cpu.cfs_quota_us")
    period_v1 = _read(_CGROUP / "cpu/cpu.cfs_period_us")
    if limit_v1 and period_v1 and int(limit_v1) > 0:
        return int(limit_v1) / int(period_v1)
    return None


def memory_total_bytes() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit_bytes() -> int:
    """Bytes of memory that the container allows; those of the machine where it sets no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(_CGROUP / name)
        if text and text.isdigit():
            return min(int(text), memory_total_bytes())
    return memory_total_bytes()


def steal_seconds() -> float:
    """Seconds that the hypervisor has taken from all cores since boot; 0 where it does not say."""
    fields = (_read(Path("/proc/stat")) or "").split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def throttled_periods() -> float:
    """Periods in which the container's quota stopped this process; 0 where there is no quota."""
    match = re.search(r"^nr_throttled (\d+)$", _read(_CGROUP / "cpu.stat") or "", re.MULTILINE)
    return float(match[1]) if match else 0.0


def machine_state() -> dict[str, Any]:
    """What may differ between runs: load, frequency governor, steal and throttling so far."""
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    return {
        "load_1min": os.getloadavg()[0],
        "governor": governor or "not readable",
        "steal_seconds": steal_seconds(),
        "throttled_periods": throttled_periods(),
        "hostname": platform.node(),
    }


def host_facts() -> dict[str, Any]:
    """Facts of the host beside its processor: system and Python."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "python": platform.python_version(),
        "virtual": "hypervisor" in (_read(Path("/proc/cpuinfo")) or ""),
    }


def nvidia_devices() -> int:
    """NVIDIA devices that the driver shows to this process; found without torch and without NVML."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None and not [part for part in shown.split(",") if part.strip() not in ("", "-1")]:
        return 0
    return len([p for p in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)])
