"""What the numbers of a GPU are worth: each check by itself, a JSON line as soon as it is known.

``python evidence/gpu_contract.py --out contract.jsonl`` on a GPU takes a minute or two. Times are
taken here anew, with a device's own marks, so that hwbench's sampling loop is among what is
checked. ``--device cpu`` rehearses it with small layers; what needs a GPU says "not on cpu" there.

* ``gaps``: every format in every dtype, forward and step: which operators PyTorch lacks. A format
  that has none of the densities is taken as its kernels have it where nothing else is asked for.
* ``prefill``: a time must not depend on how long the queue is filled before it starts.
* ``graph``: event, graphs of 1 and of 20 calls, and the profiler must agree within 3 %.
* ``two_four``: 2:4 with and without the copy that puts its result in order, and at its best.
* ``fused``: the fused kernels, right and beside ``bmm`` and dense, or why a layer cannot have one.
* ``cold``: a call after hwbench's eviction, and after one that leaves dirty lines behind.
* ``nvml``: what a probe costs, how often energy is counted, what a quiet card is accused of.
* ``roof``: large dense layers over the measured matrix rate.
* ``facts``: what the machine is, and what it says of itself; not among those taken by default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from hwbench import plugins
from hwbench.devices._base import Device
from hwbench.errors import KnobError, UnreachableError, first_line
from hwbench.formats._base import Format, Linear
from hwbench.meters._ceilings import measure_ceilings

Row = dict[str, Any]
Checks = Iterator[tuple[str, Callable[[], Row]]]
Step = Callable[[], object]

HOST_CALLS = 10  # launches into an empty queue, whose median is the host's time
SAMPLE_SECONDS = 5e-4  # of calls between two marks
MOST_CALLS = 256  # … and the most of them: about a thousand launches fit into a queue
SPENT_SECONDS = 0.02  # on the samples of one figure
FACTORS = (0.5, 1.0, 2.0, 4.0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DENSITIES = (0.5, 0.1)
DIRECTIONS = ("forward", "step")
GAPS_SIDE = 256
BLOCKS, BLOCK_SECONDS = 20, 0.025
COUNTER_SECONDS = 1.5
FOREIGN_BYTES = 256_000_000
PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "pandas", "msgspec", "typer", "rich", "pytest"),
    *("pytest-xdist", "pytest-timeout", "hypothesis", "nvidia-ml-py", "nvidia-cusparselt-cu13"),
)


@dataclass(frozen=True)
class Bench:
    """The device with the sizes that suit it."""

    device: Device
    side: int
    dtype: torch.dtype
    few: int
    some: int
    many: int

    @property
    def gpu(self) -> bool:
        """Whether calls return before their work is done."""
        return self.device.asynchronous

    def layer(self, name: str, tokens: int, **knobs: Any) -> tuple[Linear, torch.Tensor]:
        """A random layer without gradients, and its input.

        Raises:
            LookupError: it cannot run here; the message is the reason.
        """
        described = format_of(name, self.side, **knobs)
        if reason := described.unsupported(self.device.kind, self.dtype, "forward"):
            raise LookupError(reason)
        source = torch.Generator(self.device.torch_device).manual_seed(0)
        layer_ = described.random(dtype=self.dtype, generator=source)
        x = torch.randn(tokens, self.side, generator=source, device=self.device.torch_device)
        return layer_.requires_grad_(requires_grad=False), x.to(self.dtype)

    def step(self, name: str, tokens: int, **knobs: Any) -> Step:
        """One call of such a layer."""
        return partial(*self.layer(name, tokens, **knobs))


def format_of(name: str, side: int, **knobs: Any) -> Format:
    """A square format."""
    return plugins.load("formats", name, Format).from_knobs(side, side, **knobs)


def host_seconds(device: Device, step: Step) -> float:
    """The host's time to launch one call into an empty queue."""
    samples = []
    for _ in range(HOST_CALLS):
        device.synchronize()
        begun = time.perf_counter()
        step()
        samples.append(time.perf_counter() - begun)
    device.synchronize()
    return median(samples)


def sampled(
    device: Device, step: Step, calls: int, fill: float, before: Step | None = None
) -> tuple[float, bool]:
    """Seconds a call between two marks, and whether the host was ahead of them all the time."""
    if before is not None:
        before()
    device.prefill(fill)
    start = device.mark()
    device.run(lambda _: step(), [None] * calls)
    end = device.mark()
    # While the first mark still waits in the queue, every call after it is in the queue as well.
    ahead = not start.query() if device.asynchronous else True
    return device.seconds(start, end) / calls, ahead


