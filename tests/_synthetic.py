"""Runs made up in memory: plausible shapes of data, never to be shown as a measurement."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hwbench.records import (
    ITEM_BYTES,
    SCHEMA,
    Case,
    Cost,
    Environment,
    Footer,
    Header,
    Measurement,
    Plan,
    Planned,
    Result,
    Status,
)
from hwbench.store import Run

CEILINGS: dict[str, Any] = {
    "matmul": {
        "float32": {"flops_per_second": 1.1e11, "shape": [2048, 2048, 2048]},
        "bfloat16": {"flops_per_second": 2.3e11, "shape": [2048, 2048, 2048]},
    },
    "copy": {"bytes_per_second": 4.2e10, "working_set_bytes": 256_000_000},
}
HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028{{7*7}}${1}'\"&amp;"
"""A name that is an attack on a page, wherever it stands unescaped."""

DENSITIES = (0.5, 0.25, 0.1)
# relative time at density 1, its share that does not shrink, projection error at density 0.5
_MANNERS = {
    "low_rank": (0.80, 0.06, 0.21),
    "monarch": (0.90, 0.12, 0.17),
    "btt": (1.25, 0.20, 0.16),
    "blast": (1.60, 0.25, 0.13),
    "csr": (9.0, 0.5, 0.11),
    "coo": (14.0, 0.9, 0.11),
    "semi_structured": (0.6, 0.1, 0.19),
}
_INDEXED = {"csr": 4, "coo": 16}
UNSUPPORTED = "2:4 kernels exist for CUDA with compute capability 8.0 or higher only"


def cost(case: Case, density: float) -> Cost:
    """Counts of the usual shape: two FLOPs a parameter and token, thrice that for a step."""
    tokens = case.tokens or 0
    weights = case.out_features * case.in_features
    parameters = int(density * weights)
    item = ITEM_BYTES[case.dtype]
    stored = parameters * (item + _INDEXED.get(case.format, 0))
    passes = 3 if case.direction == "step" else 1
    chain = 0 if case.format in ("dense", "csr", "coo", "semi_structured") else parameters // 64
    return Cost(
        parameters=parameters,
        stored_bytes=stored,
        flops=passes * 2 * tokens * parameters,
        dense_flops=passes * 2 * tokens * weights,
        compulsory_bytes=passes * (stored + item * tokens * (case.out_features + case.in_features)),
        intermediate_bytes=passes * item * chain,
    )


def linear_case(name: str, density: float | None, **axes: Any) -> Case:
    """A timed case; ``axes`` replace shape, tokens, dtype, direction and knobs."""
    out_features, in_features = axes.pop("shape", (1024, 1024))
    knobs = dict(axes.pop("knobs", {}))
    if density is not None:
        knobs["density"] = density
    defaults = {
        "workload": "linear",
        "dtype": "float32",
        "device": "cpu",
        "tokens": 256,
        "direction": "forward",
        "regime": "hot",
        "mode": "eager",
    }
    return Case(
        format=name,
        out_features=out_features,
        in_features=in_features,
        knobs=knobs,
        **{**defaults, **axes},
    )


def projection_case(
    name: str,
    density: float | None,
    shape: tuple[int, int] = (512, 512),
    matrix: str = "power_law",
) -> Case:
    """A case with a projection error."""
    return Case(
        workload="projection",
        format=name,
        out_features=shape[0],
        in_features=shape[1],
        dtype="float32",
        device="cpu",
        knobs={} if density is None else {"density": density},
        options={"matrix": matrix, "seeds": 1},
    )


def scored_case(workload: str, name: str, side: int, density: float = 0.5, **options: Any) -> Case:
    """A case of a workload that scores square layers, with its options."""
    return Case(
        workload=workload,
        format=name,
        out_features=side,
        in_features=side,
        dtype="float32",
        device="cpu",
        knobs={} if name == "dense" else {"density": density},
        options=options,
    )


def questions(
    *,
    directions: Sequence[str] = ("forward", "step"),
    tokens: Sequence[int] = (16, 256),
    shapes: Sequence[tuple[int, int]] = ((1024, 1024),),
    dtypes: Sequence[str] = ("float32",),
    densities: Sequence[float] = DENSITIES,
    projection: bool = True,
) -> list[Case]:
    """The cases of the usual suite."""
    members: list[tuple[str, float | None]] = [("dense", None), ("semi_structured", None)]
    named = [name for name in _MANNERS if name != "semi_structured"]
    members += [(name, density) for name in named for density in densities]
    cases = [
        linear_case(name, density, shape=s, tokens=t, dtype=d, direction=way)
        for s in shapes
        for d in dtypes
        for way in directions
        for t in tokens
        for name, density in members
    ]
    if projection:
        cases += [projection_case(name, density) for name, density in members if name != "dense"]
    return cases


def run_of(
    cases: Iterable[Case],
    *,
    replicates: int = 3,
    seed: int = 0,
    complete: bool = True,
    name: str = "20260102-030405-linear-cpu",
    ceilings: dict[str, Any] | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Run:
    """A finished run of these cases with a result of each in each replicate."""
    rng = random.Random(seed)
    run = Run(path=Path(f"{name}.jsonl"), header=_header(name, replicates, ceilings, fingerprint))
    for case in cases:
        density = _density(case)
        unsupported = UNSUPPORTED if case.format == "semi_structured" else None
        run.planned[case.id] = Planned(
            case=case,
            resolved=dict(case.knobs),
            kernel="torch",
            density=density,
            cost=cost(case, density),
            unsupported=unsupported,
            seeds=case.options.get("seeds"),
        )
        for replicate in range(1 if case.workload == "projection" else replicates):
            run.results.append(result(run.planned[case.id], replicate, rng))
    if complete:
        run.footer = Footer(finished="2026-01-02T03:14:15Z", wall_seconds=610.0)
    return run


def result(planned: Planned, replicate: int, rng: random.Random) -> Result:
    """One result in the manner of the format."""
    case = planned.case
    shared: dict[str, Any] = {"case": case.id, "replicate": replicate, "seed": 7 + replicate}
    if planned.unsupported:
        return Result(status=Status.UNSUPPORTED, reason=planned.unsupported, **shared)
    if case.workload == "projection":
        values = [_one("score", _error(case, planned), "", note="projection_error")]
        return Result(status=Status.OK, measurements=values, **shared)
    assert planned.cost is not None
    relative = _relative(case, planned) * rng.lognormvariate(0, 0.01)
    dense = planned.cost.dense_flops / 9e10 + 4e-6
    seconds = dense * relative * rng.lognormvariate(0, 0.01)
    measurements = [
        _one("numerical_error", rng.uniform(1e-7, 4e-7), ""),
        Measurement(
            quantity="time_seconds",
            unit="s",
            values=[seconds] * 6,
            contract="wall",
            samples=[[seconds] * 4] * 6,
        ),
    ]
    if case.direction == "step":
        saved = float(planned.cost.compulsory_bytes // 3)
        measurements.append(_one("saved_bytes", saved, "B"))
    if case.format != "dense":
        measurements.append(
            Measurement(quantity="relative_time", unit="×", values=[relative] * 6, contract="wall")
        )
    flags = ["disturbed"] if rng.random() < 0.03 else []
    return Result(status=Status.OK, flags=flags, measurements=measurements, **shared)


def failed(run: Run, status: Status, reason: str) -> Run:
    """The same run with every result replaced by a failure."""
    run.results = [
        Result(case=r.case, replicate=r.replicate, seed=r.seed, status=status, reason=reason)
        for r in run.results
    ]
    return run


def rescored(run: Run, name: str = "psnr_db") -> Run:
    """The same run with another score, the higher the better: decibels."""
    for case, planned in run.planned.items():
        if planned.seeds:
            run.planned[case] = msgspec.structs.replace(planned, better="higher")
    for result in run.results:
        for place, measured in enumerate(result.measurements):
            if measured.quantity == "score":
                decibels = -40 * math.log10(measured.values[0])
                result.measurements[place] = _one("score", decibels, "", note=name)
    return run


def hostile_run() -> Run:
    """A run in which every text is an attack."""
    cases = [linear_case("dense", None), linear_case(HOSTILE, 0.5), linear_case(HOSTILE, 0.25)]
    cases += [linear_case("btt", 0.5, knobs={HOSTILE: HOSTILE}), projection_case(HOSTILE, 0.5)]
    cases += [linear_case("coo", 0.5), linear_case("csr", 0.5)]
    run = run_of(cases, name=HOSTILE)
    header = run.header
    environment = Environment(
        fingerprint={"device": {"name": HOSTILE, HOSTILE: [HOSTILE]}, HOSTILE: {HOSTILE: HOSTILE}},
        state={HOSTILE: HOSTILE},
        settings={HOSTILE: HOSTILE},
    )
    texts = dict.fromkeys(("suite", "about", "created", "version"), HOSTILE)
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    fields |= {**texts, "environment": environment, "arguments": {HOSTILE: HOSTILE}}
    run.header = type(header)(**fields)
    for result in run.results:
        if run.planned[result.case].case.format == "coo":
            broken = failed(run_of([run.planned[result.case].case]), Status.CRASHED, HOSTILE)
            run.results[run.results.index(result)] = broken.results[result.replicate]
        if run.planned[result.case].case.format == "csr":
            result.flags.append(HOSTILE)
    return run


def _density(case: Case) -> float:
    if case.format == "dense":
        return 1.0
    asked = case.knobs.get("density", 0.5)
    assert isinstance(asked, float)
    structured = case.format not in ("csr", "coo", "semi_structured")
    return asked * (0.99 if structured else 1.0)


def _relative(case: Case, planned: Planned) -> float:
    if case.format == "dense":
        return 1.0
    slope, floor, _ = _MANNERS.get(case.format, (1.0, 0.1, 0.2))
    few = 1.3 if (case.tokens or 0) < 64 else 1.0
    return few * (floor + slope * (planned.density or 1.0))


def _error(case: Case, planned: Planned) -> float:
    at_half = _MANNERS.get(case.format, (1.0, 0.1, 0.2))[2]
    density = planned.density or 1.0
    return min(1.0, at_half * (0.5 / density) ** 0.7)


def _one(quantity: str, value: float, unit: str, note: str | None = None) -> Measurement:
    return Measurement(quantity=quantity, unit=unit, values=[value], note=note)


def _header(
    name: str,
    replicates: int,
    ceilings: dict[str, Any] | None,
    fingerprint: dict[str, Any] | None,
) -> Header:
    facts = {
        "device": {
            "name": "Example Processor 9000",
            "cores": 2,
            "caches_bytes": {"L1": 49152, "L2": 1048576, "L3": 33554432},
            "instruction_sets": ["avx2", "avx512f"],
            "memory_bytes": 8_000_000_000,
        },
        "host": {"system": "Linux", "python": "3.12.4", "virtual": True},
        "torch": "2.13.0+cpu",
        "threads": 2,
    }
    return Header(
        schema=SCHEMA,
        run=name,
        created="2026-01-02T03:04:05Z",
        version="0.1.0",
        suite="linear",
        about="One linear layer in every weight format",
        plan=Plan(replicates=replicates),
        seed=0,
        device="cpu",
        environment=Environment(
            fingerprint=facts if fingerprint is None else fingerprint,
            state={"load_1min": 0.4, "governor": "not readable", "hostname": "example"},
            settings={"threads": 2, "float32_matmul_precision": "highest"},
        ),
        ceilings=CEILINGS if ceilings is None else ceilings,
        arguments={"suite": "linear", "quick": False},
    )
