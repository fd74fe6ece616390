"""A run of a shipped suite as an H100 would leave it: made up, and never shown as a measurement.

Cases, costs and reasons are those of the package. Times follow a roofline, what a host takes to
launch a format, and a little noise; whatever the host launches more slowly is launch-bound and has
a graph's time beside it, or the reason why it has none. A starved case has a graph's time alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from _synthetic import projection_case, result

from hwbench import plugins, suite
from hwbench.formats._base import Format
from hwbench.meters._sampling import LAUNCH_BOUND
from hwbench.records import (
    SCHEMA,
    Case,
    Environment,
    Footer,
    Header,
    Measurement,
    Planned,
    Result,
    Status,
)
from hwbench.store import Run
from hwbench.workloads._base import DTYPES, Workload

NAME = "20260102-030405-linear-cuda-h100"
NO_GRAPH = "It cannot be captured as a graph: operation not permitted when stream is capturing."
STARVED = "In 14 of 42 samples the device began before the host had launched the last call."
CAUSE = "the SM clock went from 1980 to 1605 MHz"
WATTS = 640.0
REPLICATES = 3
_TIMES = ("time_seconds", "relative_time")
_FLOPS_PER_SECOND, _BYTES_PER_SECOND, _LAUNCH_SECONDS = 7.6e14, 2.95e12, 2.1e-6
# what a host takes to launch a forward pass, the kernels' time over the roofline's
_MANNERS: dict[str, tuple[float, float]] = {
    "dense": (8e-6, 1.1), "coo": (4e-5, 40.0), "csr": (3e-5, 25.0), "semi_structured": (7e-5, 1.6),
    "low_rank": (1.6e-5, 1.4), "monarch": (3e-5, 1.9), "btt": (3.6e-5, 2.4), "blast": (6e-5, 2.9),
}  # fmt: skip

CEILINGS: dict[str, Any] = {
    "form": "full",
    "measured": "2026-01-02T02:59:00+00:00",
    "matmul": {
        "bfloat16": {"flops_per_second": _FLOPS_PER_SECOND, "shape": [8192] * 3,
                     "library": "cublaslt", "sm_clock_hertz": 1.755e9,
                     "sweep": [{"shape": [4096] * 3, "flops_per_second": 7.1e14}]},
        "float16_accumulate_float32": {"flops_per_second": 7.4e14, "shape": [8192] * 3},
        "float32_ieee": {"flops_per_second": 5.1e13, "shape": [8192] * 3},
        "float32_tf32": {"flops_per_second": 3.9e14, "shape": [8192] * 3},
    },
    "copy": {"bytes_per_second": _BYTES_PER_SECOND, "working_set_bytes": 2_000_000_000},
    "triad": {"bytes_per_second": 3.02e12, "working_set_bytes": 2_000_000_000},
    "levels": [
        {"name": "L2", "bytes_per_second": 5.6e12, "working_set_bytes": [1_048_576, 29_000_000]},
        {"name": "memory", "bytes_per_second": _BYTES_PER_SECOND,
         "working_set_bytes": [120_000_000, 2_000_000_000]},
    ],
    "launch": {"seconds": _LAUNCH_SECONDS, "host_seconds": 3.9e-6, "graph_seconds": 4.4e-6,
               "graph_kernel_seconds": 1.3e-6},
    "disturbed": 0.02,
}  # fmt: skip

DEVICE: dict[str, Any] = {
    "name": "NVIDIA H100 80GB HBM3",
    "compute_capability": "9.0",
    "multiprocessors": 132,
    "l2_bytes": 52_428_800,
    "memory_bytes": 84_930_000_000,
    "driver": "580.1",
    "cuda_runtime": "13.0",
    "cublas": "13.1.0.3",
    "cudnn": 91501,
    "cusparselt": 800,
    "power_limit_watts": 700.0,
    "max_sm_clock_hertz": 1.98e9,
    "max_memory_clock_hertz": 2.619e9,
    "ecc": "on",
    "mig": False,
}


def cuda_run(name: str = NAME, *, slower: float = 1.0, seed: int = 0) -> Run:
    """A complete run of ``linear``; ``slower`` is a factor on the times of low_rank."""
    asked = suite.build(suite.read("linear"), "cuda")
    run = Run(path=Path(f"{name}.jsonl"), header=_header(name, asked))
    rng = random.Random(seed)
    for case in asked.cases:
        run.planned[case.id] = _planned(case)
    for replicate in range(REPLICATES):
        for planned in run.planned.values():
            run.results += _results(planned, replicate, slower, rng)
    run.footer = Footer(
        finished="2026-01-02T03:10:12+00:00", wall_seconds=367.0, state=_state(1.605e9, 71.0, True)
    )
    return run


def _planned(case: Case) -> Planned:
    workload = plugins.load("workloads", case.workload, Workload)()
    described = plugins.load("formats", case.format, Format).from_knobs(
        case.out_features, case.in_features, **case.knobs
    )
    reason = None
    if case.format == "semi_structured" and case.direction == "step":
        reason = described.unsupported("cuda", DTYPES[case.dtype], "step")
        assert reason
    return Planned(
        case=case,
        resolved=described.knobs(),
        kernel=described.kernel,
        density=described.density(),
        cost=workload.cost(case, described),
        unsupported=reason,
        seeds=workload.seeds(case),
    )


def _results(
    planned: Planned, replicate: int, slower: float, rng: random.Random
) -> Iterator[Result]:
    case = planned.case
    if planned.seeds is not None:
        if replicate < planned.seeds:
            density = case.knobs.get("density")
            shape = (case.out_features, case.in_features)
            like = projection_case(case.format, density, shape)  # type: ignore[arg-type]
            made = Planned(case=like, density=planned.density)
            found = result(made, replicate, rng)
            yield Result(
                case=case.id, replicate=replicate, seed=found.seed, status=found.status,
                measurements=found.measurements,
            )  # fmt: skip
        return
    shared: dict[str, Any] = {"case": case.id, "replicate": replicate, "seed": replicate}
    if planned.unsupported:
        yield Result(status=Status.UNSUPPORTED, reason=planned.unsupported, **shared)
        return
    yield _timed(planned, replicate, slower, rng, shared)


def _timed(
    planned: Planned, replicate: int, slower: float, rng: random.Random, shared: dict[str, Any]
) -> Result:
    case = planned.case
    seconds, dense = (_seconds(planned, name) for name in (case.format, "dense"))
    seconds *= slower if case.format == "low_rank" else 1.0
    host = _MANNERS[case.format][0] * (6 if case.direction == "step" else 1)
    hurt = case.format == "blast" and case.tokens == 4096
    flags = ["disturbed"] if hurt else []
    samples = [[seconds * rng.lognormvariate(0, 0.004) for _ in range(6)] for _ in range(7)]
    values = [median(block) for block in samples]
    common: dict[str, Any] = {
        "contract": "event", "calls": max(1, round(5e-4 / seconds)), "stopped": "precision",
        "rounds": list(range(7)),
        "disturbed": [number < 5 for number in range(7)] if hurt else None,
    }  # fmt: skip
    found = [
        Measurement(quantity="numerical_error", unit="", values=[0.0021]),
        Measurement(
            quantity="time_seconds", unit="s", values=values, samples=samples,
            note=CAUSE if hurt else None, **common,
        ),
        Measurement(quantity="host_seconds", unit="s", values=[host], contract="wall"),
    ]  # fmt: skip
    if case.format != "dense":
        relative = [value / dense for value in values]
        found.append(Measurement(quantity="relative_time", unit="×", values=relative, **common))
    if host >= LAUNCH_BOUND * seconds:
        flags.append("launch_bound")
        found.append(_graph(case, seconds))
    if case.format == "monarch" and case.tokens == 1:
        flags.append("starved")
        found = [_without_value(each) if each.quantity in _TIMES else each for each in found]
    if replicate == 0:
        joules = WATTS * max(seconds, host / 3)
        found.append(Measurement(quantity="energy_joules", unit="J", values=[joules], calls=4000))
    return Result(status=Status.OK, flags=flags, measurements=found, **shared)


def _without_value(timed: Measurement) -> Measurement:
    return Measurement(
        quantity=timed.quantity, unit=timed.unit, values=[], contract="event", note=STARVED
    )


def _graph(case: Case, seconds: float) -> Measurement:
    if case.format == "blast" and case.direction == "step":
        return Measurement(quantity="graph_seconds", unit="s", values=[], note=NO_GRAPH)
    values = [0.97 * seconds] * 3
    return Measurement(
        quantity="graph_seconds", unit="s", values=values, contract="graph", calls=20
    )


def _seconds(planned: Planned, name: str) -> float:
    """The kernels' time: the longer of FLOPs and bytes, and a launch for each."""
    assert planned.cost is not None
    cost, manner = planned.cost, _MANNERS[name][1]
    flops = cost.dense_flops if name == "dense" else cost.flops
    moved = cost.compulsory_bytes + cost.intermediate_bytes
    if name == "dense":
        case = planned.case
        sides, passes = case.out_features + case.in_features, 3 if case.direction == "step" else 1
        moved = passes * 2 * (case.out_features * case.in_features + (case.tokens or 0) * sides)
    return manner * max(flops / _FLOPS_PER_SECOND, moved / _BYTES_PER_SECOND) + _LAUNCH_SECONDS