def timed(bench: Bench, step: Step, factor: float = 2.0) -> tuple[float, float]:
    """Seconds a call, and the share of samples that the host was ahead of.

    The queue is filled ``factor`` times as long as the host takes to launch the calls.
    """
    step()
    host = host_seconds(bench.device, step) if bench.gpu else 0.0
    one, _ = sampled(bench.device, step, 1, max(2e-5, 2 * host))
    calls = max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / one)))
    count = max(5, min(40, round(SPENT_SECONDS / (one * calls))))
    samples = [sampled(bench.device, step, calls, factor * host * calls) for _ in range(count)]
    return median(value for value, _ in samples), sum(ahead for _, ahead in samples) / count


def seconds(bench: Bench, step: Step) -> float:
    """Seconds a call."""
    return timed(bench, step)[0]


def error(y: torch.Tensor, layer: Linear, x: torch.Tensor) -> float:
    """The relative error against float64."""
    exact = x.double() @ layer.to_dense().double().mT
    return float((y.double() - exact).norm() / exact.norm())


# --- the checks -------------------------------------------------------------------------------


def gaps(bench: Bench) -> Checks:
    """Forward and step of every format's kernels; the compiled ones have a check of their own."""
    for name in plugins.names("formats"):
        yield name, partial(_gaps, bench, name)


def _gaps(bench: Bench, name: str) -> Row:
    kernels = [each for each in kernels_of(name) if not each.startswith("triton")]
    ran, refused, failed = 0, list[str](), {}
    for kernel in kernels:
        try:
            offered = formats_of(name, kernel)
        except KnobError as reason:
            refused.append(first_line(reason))
            continue
        for (density, described), dtype, direction in product(offered.items(), DTYPES, DIRECTIONS):
            if words := described.unsupported(bench.device.kind, dtype, direction):
                refused.append(words)
            elif wrong := _failed(bench, described, dtype, direction):
                case = (kernel, density, str(dtype).removeprefix("torch."), direction)
                failed[" ".join(filter(None, case))] = wrong
            else:
                ran += 1
    row: Row = {"ran": ran, "unsupported": len(refused), "failed": failed}
    return row | ({"reason": refused[0]} if refused else {})


def kernels_of(name: str) -> tuple[str, ...]:
    """The kernels of a format."""
    return plugins.load("formats", name, Format).KERNELS


def formats_of(name: str, kernel: str) -> dict[str, Format]:
    """Small square formats of a kernel, by the words of the density that each has.

    One that can have none of the densities, as codes of all weights, is there as it is by itself.

    Raises:
        KnobError: the kernel cannot have this shape.
    """
    reached = {}
    for density in DENSITIES:
        with contextlib.suppress(UnreachableError):
            described = format_of(name, GAPS_SIDE, kernel=kernel, density=density)
            reached[f"density {density}"] = described
    return reached or {"": format_of(name, GAPS_SIDE, kernel=kernel)}


def _failed(bench: Bench, described: Format, dtype: torch.dtype, direction: str) -> str | None:
    """Why one call failed; None where it did not."""
    device, training = bench.device, direction == "step"
    try:
        source = torch.Generator(device.torch_device).manual_seed(0)
        layer = described.random(dtype=dtype, generator=source)
        x = torch.randn(32, GAPS_SIDE, generator=source, device=device.torch_device).to(dtype)
        with torch.set_grad_enabled(training):
            y = layer(x.requires_grad_(training))
            if training:
                y.sum().backward()
        device.synchronize()
    except Exception as wrong:  # noqa: BLE001 (it is what is asked for)
        return first_line(wrong)
    return None


def prefill(bench: Bench) -> Checks:
    """Where the times for 1 and 4 differ, or the host was not ahead, the queue ran dry."""
    half = {"density": 0.5}
    cases: tuple[tuple[str, int, Row], ...] = (
        ("dense", 1, {}), ("low_rank", 1, half), ("btt", 1, half),
        ("btt", bench.few, {**half, "kernel": "triton"}), ("semi_structured", bench.few, {}),
        ("dense", bench.many, {}),
    )  # fmt: skip
    for name, tokens, knobs in cases:
        yield titled(name, tokens, knobs), partial(_prefilled, bench, name, tokens, knobs)


