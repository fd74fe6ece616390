"""``hwbench run``: measure a suite on this machine and keep the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hwbench.cli import _shared
from hwbench.cli._progress import progress
from hwbench.cli.show import print_run
from hwbench.errors import CasesFailedError, UsageError

if TYPE_CHECKING:
    from hwbench.measure.fleet import Fleet
    from hwbench.measure.run import Question
    from hwbench.measure.schedule import Listener
    from hwbench.store import Run


_WHAT, _EFFORT = "What is measured", "How much effort"
_WHERE, _OUTPUT = "Where", "What comes of it"


def run(
    suite: str | None = typer.Option(
        None,
        "--suite",
        "-s",
        help="A shipped suite by name, or a TOML file.  [default: linear]",
        rich_help_panel=_WHAT,
    ),
    device: str = typer.Option(
        "auto",
        "--device",
        "-d",
        help="auto, cpu, cuda, cuda:N, or a list of them.",
        rich_help_panel=_WHERE,
    ),
    replicates: int | None = typer.Option(
        None,
        "--replicates",
        "-r",
        min=1,
        max=1000,
        help="Fresh processes that visit every case.",
        rich_help_panel=_EFFORT,
    ),
    quick: bool = typer.Option(
        False,
        "--quick",
        help="One replicate, short budgets: a first look.",
        rich_help_panel=_EFFORT,
    ),
    time_budget: str | None = typer.Option(
        None,
        "--time-budget",
        help="A complete, coarser answer in about this time, such as 90s.",
        rich_help_panel=_EFFORT,
    ),
    format_: list[str] | None = typer.Option(
        None,
        "--format",
        "-f",
        help="Only these formats, and dense. Repeat, or use commas.",
        rich_help_panel=_WHAT,
    ),
    filter_: str | None = typer.Option(
        None,
        "--filter",
        help="Only matching cases: tokens=16,direction=step or a part of an id.",
        rich_help_panel=_WHAT,
    ),
    shape: list[str] | None = typer.Option(
        None, "--shape", help="OUTxIN, such as 4096x11008.", rich_help_panel=_WHAT
    ),
    tokens: list[str] | None = typer.Option(
        None, "--tokens", help="Batch × sequence: 16,512.", rich_help_panel=_WHAT
    ),
    dtype: list[str] | None = typer.Option(
        None, "--dtype", help="float32, bfloat16 or float16.", rich_help_panel=_WHAT
    ),
    density: list[str] | None = typer.Option(
        None,
        "--density",
        help="Kept fraction of the dense parameters: 0.5,0.1.",
        rich_help_panel=_WHAT,
    ),
    stored: list[str] | None = typer.Option(
        None,
        "--stored",
        help="Stored bytes over those of dense, in place of a density: 0.25.",
        rich_help_panel=_WHAT,
    ),
    model: str | None = typer.Option(
        None,
        "--model",
        help="For --suite compress: an encoder or causal model, as a folder in Hugging Face's "
        "layout, or as a name on its Hub, which is downloaded.  "
        "[default: the packaged all-MiniLM-L6-v2]",
        rich_help_panel=_WHAT,
    ),
    data: Path | None = typer.Option(
        None,
        "--data",
        help="For --suite training_cifar10 or training_gpt2: your folder of the data.",
        rich_help_panel=_WHAT,
    ),
    weights: str | None = typer.Option(
        None,
        "--weights",
        metavar="FILE[:TENSOR]",
        help="Your own layer, of a .safetensors file: its shape is timed, its weights are scored. "
        "A pattern takes up to 64.",
        rich_help_panel=_WHAT,
    ),
    activations: Path | None = typer.Option(
        None,
        "--activations",
        help="What the layer of --weights sees, rows × in_features, of a .safetensors file: "
        "adds the error of its outputs.",
        rich_help_panel=_WHAT,
    ),
    energy: bool = typer.Option(
        False,
        "--energy",
        help="Joules a call, where the device has a counter: 2 s a case.",
        rich_help_panel=_WHAT,
    ),
    no_scores: bool = typer.Option(
        False,
        "--no-scores",
        help="Leave the accuracy part of the suite out.",
        rich_help_panel=_WHAT,
    ),
    threads: int | None = _shared.THREADS,
    cores: str | None = typer.Option(
        None,
        "--cores",
        help="Stay on these cores, such as 0-3,8.  [default: all that are allowed]",
        rich_help_panel=_WHERE,
    ),
    seed: int = typer.Option(
        0, "--seed", help="Seeds all data and all orders.", rich_help_panel=_EFFORT
    ),
    resume: Path | None = typer.Option(
        None, "--resume", help="Finish a run that was cut off.", rich_help_panel=_OUTPUT
    ),
    cluster: str | None = typer.Option(
        None,
        "--cluster",
        help="A Ray cluster that runs: auto, or ray://HOST:PORT.",
        rich_help_panel=_WHERE,
    ),
    on: list[str] | None = typer.Option(
        None,
        "--on",
        help="Only these kinds of device of the cluster: A100,RTX4090.",
        rich_help_panel=_WHERE,
    ),
    shards: int | None = typer.Option(
        None,
        "--shards",
        min=1,
        help="Shares that equal devices cut each replicate into.",
        rich_help_panel=_WHERE,
    ),
    wait: str = typer.Option(
        "10m",
        "--wait",
        help="How long to wait for a kind of device whose machines all went away.",
        rich_help_panel=_WHERE,
    ),
    out: Path = typer.Option(
        Path("runs"), "--out", "-o", help="Folder for the run file.", rich_help_panel=_OUTPUT
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print rows as JSON instead of a table.", rich_help_panel=_OUTPUT
    ),
    print_path: bool = typer.Option(
        False,
        "--print-path",
        help="Print the path of the run file and nothing else.",
        rich_help_panel=_OUTPUT,
    ),
) -> None:
    """Measure every case of a suite, in fresh processes, and keep the run in a file.

    Without a suite it is the suite 'linear'. One layer needs no file:

    hwbench run --shape 4096x11008 --tokens 16,512 --density 0.5 --format low_rank,monarch

    Nor does a layer of your own:

    hwbench run --weights model.safetensors:layers.0.mlp.up.weight --tokens 16,512
    """
    from hwbench import environment
    from hwbench import suite as suites
    from hwbench.cli import _weights
    from hwbench.measure import run as runner
    from hwbench.store import read_run
    from hwbench.units import parse_seconds

    if as_json and print_path:
        raise UsageError("--json and --print-path both print: name one of them.")
    budget = parse_seconds(time_budget) if time_budget else None
    if cores is not None:
        environment.pin(cores)
    fleet = _Fleet(
        device, threads, cluster, _shared.listed(on), shards, parse_seconds(wait), budget
    )
    if resume is not None:
        asked = (
            suite,
            format_,
            filter_,
            shape,
            tokens,
            dtype,
            density,
            stored,
            model,
            data,
            weights,
        )
        if any(asked) or activations:
            raise UsageError("--resume goes on with the suite that the run was started with.")
        with progress() as listener:
            fleet.resume(resume, listener)
        return _show({resume: read_run(resume)}, as_json=as_json, print_path=print_path)
    document, taken = _weights.asked(
        suites.read(suite or "linear"),
        weights,
        activations,
        shape=_shared.shapes(shape),
        tokens=_shared.numbers("--tokens", tokens, int),
        dtype=_shared.listed(dtype),
        density=_shared.numbers("--density", density, float),
        stored=_shared.numbers("--stored", stored, float),
        formats=_shared.listed(format_),
    )
    for sentence in taken:
        _shared.say(sentence, error=True)
    document = _shared.with_data(_shared.with_model(document, model), data)
    changes: dict[str, Any] = {}
    if quick:
        document = suites.quickened(document)
        changes = runner.smallest(suites.build(document, "cpu").plan)
    if replicates is not None:
        changes["replicates"] = replicates
    with progress() as listener:
        paths = fleet.run(runner.Question(
            document=document, out=out, filter=filter_, seed=seed, energy=energy,
            scores=not no_scores, changes=changes, listener=listener,
        ))  # fmt: skip
    runs = {path: read_run(path) for path in paths}
    _show(runs, as_json=as_json, print_path=print_path)
    run_failed([result for run in runs.values() for result in run.results])


@dataclass(frozen=True)
class _Fleet:
    """The options that say where a run is made."""

    device: str
    threads: int | None
    cluster: str | None
    on: list[str]
    shards: int | None
    patience_seconds: float
    budget: float | None

    @property
    def many(self) -> bool:
        """Whether it is more than one device of this machine; else their options are mistakes."""
        many = self.cluster is not None or "," in self.device
        if not many and (self.on or self.shards):
            raise UsageError("--on and --shards need --cluster, or a list in --device.")
        return many

    def run(self, question: Question) -> list[Path]:
        if not self.many:
            from hwbench.measure import run as runner

            return [runner.answer(question, self.device, self.threads, self.budget)]
        with self._found(question.listener) as fleet:
            return fleet.run(question)

    def resume(self, path: Path, listener: Listener) -> None:
        if self.cluster is None:
            from hwbench.measure import run as runner

            runner.resume(path, time_budget_seconds=self.budget, listener=listener)
            return
        with self._found(listener) as fleet:
            fleet.resume(path)

    @contextlib.contextmanager
    def _found(self, listener: Listener) -> Iterator[Fleet]:
        from hwbench.measure.fleet import Fleet, local_seats
        from hwbench.measure.transports.ray import Cluster

        options: dict[str, Any] = {
            "on": self.on, "shards": self.shards, "listener": listener,
            "time_budget_seconds": self.budget, "patience_seconds": self.patience_seconds,
        }  # fmt: skip
        if self.cluster is None:
            devices = _shared.listed([self.device])
            yield Fleet(lambda: local_seats(devices, self.threads), **options)
            return
        cluster = Cluster(self.cluster)
        try:
            yield Fleet(lambda: cluster.seats(self.device, self.threads), **options)
        finally:
            cluster.close()


def run_failed(results: list[Any]) -> None:
    """Raise what makes the exit code 5, if a case failed or nothing could be measured."""
    from hwbench.records import ANSWERS, Status

    failed = {result.case for result in results if result.status not in ANSWERS}
    if failed:
        raise CasesFailedError(
            f"{len(failed)} case{'s were' if len(failed) > 1 else ' was'} wrong, crashed or timed "
            "out; the reasons are listed above."
        )
    if not any(result.status is Status.OK for result in results):
        raise CasesFailedError("Nothing could be measured; the reasons are listed above.")


def _show(runs: Mapping[Path, Run], *, as_json: bool, print_path: bool) -> None:
    """Each run, its path alone, or the rows of several as one JSON list."""
    from hwbench.report.text import rows_json

    if as_json and len(runs) > 1:
        rows = [{"run": str(path), **row} for path, run in runs.items() for row in rows_json(run)]
        _shared.say_json(json.dumps(rows))
        return
    for path, run in runs.items():
        if print_path:
            _shared.say(str(path))
        else:
            print_run(path, run, as_json=as_json)
