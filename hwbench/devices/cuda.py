"""An NVIDIA GPU: events in its queue, its allocator's counters, graphs, and NVML beside torch."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from hwbench import environment
from hwbench.devices import _nvml
from hwbench.devices._base import Device, Mark, Probe
from hwbench.errors import DeviceError, first_line

_EVICT_BYTES = 256_000_000  # at least, and at least twice the last-level cache
_SPIN_CYCLES = 2_000_000  # of one calibrating spin
_SPIN_SECONDS = 0.3  # of calibrating spins; the fastest counts, since the clock has to rise first
_PREFILL_LIMIT_SECONDS = 0.1  # the queue is never occupied for longer
_WARM_CALLS = 3  # on the side stream, before a capture
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_BLAS_PREFER_CUBLASLT",
)
"""Environment variables that change which kernels run, how they are launched, or their memory."""


_SETTINGS = {
    "threads": "get_num_threads",
    "float32_matmul_precision": "get_float32_matmul_precision",
    "fp32_precision": "backends.fp32_precision",
    "matmul.fp32_precision": "backends.cuda.matmul.fp32_precision",
    "matmul.allow_tf32": "backends.cuda.matmul.allow_tf32",
    "cudnn.conv.fp32_precision": "backends.cudnn.conv.fp32_precision",
    "cudnn.allow_tf32": "backends.cudnn.allow_tf32",
    **{
        name: f"backends.cuda.matmul.{name}"
        for name in (
            "allow_fp16_accumulation",
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
        )
    },
    "preferred_blas_library": "backends.cuda.preferred_blas_library",
    "deterministic_algorithms": "are_deterministic_algorithms_enabled",
}
"""Switches of torch by the name under which they are recorded."""


class _Replay:
    """A captured call; it keeps alive what its graph reads."""

    def __init__(self, graph: torch.cuda.CUDAGraph, call: Callable[[], object]) -> None:
        self._graph, self._call = graph, call

    def __call__(self) -> None:
        self._graph.replay()


class Cuda(Device):
    """One NVIDIA GPU; marks are timed events on the current stream."""

    kind = "cuda"
    contract = "event"
    asynchronous = True
    matmul_sides = (4096, 8192)
    matmul_sweep = (1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
    least_copy_bytes = 1_048_576
    copy_bytes = 2_000_000_000
    resolution_seconds = 0.5e-6

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        if not hasattr(torch.cuda, "_sleep"):
            raise DeviceError(
                f"PyTorch {torch.__version__} has no torch.cuda._sleep, which hwbench needs to "
                "fill the GPU's queue; use PyTorch 2.11 to 2.13."
            )
        self.torch_device = torch.device("cuda", index)
        try:
            torch.cuda.set_device(self.torch_device)
            torch.cuda.synchronize(self.torch_device)
        except RuntimeError as error:
            raise DeviceError(f"cuda:{index} cannot be opened: {_sentence(error)}") from None
        self._properties = torch.cuda.get_device_properties(self.torch_device)
        self._nvml = _nvml.Nvml(_uuid(self._properties), _pci_bus_id(self._properties))
        self._evict: torch.Tensor | None = None
        self._foreign: torch.Tensor  # made with it: read after each eviction
        self._cycles_per_second: float | None = None

    @classmethod
    def count(cls) -> int:
        if torch.version.cuda is None:
            return 0
        with warnings.catch_warnings():  # torch warns where there is no driver; missing() says it
            warnings.simplefilter("ignore")
            return torch.cuda.device_count()

    @classmethod
    def missing(cls) -> str:
        if torch.version.cuda is None:
            built = "without CUDA"
            if torch.version.hip:
                built = "for ROCm, which hwbench does not support"
            return f"This PyTorch ({torch.__version__}) is built {built}; install a CUDA build."
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return "There is no NVIDIA driver here: libcuda.so.1 cannot be loaded."
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return f"CUDA_VISIBLE_DEVICES={visible!r} shows no NVIDIA device to this process."
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.cuda.init()
        except RuntimeError as error:
            return f"The NVIDIA driver shows no device to this process: {_sentence(error)}"
        return "The NVIDIA driver shows no device to this process."

    def mark(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.torch_device))
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def evict_caches(self) -> None:
        if self._evict is None:
            size = max(_EVICT_BYTES, 2 * self._properties.L2_cache_size)
            self._evict = torch.zeros(size // 4, dtype=torch.int32, device=self.torch_device)
            self._foreign = torch.zeros_like(self._evict)
        self._evict.add_(1)  # reads and writes all of it
        # What the write left in the cache would be written back during the timed call. After this
        # read of another buffer the cache holds what is nobody's and needs no writing.
        self._foreign.sum()

    def ahead(self, start: Mark) -> bool:
        return not start.query()

    def prefill(self, seconds: float) -> None:
        if seconds <= 0:
            return
        if self._cycles_per_second is None:
            self._cycles_per_second = self._spin_rate()
        cycles = min(seconds, _PREFILL_LIMIT_SECONDS) * self._cycles_per_second
        torch.cuda._sleep(int(cycles))  # noqa: SLF001 (no public call occupies a queue for a time)

    def occupy(self, seconds: float) -> None:
        self.prefill(seconds)

    def _spin_rate(self) -> float:
        fastest, spent = math.inf, 0.0
        while spent < _SPIN_SECONDS:
            start = self.mark()
            torch.cuda._sleep(_SPIN_CYCLES)  # noqa: SLF001
            seconds = self.seconds(start, self.mark())
            fastest, spent = min(fastest, seconds), spent + seconds
        return _SPIN_CYCLES / fastest

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        reserved = torch.cuda.memory_reserved(self.torch_device)
        return free + reserved - torch.cuda.memory_allocated(self.torch_device)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        call()  # workspaces that the first call makes, and keeps, are not of every call
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        start = torch.cuda.memory_allocated(self.torch_device)
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device) - start

    def capture(self, call: Callable[[], object]) -> Callable[[], None] | str:
        stream = torch.cuda.Stream(self.torch_device)
        reason = self._rehearse(call, stream)
        if reason is not None:
            return reason
        home = torch.cuda.current_stream(self.torch_device)
        default = torch.cuda.default_generators[self.index]
        random_state = default.clone_state()
        pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                call()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the reason)
            reason = _sentence(error.__context__ or error)  # ending the capture fails as well
            torch.cuda.set_stream(home)
            default.graphsafe_set_state(random_state)
            self._abandon(pool)
            self.synchronize()  # raises where CUDA itself is lost
            return f"It cannot be captured as a graph: {reason}"

        return _Replay(graph, call)

    def _rehearse(self, call: Callable[[], object], stream: torch.cuda.Stream) -> str | None:
        """Warm up beside the current stream; the reason when a call waits for the device."""
        stream.wait_stream(torch.cuda.current_stream(self.torch_device))
        mode = torch.cuda.get_sync_debug_mode()
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_CALLS):
                    call()
                _set_sync_debug_mode("error")
                call()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the reason)
            return f"It cannot be captured as a graph: {_sentence(error)}"
        finally:
            _set_sync_debug_mode(mode)
            torch.cuda.current_stream(self.torch_device).wait_stream(stream)
        return None

    def _abandon(self, pool: Any) -> None:
        """Take back from the allocator the pool of a capture that failed; torch leaves it open."""
        with contextlib.suppress(RuntimeError, AttributeError):  # it had been closed already
            torch._C._cuda_endAllocateToPool(self.index, pool)  # noqa: SLF001 (no public call)
            torch._C._cuda_releasePool(self.index, pool)  # noqa: SLF001

    def info(self) -> dict[str, Any]:
        properties = self._properties
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "driver": _driver(self._nvml),
            "cuda_runtime": torch.version.cuda,
            "cublas": _cublas(),
            "cudnn": torch.backends.cudnn.version() or "not in this PyTorch",
            "cusparselt": torch.backends.cusparselt.version() or "not in this PyTorch",
            **self._nvml.info(),
        }

    def state(self) -> dict[str, Any]:
        return {
            "uuid": _uuid(self._properties),
            "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", "all"),
            "free_bytes": self.free_bytes(),
            **self._nvml.state(),
            "host": environment.machine_state(),
        }

    def settings(self) -> dict[str, Any]:
        return {
            **{name: _setting(path) for name, path in _SETTINGS.items()},
            **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
        }

    def probe(self) -> Probe:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        reserved = torch.cuda.memory_reserved(self.torch_device)
        return {**self._nvml.probe(), "foreign_bytes": float(total - free - reserved)}

    def disturbance(self, before: Probe, after: Probe, seconds: float) -> list[str]:
        return _nvml.disturbances(before, after, seconds)

    def matmul_modes(self, dtype: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """TF32 and IEEE float32, and float16 accumulated in float16, beside what is set."""
        matmul = "backends.cuda.matmul"
        ways: dict[str, dict[str, tuple[str, object]]] = {
            "float32": {
                "float32_ieee": (f"{matmul}.fp32_precision", "ieee"),
                "float32_tf32": (f"{matmul}.fp32_precision", "tf32"),
            },
            "float16": {
                "float16_accumulate_float32": (f"{matmul}.allow_fp16_accumulation", False),
                "float16_accumulate_float16": (f"{matmul}.allow_fp16_accumulation", True),
            },
        }
        modes: dict[str, Callable[[], AbstractContextManager[None]]] = {dtype: nullcontext}
        for name, (path, value) in ways.get(dtype, {}).items():
            modes[name] = partial(_switched, path, value)
        return modes

    def matmul_libraries(self, dtype: str) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """The library that torch is set to use, and the other of cuBLAS and cuBLASLt."""
        del dtype
        preferred = str(torch.backends.cuda.preferred_blas_library()).rpartition(".")[2].lower()
        first, other = ("cublaslt", "cublas") if preferred == "cublaslt" else ("cublas", "cublaslt")
        names = {"cublas": "torch.mm (cuBLAS)", "cublaslt": "torch.mm (cuBLASLt)"}
        routes: dict[str, Callable[[], AbstractContextManager[None]]] = {names[first]: nullcontext}
        if torch.backends.cuda.is_built():
            routes[names[other]] = partial(_blas, other)
        return routes

    def cache_bytes(self) -> dict[str, int]:
        return {"L2": self._properties.L2_cache_size}

    def energy_joules(self) -> float | str:
        energy = self._nvml.energy_joules()
        return str(energy) if isinstance(energy, _nvml.Reason) else energy


@contextlib.contextmanager
def _switched(path: str, value: object) -> Iterator[None]:
    """One switch of torch set to a value, and as it was afterwards."""
    owner, _, name = path.rpartition(".")
    holder = attrgetter(owner)(torch)
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextlib.contextmanager
def _blas(library: str) -> Iterator[None]:
    """The library of matrix products set, and as it was afterwards."""
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(library)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():  # it warns that it does not see every wait
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def _setting(path: str) -> Any:
    """One switch of torch; what torch says where it refuses, as for old and new names mixed."""
    try:
        with warnings.catch_warnings():  # it warns of old names, which other code may have set
            warnings.simplefilter("ignore")
            value = attrgetter(path)(torch)
            value = value() if callable(value) else value
    except AttributeError:
        return "not in this PyTorch"
    except RuntimeError as error:
        return f"torch does not tell: {_sentence(error)}"
    return value if isinstance(value, (bool, int)) else str(value).rpartition(".")[2]


def _uuid(properties: Any) -> str | None:
    uuid = getattr(properties, "uuid", None)
    return None if uuid is None else str(uuid)


def _pci_bus_id(properties: Any) -> str | None:
    names = ("pci_domain_id", "pci_bus_id", "pci_device_id")
    if not all(hasattr(properties, name) for name in names):
        return None
    domain, bus, device = (getattr(properties, name) for name in names)
    return f"{domain:08x}:{bus:02x}:{device:02x}.0"


def _driver(nvml: _nvml.Nvml) -> str:
    """The driver's version: from the kernel module, or else from NVML."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text):
            return match[0]
    return nvml.driver()


def _cublas() -> str:
    """The version of cuBLAS: torch does not tell, the package that it is installed with does."""
    major = (torch.version.cuda or "").split(".")[0]
    for name in ("nvidia-cublas", f"nvidia-cublas-cu{major}"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "torch does not tell"


def _sentence(error: BaseException) -> str:
    """The first line of what went wrong, as one sentence."""
    return f"{first_line(error)}."