def _prefilled(bench: Bench, name: str, tokens: int, knobs: Row) -> Row:
    if not bench.gpu:
        return {"said": "not on cpu"}
    step = bench.step(name, tokens, **knobs)
    step()
    row: Row = {"host_seconds": host_seconds(bench.device, step)}
    for factor in FACTORS:
        row[f"x{factor:g}_seconds"], row[f"x{factor:g}_ahead"] = timed(bench, step, factor)
    return row


def graph(bench: Bench) -> Checks:
    """A step launched, replayed alone and in twenties, and seen by the profiler."""
    half = {"density": 0.5}
    cases: tuple[tuple[str, int, Row], ...] = (
        ("dense", 1, {}), ("dense", bench.some, {}), ("low_rank", bench.few, half),
        ("monarch", bench.some, half), ("btt", bench.some, {**half, "kernel": "triton"}),
        ("dense", 2 * bench.many, {}),
    )  # fmt: skip
    for name, tokens, knobs in cases:
        yield titled(name, tokens, knobs), partial(_graphed, bench, name, tokens, knobs)


def _graphed(bench: Bench, name: str, tokens: int, knobs: Row) -> Row:
    step = bench.step(name, tokens, **knobs)
    row: Row = {"event_seconds": seconds(bench, step)}
    for calls in (1, 20):
        replay = bench.device.capture(partial(_repeated, step, calls))
        if isinstance(replay, str):
            row["graph"] = replay
            break
        row[f"graph{calls}_seconds"] = seconds(bench, replay) / calls
    times, _ = kernels(bench, step, 20)
    return row | ({"profiler_seconds": sum(times.values()) / 20} if bench.gpu else {})


def _repeated(step: Step, calls: int) -> None:
    for _ in range(calls):
        step()


def kernels(bench: Bench, step: Step, calls: int) -> tuple[dict[str, float], list[str]]:
    """Seconds of each kernel of a GPU in all, and their names; nothing on a CPU."""
    if not bench.gpu:
        return {}, []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        _repeated(step, calls)
        bench.device.synchronize()
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    times = {event.key: 1e-6 * event.self_device_time_total for event in events}
    return times, sorted(times)


def two_four(bench: Bench) -> Checks:
    """Dense beside 2:4 as hwbench runs it, and the product that torch offers in every manner."""
    for tokens in (bench.few, bench.some, bench.many, 2 * bench.many):
        yield f"{tokens} tokens", partial(_two_four, bench, tokens)
        yield f"{tokens} tokens, at its best", partial(_best_two_four, bench, tokens)
    for kernel in ("compress", "static_sort"):
        yield f"training kernel={kernel}", partial(_training, bench, kernel)


def _two_four(bench: Bench, tokens: int) -> Row:
    from torch.sparse import to_sparse_semi_structured

    if not bench.gpu:
        return {"said": "not on cpu"}
    layer, x = bench.layer("semi_structured", tokens)
    row: Row = {
        "dense_seconds": seconds(bench, bench.step("dense", tokens)),
        "hwbench_seconds": seconds(bench, partial(layer, x)),
        "hwbench_error": error(layer(x), layer, x),
    }
    packed = to_sparse_semi_structured(layer.to_dense())
    multiply = partial(functional.linear, x, packed)
    row["view_seconds"] = seconds(bench, multiply)
    row["copied_seconds"] = seconds(bench, lambda: multiply().contiguous())
    row["view_is_contiguous"] = multiply().is_contiguous()
    return row | {"kernels": kernels(bench, multiply, 1)[1]}


def _best_two_four(bench: Bench, tokens: int) -> Row:
    """With the transposition in the product, where that is a choice, and the best algorithm."""
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    if not bench.gpu:
        return {"said": "not on cpu"}
    layer, x = bench.layer("semi_structured", tokens)
    row: Row = {}
    packed = to_sparse_semi_structured(layer.to_dense())
    multiply = partial(functional.linear, x, packed)
    if hasattr(SparseSemiStructuredTensor, "_FUSE_TRANSPOSE"):
        before = SparseSemiStructuredTensor._FUSE_TRANSPOSE  # noqa: SLF001
        SparseSemiStructuredTensor._FUSE_TRANSPOSE = True  # noqa: SLF001
        try:
            packed = to_sparse_semi_structured(layer.to_dense())
        finally:
            SparseSemiStructuredTensor._FUSE_TRANSPOSE = before  # noqa: SLF001
        multiply = partial(functional.linear, x, packed)
        row["fused_seconds"] = seconds(bench, multiply)
        row["fused_is_contiguous"] = multiply().is_contiguous()
    rows = functional.pad(x, (0, 0, 0, -tokens % 8))
    best = torch._cslt_sparse_mm_search(packed.packed, rows.t(), transpose_result=True)  # noqa: SLF001
    packed.alg_id_cusparselt = best
    row |= {"algorithm": best, "searched_seconds": seconds(bench, multiply)}
    row["searched_error"] = error(multiply(), layer, x)
    return row | {"searched_kernels": kernels(bench, multiply, 1)[1]}