def _header(name: str, asked: Any) -> Header:
    return Header(
        schema=SCHEMA,
        run=name,
        created="2026-01-02T03:04:05+00:00",
        version="0.1.0",
        suite=asked.name,
        about=asked.about,
        plan=type(asked.plan)(replicates=REPLICATES),
        seed=0,
        device="cuda",
        environment=Environment(
            fingerprint={
                "device": DEVICE,
                "host": {"system": "Linux", "python": "3.12.3", "virtual": True},
                "torch": "2.11.0+cu130",
                "hwbench": "0.1.0",
                "threads": 16,
            },
            state=_state(1.98e9, 38.0, False),
            settings={"threads": 16, "fp32_precision": "none", "matmul.allow_tf32": False},
        ),
        ceilings=CEILINGS,
        arguments={"suite": "linear", "replicates": REPLICATES, "energy": True},
    )


def _state(clock_hertz: float, celsius: float, loaded: bool) -> dict[str, Any]:
    return {
        "uuid": "GPU-made-up",
        "visible_devices": "all",
        "free_bytes": 83_900_000_000,
        "sm_clock_hertz": clock_hertz,
        "memory_clock_hertz": 2.619e9,
        "temperature_celsius": celsius,
        "power_watts": WATTS if loaded else 71.2,
        "power_meaning": "instant",
        "clocks_event_reasons": ["power cap"] if loaded else ["idle"],
        "throttled_seconds": {"power_cap_seconds": 12.5 if loaded else 0.0, "thermal_seconds": 0.0},
        "persistence": "on",
        "other_processes": [],
        "host": {"load_1min": 1.02},
    }
