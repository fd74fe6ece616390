"""What the machine was, read from made-up /proc, /sys and /dev in temporary folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hwbench import environment
from hwbench.errors import UsageError

MIB = 1024**2
CPUINFO = """processor\t: 0
model name\t: Example 9000
cpu family\t: 26
model\t\t: 2
stepping\t: 1
flags\t\t: fpu avx2 avx512f avx512_bf16 hypervisor

"""


class Machine:
    """A made-up machine: files appear where the kernel would show them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")

    def cache(self, core: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
        folder = f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
        for name, text in (
            ("level", str(level)),
            ("type", kind),
            ("size", size),
            ("shared_cpu_list", shared),
        ):
            self.put(f"{folder}/{name}", text)

    def group(self, text: str) -> None:
        self.put("proc/self/cgroup", text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("proc", "sys", "dev"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(environment, f"_{name.upper()}", tmp_path / name)
    monkeypatch.setattr(environment, "_allowed_cores", lambda: {0, 1})
    monkeypatch.setattr(environment, "memory_total_bytes", lambda: 1000 * MIB)
    for cached in ("cpu_facts", "cpu_caches", "cache_totals", "last_level_cache_bytes"):
        function = getattr(environment, cached).__wrapped__
        monkeypatch.setattr(environment, cached, function)
    return Machine(tmp_path)


# --- the processor -----------------------------------------------------------------------------


def test_the_last_level_is_found_by_its_level_and_not_by_its_index(machine: Machine) -> None:
    machine.cache(0, 0, 1, "Data", "48K", "0")
    machine.cache(0, 1, 1, "Instruction", "64K", "0")
    machine.cache(0, 2, 3, "Unified", "32M", "0-7")
    machine.cache(0, 10, 2, "Unified", "1024K", "0")
    assert environment.cpu_caches() == {"L1": 48 * 1024, "L2": MIB, "L3": 32 * MIB}


def test_the_caches_are_those_of_a_core_that_this_process_may_use(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.cache(0, 0, 2, "Unified", "1M", "0")
    machine.cache(5, 0, 2, "Unified", "4M", "5")
    monkeypatch.setattr(environment, "_allowed_cores", lambda: {5, 6})
    assert environment.cpu_caches() == {"L2": 4 * MIB}


def test_last_level_caches_are_added_up_once_each(machine: Machine) -> None:
    for core, shared in ((0, "0"), (1, "1")):
        machine.cache(core, 0, 2, "Unified", "1M", shared)
        machine.cache(core, 3, 3, "Unified", "32M", shared)
    assert environment.last_level_cache_bytes() == 64 * MIB
    assert environment.cache_totals() == {"L2": 2 * MIB, "L3": 64 * MIB}
    machine.cache(0, 3, 3, "Unified", "32M", "0-1")
    machine.cache(1, 3, 3, "Unified", "32M", "0-1")
    assert environment.last_level_cache_bytes() == 32 * MIB


def test_hidden_caches_are_empty_and_not_guessed(machine: Machine) -> None:
    machine.cache(0, 0, 3, "Unified", "what", "0")
    assert environment.cpu_caches() == {}
    assert environment.last_level_cache_bytes() == 0


def test_facts_of_an_x86_processor(machine: Machine) -> None:
    machine.put("proc/cpuinfo", CPUINFO)
    facts = environment.cpu_facts()
    assert (facts["name"], facts["family"], facts["model"]) == ("Example 9000", "26", "2")
    assert facts["instruction_sets"] == ["avx2", "avx512f", "avx512_bf16"]
    assert facts["cores"] == 2
    assert environment.host_facts()["virtual"] is True


def test_arm_processors_are_named_by_the_numbers_of_their_cores(machine: Machine) -> None:
    text = "CPU implementer\t: {}\nCPU part\t: {}\nFeatures\t: asimd sve sve2 i8mm bf16"
    named = {
        ("0x41", "0xd40"): "ARM Neoverse V1",
        ("0x41", "0xd4f"): "ARM Neoverse V2",
        ("0x61", "0x022"): "Apple M1 efficiency",
        ("0x41", "0xfff"): "ARM part 0xfff",
        ("0x7f", "0x1"): "implementer 0x7f part 0x001",
        ("?", "?"): "? ?",
    }
    for (maker, part), name in named.items():
        machine.put("proc/cpuinfo", text.format(maker, part))
        facts = environment.cpu_facts()
        assert facts["name"] == name
        assert (facts["family"], facts["model"]) == (maker, part)
        assert facts["instruction_sets"] == ["asimd", "sve", "sve2", "i8mm", "bf16"]


def test_all_kinds_of_cores_of_an_arm_processor_are_named(machine: Machine) -> None:
    """A model name that is the architecture's alone says less."""
    core = "processor\t: {}\nmodel name\t: ARMv8 Processor rev 1\nCPU implementer\t: 0x61\n"
    parts = ("0x022", "0x022", "0x023", "0x023")
    lines = [core.format(n) + f"CPU part\t: {part}\n" for n, part in enumerate(parts)]
    machine.put("proc/cpuinfo", "\n".join(lines))
    assert environment.cpu_facts()["name"] == "Apple M1 efficiency + Apple M1 performance"


# --- control groups ----------------------------------------------------------------------------


def test_no_files_mean_no_limits(machine: Machine) -> None:
    assert environment.cpu_quota() is None
    assert environment.usable_cores() == 2
    assert environment.memory_limit_bytes() == 1000 * MIB
    assert environment.memory_available_bytes() == 1000 * MIB
    assert environment.throttled_periods() == 0.0
    assert environment.steal_seconds() == 0.0


@pytest.mark.parametrize(
    ("text", "quota", "cores"),
    [
        ("max 100000", None, 2),
        ("150000 100000", 1.5, 1),
        ("20000 100000", 0.2, 1),
        ("800000 100000", 8.0, 2),
    ],
)
def test_quota_of_version_2(machine: Machine, text: str, quota: float | None, cores: int) -> None:
    machine.group("0::/")
    machine.put("sys/fs/cgroup/cpu.max", text)
    assert environment.cpu_quota() == quota
    assert environment.usable_cores() == cores


def test_the_tightest_limit_of_nested_groups_holds(machine: Machine) -> None:
    machine.group("0::/system.slice/job.service")
    machine.put("sys/fs/cgroup/system.slice/cpu.max", "100000 100000")
    machine.put("sys/fs/cgroup/system.slice/job.service/cpu.max", "max 100000")
    assert environment.cpu_quota() == 1.0
    machine.put("sys/fs/cgroup/system.slice/job.service/cpu.max", "50000 100000")
    assert environment.cpu_quota() == 0.5


def test_another_group_does_not_concern_this_process(machine: Machine) -> None:
    machine.group("0::/mine")
    machine.put("sys/fs/cgroup/other/cpu.max", "10000 100000")
    machine.put("sys/fs/cgroup/other/memory.max", str(MIB))
    assert environment.cpu_quota() is None
    assert environment.memory_limit_bytes() == 1000 * MIB


def test_a_path_outside_of_the_container_counts_as_its_root(machine: Machine) -> None:
    machine.group("0::/../../host/path")
    machine.put("sys/fs/cgroup/cpu.max", "100000 100000")
    assert environment.cpu_quota() == 1.0
    machine.group("0::/kubepods/that/is/not/mounted/here")
    assert environment.cpu_quota() == 1.0


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_quota_and_throttling_of_version_1(machine: Machine, folder: str) -> None:
    machine.group("4:cpu,cpuacct:/docker/abc\n1:name=systemd:/elsewhere\n0::/")
    machine.put(f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us", "-1")
    machine.put(f"sys/fs/cgroup/{folder}/cpu.cfs_period_us", "100000")
    assert environment.cpu_quota() is None
    machine.put(f"sys/fs/cgroup/{folder}/docker/abc/cpu.cfs_quota_us", "150000")
    machine.put(f"sys/fs/cgroup/{folder}/docker/abc/cpu.cfs_period_us", "100000")
    machine.put(f"sys/fs/cgroup/{folder}/docker/abc/cpu.stat", "nr_periods 9\nnr_throttled 7")
    assert environment.cpu_quota() == 1.5
    assert environment.throttled_periods() == 7.0


def test_throttling_of_an_outer_group_counts_as_well(machine: Machine) -> None:
    machine.group("0::/outer/inner")
    machine.put("sys/fs/cgroup/outer/cpu.stat", "usage_usec 5\nnr_throttled 3")
    machine.put("sys/fs/cgroup/outer/inner/cpu.stat", "usage_usec 5\nnr_throttled 2")
    assert environment.throttled_periods() == 5.0


def test_memory_limit_and_what_is_left_of_it_in_version_2(machine: Machine) -> None:
    machine.group("0::/job")
    machine.put("proc/meminfo", f"MemTotal: 1024000 kB\nMemAvailable:  {900 * 1024} kB")
    machine.put("sys/fs/cgroup/job/memory.max", "max")
    assert environment.memory_limit_bytes() == 1000 * MIB
    assert environment.memory_available_bytes() == 900 * MIB
    machine.put("sys/fs/cgroup/job/memory.max", str(400 * MIB))
    machine.put("sys/fs/cgroup/job/memory.current", str(300 * MIB))
    assert environment.memory_limit_bytes() == 400 * MIB
    assert environment.memory_available_bytes() == 100 * MIB
    machine.put("sys/fs/cgroup/job/memory.stat", f"anon 1\ninactive_file {50 * MIB}\nslab 2")
    assert environment.memory_available_bytes() == 150 * MIB


def test_memory_limit_of_version_1_in_a_nested_group(machine: Machine) -> None:
    machine.group("4:memory:/job/7\n3:cpuset:/")
    machine.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    machine.put("sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", str(200 * MIB))
    machine.put("sys/fs/cgroup/memory/job/7/memory.usage_in_bytes", str(120 * MIB))
    stat = f"inactive_file {MIB}\ntotal_inactive_file {20 * MIB}"
    machine.put("sys/fs/cgroup/memory/job/7/memory.stat", stat)
    assert environment.memory_limit_bytes() == 200 * MIB
    assert environment.memory_available_bytes() == 100 * MIB


# --- state and devices -------------------------------------------------------------------------


def test_steal_is_the_eighth_column(machine: Machine) -> None:
    machine.put("proc/stat", "cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10")
    assert environment.steal_seconds() == 250 / os.sysconf("SC_CLK_TCK")


def test_work_of_others_is_what_the_usable_cores_do_beside_our_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = os.sysconf("SC_CLK_TCK")
    clock = {"wall": 100.0, "own": 7.0}
    monkeypatch.setattr(environment, "_allowed_cores", lambda: {0, 1})
    monkeypatch.setattr(environment.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(environment.time, "process_time", lambda: clock["own"])

    def stat(user: float, irq: float) -> None:
        cores = [f"cpu{n} {int(user * second)} 0 0 99 99 {int(irq * second)} 0 9" for n in (0, 1)]
        machine.put("proc/stat", "\n".join(["cpu  1 2 3 4 5 6 7 8", *cores, f"cpu2 {'9 ' * 8}"]))

    def sleep(seconds: float) -> None:
        clock["wall"] += seconds
        # Of 2 × 0.5 seconds on two usable cores, 0.25 were our own.
        clock["own"] += 0.25
        stat(1.25, 1.25)

    monkeypatch.setattr(environment.time, "sleep", sleep)
    assert environment.cores_busy_elsewhere(1.0) is None
    clock.update(wall=100.0, own=7.0)
    stat(1.0, 1.0)
    assert environment.cores_busy_elsewhere(1.0) == pytest.approx(0.75)


def test_state_says_what_it_cannot_read(machine: Machine) -> None:
    state = environment.machine_state()
    assert state["governor"] == state["turbo"] == "not readable"
    machine.put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
    machine.put("sys/devices/system/cpu/intel_pstate/no_turbo", "1")
    state = environment.machine_state()
    assert (state["governor"], state["turbo"]) == ("powersave", "off")
    machine.put("sys/devices/system/cpu/intel_pstate/no_turbo", "0")
    assert environment.machine_state()["turbo"] == "on"


def test_nvidia_devices_are_those_that_are_present_and_shown(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.nvidia_devices() == 0
    for name in ("nvidia0", "nvidia1", "nvidia12", "nvidiactl", "nvidia-uvm"):
        machine.put(f"dev/{name}", "")
    assert environment.nvidia_devices() == 3
    for shown, count in (("", 0), ("-1", 0), ("1", 1), ("0,12", 2), ("0,-1,1", 1), ("GPU-ab", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert environment.nvidia_devices() == count, shown


def test_a_device_behind_windows_counts_as_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node is that of any maker: only NVIDIA's driver beside it says whose it is."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "_WSL_DRIVER", machine.root / "usr/lib/wsl/lib")
    machine.put("usr/lib/wsl/lib/libcuda.so.1", "")
    assert environment.nvidia_devices() == 0
    machine.put("dev/dxg", "")
    assert environment.nvidia_devices() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.nvidia_devices() == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    machine.put("dev/nvidia0", "")
    machine.put("dev/nvidia1", "")
    assert environment.nvidia_devices() == 2
    for path in ("dev/nvidia0", "dev/nvidia1", "usr/lib/wsl/lib/libcuda.so.1"):
        (machine.root / path).unlink()
    assert environment.nvidia_devices() == 0


def test_this_machine_itself_can_be_described() -> None:
    facts = environment.cpu_facts()
    assert facts["name"]
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert 0 < environment.memory_available_bytes() <= environment.memory_limit_bytes()
    assert environment.memory_limit_bytes() <= facts["memory_bytes"]


def test_rapl_adds_the_packages_or_says_why_not(machine: Machine):
    assert "no RAPL energy counter" in str(environment.rapl_joules())
    for index, microjoules in enumerate((1_500_000, 250_000)):
        machine.put(f"sys/class/powercap/intel-rapl:{index}/energy_uj", f"{microjoules}\n")
        machine.put(f"sys/class/powercap/intel-rapl:{index}:0/energy_uj", "77\n")  # a part of it
    assert environment.rapl_joules() == pytest.approx(1.75)


def test_a_process_and_its_children_stay_on_the_cores_they_are_given() -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os, sys; from hwbench import environment as e; e.pin('{core}');"
        "print(e.core_list(), e.usable_cores(), flush=True);"
        "child = 'import os; print(os.sched_getaffinity(0))';"
        "os.execv(sys.executable, [sys.executable, '-c', child])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{core} 1", f"{{{core}}}"]


@pytest.mark.parametrize("cores", ["", "a", "1-", "-1", "0,,1", "5-2", "99998-99999", "0 1"])
def test_what_is_no_list_of_cores_here_is_refused(cores: str) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(UsageError, match="cores"):
        environment.pin(cores)
    assert os.sched_getaffinity(0) == before


def test_cores_are_listed_as_the_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {8, 0, 1, 2, 5, 6})
    assert environment.core_list() == "0-2,5-6,8"