def _training(bench: Bench, kernel: str) -> Row:
    if not bench.gpu:
        return {"said": "not on cpu"}
    described = format_of("two_four_training", bench.side, kernel=kernel)
    reason = described.unsupported(bench.device.kind, bench.dtype, "step")
    return {"said": reason or "it computes the right product"}


def fused(bench: Bench) -> Checks:
    """Right within the tolerance of the dtype, and the time of the usual kernel beside it."""
    for name in ("btt", "monarch", "blast"):
        for density in (0.5, 0.1):
            for tokens in (1, bench.few, bench.some, bench.many, 2 * bench.many):
                case = titled(name, tokens, {"density": density})
                yield case, partial(_fused, bench, name, density, tokens)


def _fused(bench: Bench, name: str, density: float, tokens: int) -> Row:
    row: Row = {}
    if not bench.gpu:
        return {"said": "not on cpu"}
    row["dense_seconds"] = seconds(bench, bench.step("dense", tokens))
    compiled = [each for each in kernels_of(name) if each.startswith("triton")]
    for kernel in ("bmm", *compiled):
        try:
            layer, x = bench.layer(name, tokens, density=density, kernel=kernel)
        except LookupError as reason:
            row[f"{kernel}_unsupported"] = str(reason)
            continue
        row[f"{kernel}_error"] = error(layer(x), layer, x)
        row[f"{kernel}_seconds"] = seconds(bench, partial(layer, x))
    return row


def cold(bench: Bench) -> Checks:
    """The bytes that an eviction without a later read would leave to be written back."""
    yield "dense, 1 token", partial(_cold, bench)


