"""The stored runs of tests/golden: cut from the measured ones of reports/, and made up.

``tests/golden/make.py --runs`` writes them again. The files are what is kept: a later version of
the writer must go on reading them as they are.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from _check import kept
from _synthetic import (
    cost,
    failed,
    linear_case,
    projection_case,
    questions,
    run_of,
    scored_case,
)
from msgspec.structs import replace

from hwbench.records import Case, Measurement, Planned, Result, Status
from hwbench.store import Run, read_run

REPORTS = Path(__file__).parents[1] / "reports"
_DIGITS = 6
_SAMPLES = 3  # of each block, in the replicate whose samples are kept
MACHINE: dict[str, Any] = {"name": "Example Processor 9000", "threads": 2, "torch": "2.13.0"}


def write(folder: Path) -> None:
    """Write every stored run anew below ``folder``: runs/, nights/ and tonight/."""
    for part, made in (("runs", _runs()), ("nights", _nights()), ("tonight", _tonight())):
        shutil.rmtree(folder / part, ignore_errors=True)
        for name, run in made:
            path = Path(kept(run, folder / part))
            path.rename(path.with_name(f"{name}.jsonl"))


# --- measured: a few cases of the runs in reports/ --------------------------------------------


def _runs() -> Iterator[tuple[str, Run]]:
    xeon = REPORTS / "2026-11-21-xeon-2core"
    yield "measured", _cut(xeon / "linear.jsonl", _few, samples="low_rank")
    yield "epyc", _cut(REPORTS / "2026-11-21-epyc-2core" / "linear.jsonl", _fewer)
    yield "packed", _cut(xeon / "linear-packed.jsonl", _fewer)
    yield "crossover", _cut(xeon / "crossover.jsonl", _crossing)
    yield "scored", _scored()
    yield "launch_bound", _launch_bound()
    yield "unfinished", _unfinished()
    yield "failures", _failures()
    yield "foreign_quantities", _foreign_quantities()


def _few(case: Case) -> bool:
    """Formats of every kind, in one inference group, one training group and one experiment."""
    few = ("dense", "low_rank", "monarch", "csr", "semi_structured", "packed_dense")
    group = (case.tokens, case.direction) in ((16, "forward"), (256, "step"))
    return case.format in few and (group or case.workload == "projection")


def _fewer(case: Case) -> bool:
    return _few(case) and case.direction != "step"


def _crossing(case: Case) -> bool:
    few = case.format in ("dense", "low_rank", "csr")
    return few and case.knobs.get("density", 0.5) in (0.05, 0.2, 0.5)


def _cut(path: Path, keep: Callable[[Case], bool], samples: str = "") -> Run:
    """The run with these cases alone; raw samples are kept of one format, in one replicate."""
    run = read_run(path)
    run.planned = {case: known for case, known in run.planned.items() if keep(known.case)}
    run.results = [
        replace(result, measurements=[_short(m, result, samples) for m in result.measurements])
        for result in run.results
        if result.case in run.planned
    ]
    return run


def _short(measurement: Measurement, result: Result, samples: str) -> Measurement:
    whole = samples and f"/{samples}" in result.case and result.replicate == 0
    blocks = measurement.samples if whole and measurement.samples else []
    found = [[_rounded(value) for value in block[:_SAMPLES]] for block in blocks]
    values = [_rounded(value) for value in measurement.values]
    return replace(measurement, values=values, samples=found or None)


def _rounded(value: float) -> float:
    return value if value.is_integer() else float(f"{value:.{_DIGITS}g}")


# --- made up ----------------------------------------------------------------------------------


def _named(run: Run, suite: str, about: str, **changes: Any) -> Run:
    run.header = replace(run.header, suite=suite, about=about, **changes)
    return _plain(run)


def _plain(run: Run) -> Run:
    """The run without raw samples, its numbers rounded."""
    run.results = [
        replace(result, measurements=[_short(m, result, "") for m in result.measurements])
        for result in run.results
    ]
    return run


def _one(quantity: str, value: float, unit: str = "", **more: Any) -> Measurement:
    return Measurement(quantity=quantity, unit=unit, values=[_rounded(float(value))], **more)


def _scored() -> Run:
    """Every workload that has a score, beside the timed cases that they explain."""
    run = run_of(
        [
            linear_case(name, density, direction=direction)
            for direction in ("forward", "step")
            for name, density in (("dense", None), ("low_rank", 0.5), ("monarch", 0.5))
        ],
        name="20260103-000000-scored-cpu",
    )
    rng = random.Random(7)
    for name, density in (("low_rank", 0.5), ("monarch", 0.5), ("csr", 0.25)):
        case = projection_case(name, density)
        _add(run, case, {"score": ("projection_error", "", [rng.uniform(0.1, 0.3)])})
    for name in ("dense", "low_rank", "monarch"):
        if name != "dense":
            _add(run, scored_case("image", name, 512, picture="camera"), {
                "score": ("psnr_db", "", [rng.uniform(28, 36)]),
            }, better="higher")  # fmt: skip
        _add(run, scored_case("training", name, 256, steps=200), {
            "score": ("validation_loss", "", [rng.uniform(1.4, 1.9) for _ in range(3)]),
            "prepare_seconds": ("", "s", [rng.uniform(10, 20) for _ in range(3)]),
            "step_seconds": ("", "s", [rng.uniform(0.01, 0.02) for _ in range(3)]),
        })  # fmt: skip
        _add(run, scored_case("compress", name, 384, model="example"), {
            "score": ("embedding_cosine", "", [rng.uniform(0.8, 1)]),
            "retrieval_agreement": ("", "", [rng.uniform(0.7, 1)]),
            "unhealed_score": ("", "", [rng.uniform(0.5, 0.8)]),
            "model_seconds": ("", "s", [rng.uniform(0.1, 0.2)]),
            "model_bytes": ("", "B", [90e6]),
        }, better="higher")  # fmt: skip
    return _named(run, "scored", "Every workload that has a score")


def _add(
    run: Run,
    case: Case,
    read: dict[str, tuple[str, str, list[float]]],
    better: str = "lower",
) -> None:
    """A case with a score for each of its seeds: quantity to note, unit and a value a seed."""
    seeds = len(next(iter(read.values()))[2])
    density = 1.0 if case.format == "dense" else 0.5
    run.planned[case.id] = Planned(
        case=case, resolved=dict(case.knobs), kernel="torch", density=density, better=better,
        cost=cost(case, density), seeds=seeds,
    )  # fmt: skip
    for seed in range(seeds):
        measured = [
            _one(quantity, values[seed], unit, note=note or None)
            for quantity, (note, unit, values) in read.items()
        ]
        run.results.append(
            Result(case=case.id, replicate=seed, seed=seed, status=Status.OK, measurements=measured)
        )


def _launch_bound() -> Run:
    """A GPU whose host cannot keep up with small layers: events, and graphs beside them."""
    members = (("dense", None), ("low_rank", 0.5), ("monarch", 0.25), ("semi_structured", None))
    cases = [
        linear_case(name, density, device="cuda", dtype="bfloat16", tokens=tokens)
        for tokens in (1, 4096)
        for name, density in members
    ]
    ceilings = {
        "matmul": {
            "bfloat16": {"flops_per_second": 7.1e14, "shape": [8192, 8192, 8192]},
            "float32": {"flops_per_second": 5.1e13, "shape": [8192, 8192, 8192]},
        },
        "copy": {"bytes_per_second": 3.1e12, "working_set_bytes": 4_000_000_000},
        "launch": {"seconds": 4.1e-6},
    }
    device = {
        "name": "Example GPU 80GB",
        "capability": "9.0",
        "memory_bytes": 85_000_000_000,
        "caches_bytes": {"L2": 52_428_800},
    }
    facts = {"device": device, "torch": "2.13.0+cu130", "driver": "580.1"}
    run = run_of(
        cases, name="20260104-000000-llm-cuda", ceilings=ceilings, fingerprint=facts, replicates=4
    )
    rng = random.Random(11)
    run.results = [_on_a_gpu(each, run.planned[each.case], rng) for each in run.results]
    return _named(run, "llm", "Layers of a language model", device="cuda")


def _on_a_gpu(result: Result, planned: Planned, rng: random.Random) -> Result:
    if result.status is not Status.OK:
        return result
    bound = planned.case.tokens == 1
    scale = 1e-3 * rng.uniform(0.95, 1.05)
    measured = [
        replace(m, values=[value * scale for value in m.values], contract="event")
        if m.quantity == "time_seconds"
        else replace(m, contract="event" if m.contract else None)
        for m in result.measurements
    ]
    seconds = next(m.values[0] for m in measured if m.quantity == "time_seconds")
    measured += [
        _one("energy_joules", seconds * 410, "J", calls=1000),
        _one("peak_bytes", 2.0 * (planned.cost.stored_bytes if planned.cost else 0), "B"),
        _one("first_call_seconds", 0.02 * rng.uniform(1, 2), "s"),
    ]
    if bound:
        measured.append(_one("graph_seconds", 0.4 * seconds, "s", contract="graph"))
    return replace(result, flags=["launch_bound"] if bound else [], measurements=measured)


def _unfinished() -> Run:
    """A run that was cut off in its second replicate."""
    run = run_of(
        questions(tokens=(16,), densities=(0.5, 0.1)),
        complete=False,
        replicates=2,
        name="20260105-000000-linear-cpu",
    )
    run.results = run.results[: len(run.results) // 3]
    return _named(run, "linear", "A run that was cut off")


def _failures() -> Run:
    """A case that ended in each way, the slow replicates of a machine, and disturbed blocks."""
    names = ("low_rank", "monarch", "btt", "blast", "csr", "coo")
    cases = [linear_case("dense", None), *(linear_case(name, 0.5) for name in names)]
    run = run_of(cases, replicates=4, name="20260106-000000-linear-cpu")
    ends = {
        "csr": (Status.WRONG, "The output differs from dense by 0.3."),
        "coo": (Status.CRASHED, "The process was ended by signal 11."),
        "btt": (Status.TIMED_OUT, "It took longer than 60 s."),
        "blast": (Status.OUT_OF_MEMORY, "It needs more memory than the machine has."),
    }
    found: list[Result] = []
    for result in run.results:
        name = run.planned[result.case].case.format
        if name in ends:
            found += failed(Run(run.path, run.header, results=[result]), *ends[name]).results
        elif result.replicate == 3:
            found.append(_slower(result, 1.4))
        else:
            found.append(result)
    run.results = found
    return _named(run, "linear", "A case that ended in each way")


def _slower(result: Result, factor: float) -> Result:
    measured = [
        replace(m, values=[factor * value for value in m.values], samples=None,
                disturbed=[True] * 2 + [False] * (len(m.values) - 2))
        if m.quantity == "time_seconds"
        else m
        for m in result.measurements
    ]  # fmt: skip
    return replace(result, measurements=measured, flags=["disturbed"])


def _foreign_quantities() -> Run:
    """Quantities of meters that no table knows by name."""
    run = run_of(
        [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("csr", 0.5)],
        name="20260107-000000-linear-cpu",
    )
    rng = random.Random(3)
    for result in run.results:
        result.measurements.append(_one("zero_share", rng.uniform(0, 1)))
        if result.replicate == 0:
            result.measurements.append(_one("counted_flops", 5.4e8, "FLOP"))
            result.measurements.append(_one("graph_breaks", 1, note="a break"))
            result.measurements.append(_one("compiled_graphs", 2))
    return _named(run, "linear", "Quantities of meters that no table knows by name")


# --- nights -----------------------------------------------------------------------------------

_NIGHT_CASES = [linear_case("dense", None), linear_case("low_rank", 0.5), linear_case("csr", 0.5)]
_NIGHT_SCORES = [
    ("image", scored_case("image", "low_rank", 512, picture="camera"), "psnr_db", "higher"),
    ("projection", projection_case("low_rank", 0.5), "projection_error", "lower"),
]


def _night(
    day: int, *, slower: float = 1.0, decibels: float = 30.0, facts: dict[str, Any] = MACHINE
) -> Run:
    """A night of three timed cases and two scored ones."""
    name = f"202601{day:02d}-000000-nightly-cpu"
    run = run_of(_NIGHT_CASES, replicates=3, seed=day, name=name, fingerprint=facts)
    run.results = [
        replace(
            result,
            measurements=[
                replace(m, values=[slower * value for value in m.values])
                if m.quantity in ("relative_time", "time_seconds")
                else m
                for m in result.measurements
            ],
        )
        if "low_rank" in result.case
        else result
        for result in run.results
    ]
    for workload, case, note, better in _NIGHT_SCORES:
        value = decibels if workload == "image" else 0.25
        _add(run, case, {"score": (note, "", [value])}, better=better)
    created = f"2026-01-{day:02d}T00:00:00+00:00"
    return _named(run, "nightly", "Three layers and two scores", created=created)


def _nights() -> Iterable[tuple[str, Run]]:
    """Twelve nights: low_rank loses a tenth at the seventh, the photograph gains 6 dB."""
    for day in range(1, 13):
        late = day > 6
        run = _night(day, slower=1.1 if late else 1.0, decibels=36.0 if late else 30.0)
        state = {"commit": "b" * 8 if late else "a" * 8, "hostname": "example"}
        environment = replace(run.header.environment, state=state)
        run.header = replace(run.header, environment=environment)
        yield f"night-{day:02d}", run


def _tonight() -> Iterable[tuple[str, Run]]:
    """Runs that are held against the nights."""
    yield "same", _night(20, slower=1.1, decibels=36.0)
    yield "slower", _night(21, slower=1.5, decibels=36.0)
    yield "worse_score", _night(22, slower=1.1, decibels=33.0)
    yield "other_machine", _night(23, facts={**MACHINE, "name": "Another Processor 7"})
    broken = _night(24, slower=1.1, decibels=36.0)
    broken.results = [
        replace(r, status=Status.WRONG, reason="The output differs from dense by 0.3.",
                measurements=[])
        if "/csr" in r.case
        else r
        for r in broken.results
    ]  # fmt: skip
    yield "wrong", broken
