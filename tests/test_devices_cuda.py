"""The GPU: what can be told without one, and (marked cuda) every promise of devices/cuda.py."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from hwbench.devices import cuda
from hwbench.devices.cuda import Cuda
from hwbench.errors import DeviceError

MIB = 1024**2

# --- without a GPU -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hip", "words"), [(None, "is built without CUDA"), ("6.4", "is built for ROCm")]
)
def test_a_torch_without_cuda_is_said_to_be_that(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert Cuda.count() == 0
    assert words in Cuda.missing()
    assert "install a CUDA build" in Cuda.missing()


@pytest.fixture
def built_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)


@pytest.mark.usefixtures("built_with_cuda")
def test_a_missing_driver_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert Cuda.missing().startswith("There is no NVIDIA driver here")


@pytest.mark.usefixtures("built_with_cuda")
def test_hidden_devices_are_said_to_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Cuda.missing() == "CUDA_VISIBLE_DEVICES='' shows no NVIDIA device to this process."


@pytest.mark.usefixtures("built_with_cuda")
def test_a_driver_without_a_device_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old.\nUpdate it.")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert Cuda.missing() == (
        "The NVIDIA driver shows no device to this process: "
        "The NVIDIA driver on your system is too old."
    )


@pytest.mark.usefixtures("built_with_cuda")
def test_counting_asks_torch_once_and_keeps_its_warnings_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def device_count() -> int:
        import warnings

        warnings.warn("Can't initialize NVML", stacklevel=1)
        return 3

    monkeypatch.setattr(torch.cuda, "device_count", device_count)
    assert Cuda.count() == 3


def test_a_torch_that_cannot_occupy_the_queue_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "_sleep")
    with pytest.raises(DeviceError, match="no torch.cuda._sleep"):
        Cuda()


def test_switches_are_recorded_by_each_name_and_reasons_where_torch_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = {name: cuda._setting(path) for name, path in cuda._SETTINGS.items()}
    assert result["threads"] == torch.get_num_threads()
    assert result["matmul.allow_tf32"] is torch.backends.cuda.matmul.allow_tf32
    assert result["float32_matmul_precision"] in ("highest", "high", "medium")
    assert "not in this PyTorch" not in result.values()

    def mixed() -> str:
        raise RuntimeError("mix of the legacy and new APIs.\nmore")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    refused = cuda._setting("get_float32_matmul_precision")
    assert refused == "torch does not tell: mix of the legacy and new APIs."
    assert cuda._setting("backends.cuda.matmul.gone") == "not in this PyTorch"


@pytest.mark.parametrize(("set_to", "other"), [("Cublas", "cublaslt"), ("Cublaslt", "cublas")])
def test_products_go_through_both_libraries_and_the_setting_is_put_back(
    monkeypatch: pytest.MonkeyPatch, set_to: str, other: str
) -> None:
    arguments: list[str] = [f"_BlasBackend.{set_to}"]

    def preferred(library: str | None = None) -> str:
        arguments.extend([library] if library else [])
        return arguments[-1]

    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", preferred)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    device: Cuda = object.__new__(Cuda)
    actual = device.matmul_libraries("float32")
    first, second = actual
    assert first.lower() == f"torch.mm ({set_to.lower()})"
    assert second.lower() == f"torch.mm ({other})"
    with actual[first]():
        assert len(arguments) == 1
    with actual[second]():
        assert arguments[-1] == other
    assert arguments[-1] == f"_BlasBackend.{set_to}"
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert list(device.matmul_libraries("float32")) == [first]


def test_the_address_is_written_as_nvml_wants_it() -> None:
    properties = SimpleNamespace(pci_domain_id=1, pci_bus_id=0x3B, pci_device_id=2, uuid="ab-cd")
    assert cuda._pci_bus_id(properties) == "00000001:3b:02.0"
    assert cuda._uuid(properties) == "ab-cd"
    assert cuda._pci_bus_id(SimpleNamespace()) is cuda._uuid(SimpleNamespace()) is None


# --- with a GPU --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened() -> Iterator[Cuda]:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device that torch can use")
    yield Cuda()
    torch.cuda.empty_cache()


@pytest.fixture
def device(opened: Cuda) -> Cuda:
    opened.synchronize()
    return opened


@pytest.mark.cuda
def test_the_device_is_counted_and_opened(device: Cuda) -> None:
    assert Cuda.count() == torch.cuda.device_count() >= 1
    assert device.torch_device == torch.device("cuda", 0)
    with pytest.raises(DeviceError, match=r"cannot be opened: .+\.$"):
        Cuda(Cuda.count())
    assert torch.cuda.current_device() == 0
    assert torch.ones(2, device=device.torch_device).sum().item() == 2.0


@pytest.mark.cuda
def test_what_is_told_of_the_gpu_can_be_stored(device: Cuda) -> None:
    info = device.info()
    assert info["name"] == torch.cuda.get_device_name(0)
    assert float(info["compute_capability"]) >= 7.0
    assert info["multiprocessors"] > 0
    assert info["l2_bytes"] >= MIB
    assert info["memory_bytes"] > 2**30
    assert info["cuda_runtime"] == torch.version.cuda
    assert info["driver"][0].isdigit()
    assert msgspec.json.encode([info, device.state(), device.settings(), device.probe()])
    assert device.info() == info
    assert "not in this PyTorch" not in device.settings().values()


@pytest.mark.cuda
def test_nvml_reads_the_same_card(device: Cuda) -> None:
    if device._nvml.missing is not None:
        pytest.skip(device._nvml.missing)
    state, info = device.state(), device.info()
    assert 1e8 < state["sm_clock_hertz"] <= 1.1 * info["max_sm_clock_hertz"] < 1e10
    assert 0 < state["temperature_celsius"] < 120
    assert 1 < state["power_watts"] < 3000
    assert isinstance(state["clocks_event_reasons"], list)


@pytest.mark.cuda
def test_a_mark_does_not_wait_and_seconds_does(device: Cuda) -> None:
    device.prefill(0.01)  # calibrates
    device.synchronize()
    start = device.mark()
    device.prefill(0.05)
    begun = time.perf_counter()
    end = device.mark()
    assert time.perf_counter() - begun < 0.02
    assert not end.query()
    spun = device.seconds(start, end)
    assert end.query()
    assert 0.025 < spun < 0.5
    assert device.seconds(start, start) == 0.0


@pytest.mark.cuda
def test_marks_are_in_order_of_the_queue(device: Cuda) -> None:
    x = torch.ones(1024, 1024, device=device.torch_device)
    marks = [device.mark()]
    for _ in range(5):
        device.run(lambda _: x @ x, [None] * 10)
        marks.append(device.mark())
    spans = [device.seconds(marks[0], mark) for mark in marks]
    assert spans == sorted(spans)
    assert spans[1] > 0


@pytest.mark.cuda
def test_a_filled_queue_lets_the_host_run_ahead(device: Cuda) -> None:
    x = torch.ones(16, device=device.torch_device)
    device.run(lambda _: x.add_(1), [None] * 10)
    device.prefill(0.01)
    device.synchronize()
    device.prefill(0.05)
    start = device.mark()
    device.run(lambda _: x.add_(1), [None] * 100)
    assert not start.query()
    device.synchronize()


@pytest.mark.cuda
def test_the_queue_is_never_occupied_for_long(device: Cuda) -> None:
    start = device.mark()
    device.prefill(3600.0)
    assert device.seconds(start, device.mark()) < 2.0


@pytest.mark.cuda
def test_eviction_writes_twice_the_last_level_cache_and_allocates_once(device: Cuda) -> None:
    device.evict_caches()
    buffer = device._evict
    assert buffer is not None
    before = buffer.clone()
    allocated = torch.cuda.memory_allocated()
    device.evict_caches()
    assert device._evict is buffer
    assert torch.cuda.memory_allocated() == allocated
    assert buffer.nbytes >= max(256_000_000, 2 * device.info()["l2_bytes"])
    assert bool((buffer == before + 1).all())


@pytest.mark.cuda
def test_free_bytes_count_what_the_allocator_can_use_again(device: Cuda) -> None:
    torch.cuda.empty_cache()
    before = device.free_bytes()
    block = torch.empty(512 * MIB, dtype=torch.uint8, device=device.torch_device)
    held = device.free_bytes()
    del block
    assert before - held == pytest.approx(512 * MIB, abs=16 * MIB)
    assert torch.cuda.memory_reserved() >= 512 * MIB
    assert device.free_bytes() == pytest.approx(before, abs=16 * MIB)


@pytest.mark.cuda
def test_peak_of_a_dense_linear_is_its_output_exactly(device: Cuda) -> None:
    weight = torch.ones(1024, 512, device=device.torch_device)
    x = torch.ones(64, 512, device=device.torch_device)
    assert device.peak_bytes(lambda: x @ weight.T) == 4 * 64 * 1024
    assert device.peak_bytes(lambda: x.neg().exp()) == 2 * x.nbytes
    assert device.peak_bytes(x.neg_) == 0


@pytest.mark.cuda
def test_memory_of_the_first_call_alone_is_not_in_the_peak(device: Cuda) -> None:
    kept: list[torch.Tensor] = []

    def call() -> None:
        if not kept:
            kept.append(torch.empty(64 * MIB, dtype=torch.uint8, device=device.torch_device))
        torch.empty(4096, dtype=torch.uint8, device=device.torch_device)

    assert device.peak_bytes(call) == 4096


@pytest.mark.cuda
def test_own_memory_is_not_taken_for_that_of_others(device: Cuda) -> None:
    before = device.probe()
    block = torch.empty(1024 * MIB, dtype=torch.uint8, device=device.torch_device)
    after = device.probe()
    del block
    assert not any("others" in cause for cause in device.disturbance(before, after, 0.1))
    torch.cuda.empty_cache()


@pytest.mark.cuda
def test_a_captured_call_is_replayed(device: Cuda) -> None:
    x = torch.zeros(8, device=device.torch_device)
    replay = device.capture(lambda: x.add_(1))
    assert not isinstance(replay, str), replay
    device.synchronize()
    before = x[0].item()
    for _ in range(3):
        replay()
    assert x[0].item() == before + 3


@pytest.mark.cuda
def test_a_captured_step_with_its_backward_pass_is_replayed(device: Cuda) -> None:
    x = torch.randn(4, 8, device=device.torch_device)
    weight = torch.randn(6, 8, device=device.torch_device, requires_grad=True)
    actual = torch.zeros(6, 8, device=device.torch_device)

    def step() -> None:
        y = torch.nn.functional.linear(x, weight)
        actual.copy_(torch.autograd.grad(y, weight, torch.ones_like(y))[0])

    replay = device.capture(step)
    assert not isinstance(replay, str), replay
    x.fill_(2.0)
    replay()
    assert torch.equal(actual, torch.full_like(actual, 8.0))


def _waits_for_a_value(x: torch.Tensor) -> Any:
    return x.sum().item()


def _waits_for_the_device(x: torch.Tensor) -> Any:
    y = x + 1
    torch.cuda.synchronize()
    return y


def _fails_on_its_own(x: torch.Tensor) -> Any:
    raise RuntimeError("broken step.")


def _fails_in_its_own_way(x: torch.Tensor) -> Any:
    raise AssertionError("a shape that it does not like.")


FAILING = [_waits_for_a_value, _waits_for_the_device, _fails_on_its_own, _fails_in_its_own_way]


@pytest.mark.cuda
@pytest.mark.parametrize("call", FAILING)
def test_a_failed_capture_has_a_reason_and_leaves_cuda_as_it_was(
    device: Cuda, call: Callable[[torch.Tensor], Any]
) -> None:
    x = torch.ones(1024, device=device.torch_device)
    stream, mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
    reason = device.capture(lambda: call(x))
    assert isinstance(reason, str)
    assert reason.startswith("It cannot be captured as a graph: ")
    assert reason.endswith(".")
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == mode
    assert not torch.cuda.is_current_stream_capturing()
    assert x.sum().item() == 1024.0
    assert torch.randn(8, device=device.torch_device).isfinite().all()  # the default generator
    block = torch.empty(256 * MIB, dtype=torch.uint8, device=device.torch_device)
    reserved = torch.cuda.memory_reserved()
    del block
    torch.cuda.empty_cache()  # frees nothing while the allocator believes in a capture
    assert torch.cuda.memory_reserved() <= reserved - 256 * MIB
    again = device.capture(lambda: x.add_(1))
    assert not isinstance(again, str), again


@pytest.mark.cuda
def test_a_graph_keeps_alive_what_it_reads(device: Cuda) -> None:
    total = torch.zeros(1, device=device.torch_device)

    def captured() -> Any:
        part = torch.full((256 * 1024,), 3.0, device=device.torch_device)
        return device.capture(lambda: total.copy_(part.sum()))

    replay = captured()
    assert not isinstance(replay, str), replay
    torch.full((256 * 1024,), 5.0, device=device.torch_device)  # would take its place
    replay()
    assert total.item() == 3.0 * 256 * 1024


@pytest.mark.cuda
def test_energy_grows_with_work(device: Cuda) -> None:
    before = device.energy_joules()
    if isinstance(before, str):
        pytest.skip(before)
    x = torch.randn(4096, 4096, device=device.torch_device)
    begun = time.perf_counter()
    while time.perf_counter() - begun < 1.0:
        x @ x  # the product itself is not needed
        device.synchronize()
    after = device.energy_joules()
    assert isinstance(after, float)
    assert 5.0 < after - before < 5000.0