def _cold(bench: Bench) -> Row:
    device, step = bench.device, bench.step("dense", 1)
    written = torch.ones(FOREIGN_BYTES // 4, device=device.torch_device)
    evictions: dict[str, Step] = {"dirty": lambda: written.add_(1), "clean": device.evict_caches}
    row: Row = {"hot_seconds": seconds(bench, step)}
    for name, before in evictions.items():
        samples = [sampled(device, step, 1, 1e-4, before)[0] for _ in range(30)]
        row[f"cold_{name}_seconds"] = median(samples)
    return row


def nvml(bench: Bench) -> Checks:
    """Each of these takes a second or two, for the counters move slowly."""
    yield "probe", partial(_probe_cost, bench)
    yield "energy counter", partial(_energy_counter, bench)
    yield "disturbed at full load", partial(_accused, bench)


def _probe_cost(bench: Bench) -> Row:
    bench.device.probe()
    begun = time.perf_counter()
    for _ in range(20):
        counters = bench.device.probe()
    return {"probe_seconds": (time.perf_counter() - begun) / 20, "reads": sorted(counters)}


def _energy_counter(bench: Bench) -> Row:
    """How long the counter stands still between two changes, and the power that it means."""
    step = bench.step("dense", 2 * bench.many)
    last = bench.device.energy_joules()
    if isinstance(last, str):
        return {"said": last}
    moves: list[tuple[float, float]] = []
    until = time.perf_counter() + COUNTER_SECONDS
    while time.perf_counter() < until:
        sampled(bench.device, step, 2, 0.0)
        now = bench.device.energy_joules()
        if isinstance(now, float) and now != last:
            moves.append((time.perf_counter(), now))
            last = now
    if len(moves) < 3:
        return {"said": f"it moved {len(moves)} times in {COUNTER_SECONDS} s"}
    spans = [after[0] - before[0] for before, after in pairwise(moves)]
    (begun, first), (ended, final) = moves[0], moves[-1]
    watts = (final - first) / (ended - begun)
    return {"period_seconds": median(spans), "longest_seconds": max(spans), "watts": watts}


def _accused(bench: Bench) -> Row:
    """Equal blocks of the largest product; what is said to have disturbed them."""
    step, disturbances = bench.step("dense", 2 * bench.many), []
    for _ in range(BLOCKS):
        before, begun = bench.device.probe(), time.perf_counter()
        while time.perf_counter() - begun < BLOCK_SECONDS:
            sampled(bench.device, step, 2, 0.0)
        elapsed = time.perf_counter() - begun
        disturbances.append(bench.device.disturbance(before, bench.device.probe(), elapsed))
    causes = sorted({cause for each in disturbances for cause in each})
    return {"disturbed": sum(map(bool, disturbances)), "of": BLOCKS, "causes": causes}


def roof(bench: Bench) -> Checks:
    """Burst against burst: neither is what an hour of training reaches."""
    yield "dense over the measured matrix rate", partial(_roof, bench)


def _roof(bench: Bench) -> Row:
    dtype = str(bench.dtype).removeprefix("torch.")
    rate = measure_ceilings(bench.device, [dtype]).matmul[dtype].flops_per_second
    row: Row = {"roof_flops_per_second": rate}
    for tokens in (bench.some, bench.many, 2 * bench.many):
        reached = 2 * tokens * bench.side**2 / seconds(bench, bench.step("dense", tokens))
        row[f"share_of_{tokens}_tokens"] = reached / rate
    return row


def facts(bench: Bench) -> Checks:
    """Facts that no run file holds: packages, processors, and nvidia-smi's own words."""
    yield "software", _software
    yield "device", partial(_device, bench)
    yield "nvidia-smi", partial(_smi, bench)


def _software() -> Row:
    versions: Row = {"python": sys.version.split()[0], "system": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions | {"cores": len(os.sched_getaffinity(0))}


def _device(bench: Bench) -> Row:
    device = bench.device
    readings = {"info": device.info(), "state": device.state(), "settings": device.settings()}
    return readings | {"probe": device.probe(), "energy": device.energy_joules()}


def _smi(bench: Bench) -> Row:
    if not bench.gpu:
        return {"said": "not on cpu"}
    done = subprocess.run(
        ["nvidia-smi", "-q"], capture_output=True, text=True, timeout=20, check=True
    )
    return {"said": done.stdout.splitlines()}


CHECKS: dict[str, Callable[[Bench], Checks]] = {
    "gaps": gaps, "prefill": prefill, "graph": graph, "two_four": two_four, "fused": fused,
    "cold": cold, "nvml": nvml, "roof": roof,
}  # fmt: skip


def titled(name: str, tokens: int, knobs: Row) -> str:
    """A case in words."""
    words = "".join(f" {key}={value}" for key, value in knobs.items())
    return f"{name}{words}, {tokens} token{'' if tokens == 1 else 's'}"


def taken(name: str, check: Callable[[Bench], Checks], bench: Bench) -> Iterator[Row]:
    """A row for each case of a check, with the reason in it where there is no number."""
    for case, ask in check(bench):
        begun = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = ask()
        except LookupError as reason:
            answer = {"unsupported": str(reason)}
        except Exception as wrong:  # noqa: BLE001 (one check that fails is a finding, not the end)
            traceback.print_exc()
            answer = {"failed": f"{type(wrong).__name__}: {first_line(wrong)}"}
        yield {"check": name, "case": case, **answer, "took": round(time.monotonic() - begun, 2)}


def bench_of(device: str) -> Bench:
    """The device by its name, such as cuda:0; layers are small on a CPU."""
    kind, _, index = device.partition(":")
    device_ = plugins.load("devices", kind, Device)(int(index or 0))
    if device_.asynchronous:
        return Bench(device_, 4096, torch.bfloat16, few=16, some=512, many=4096)
    return Bench(device_, 256, torch.float32, few=4, some=16, many=64)


def main() -> None:
    """Take the checks in turn; what is known stays known when a later one is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=",".join(CHECKS))
    options = parser.parse_args()
    checks = {**CHECKS, "facts": facts}
    names = options.only.split(",")
    if unknown := [name for name in names if name not in checks]:
        raise SystemExit(f"--only takes {', '.join(checks)}, not {unknown[0]!r}.")
    bench = bench_of(options.device)
    with options.out.open("a", encoding="utf-8") as out:
        for name in names:
            for row in taken(name, checks[name], bench):
                print(json.dumps(row, default=str), file=out, flush=True)
                print(name, row["case"], f"{row['took']} s", flush=True)


if __name__ == "__main__":
    main()
