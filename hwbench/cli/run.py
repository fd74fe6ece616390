"""``hwbench run``: measure a suite on this machine and keep the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwbench.cli import _options, _shared
from hwbench.cli._progress import progress
from hwbench.cli.show import print_run
from hwbench.errors import CasesFailedError, UsageError

if TYPE_CHECKING:
    from hwbench.measure.fleet import Fleet
    from hwbench.measure.run import Question
    from hwbench.measure.schedule import Listener
    from hwbench.store import Run

_OUT = Path("runs")
_PATIENCE_SECONDS = 600.0  # for machines that went away, where --wait says nothing


def run(
    suite: _options.Suite = None,
    device: _options.Devices = "auto",
    replicates: _options.Replicates = None,
    quick: _options.Quick = False,
    time_budget: _options.TimeBudget = None,
    format_: _options.Formats = None,
    filter_: _options.Filter = None,
    shape: _options.Shape = None,
    tokens: _options.Tokens = None,
    dtype: _options.Dtype = None,
    density: _options.Density = None,
    stored: _options.Stored = None,
    model: _options.Model = None,
    data: _options.Data = None,
    weights: _options.Weights = None,
    activations: _options.Activations = None,
    energy: _options.Energy = False,
    allocator: _options.Allocator = None,
    no_scores: _options.NoScores = False,
    threads: _options.Threads = None,
    cores: _options.Cores = None,
    seed: _options.Seed = 0,
    resume: _options.Resume = None,
    cluster: _options.Cluster = None,
    on: _options.OnKinds = None,
    shards: _options.Shards = None,
    wait: _options.Wait = None,
    out: _options.OutFolder = _OUT,
    as_json: _options.RunAsJson = False,
    print_path: _options.PrintPath = False,
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
    from hwbench.studies import doctor
    from hwbench.units import parse_seconds

    if as_json and print_path:
        raise UsageError("--json and --print-path both print: name one of them.")
    budget = parse_seconds(time_budget) if time_budget else None
    if cores is not None:
        environment.pin(cores)
    fleet = _Fleet(
        device, threads, cluster, _shared.listed(on), shards,
        None if wait is None else parse_seconds(wait), budget,
    )  # fmt: skip
    if resume is not None:
        asked = (suite, format_, filter_, shape, tokens, dtype, density, stored, model, data,
                 weights, activations)  # fmt: skip
        planned = (replicates, quick, energy, allocator, no_scores, seed, out != _OUT)
        if any((*asked, *planned)) or not fleet.only_finds:
            raise UsageError(
                "--resume goes on with the suite, the plan and the device that the run was started "
                "with; leave their options out."
            )
        with progress() as listener:
            fleet.resume(resume, listener)
        return _finished([resume], as_json=as_json, print_path=print_path)
    document, sentences = _weights.with_weights(
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
    for sentence in sentences:
        _shared.say(sentence, error=True)
    document = _shared.with_data(_shared.with_model(document, model), data)
    document, changes = _replanned(document, quick, replicates, allocator)
    if not fleet.many and (warning := doctor.busy_now()):
        _shared.say(warning, error=True)
    with progress() as listener:
        paths = fleet.run(runner.Question(
            document=document, out=out, filter=filter_, seed=seed, energy=energy,
            scores=not no_scores, changes=changes, listener=listener,
        ))  # fmt: skip
    _finished(paths, as_json=as_json, print_path=print_path)


def _finished(paths: Iterable[Path], *, as_json: bool, print_path: bool) -> None:
    """Show the runs, and raise where one of their cases failed."""
    from hwbench.store import read_run

    runs = {path: read_run(path) for path in paths}
    _show(runs, as_json=as_json, print_path=print_path)
    where = "hwbench show lists the reasons" if print_path else "the reasons are listed above"
    _check_failed([result for run in runs.values() for result in run.results], where)


def _replanned(
    document: dict[str, Any], quick: bool, replicates: int | None, allocator: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, smaller with --quick, and what the options change in its plan."""
    from hwbench import suite as suites
    from hwbench.measure import run as runner

    changes: dict[str, Any] = {}
    if quick:
        document = suites.quickened(document)
        changes = runner.smallest(suites.build(document, "cpu").plan)
    if replicates is not None:
        changes["replicates"] = replicates
    if allocator is not None:
        changes["allocator"] = suites.allocator(allocator)
    return document, changes


@dataclass(frozen=True)
class _Fleet:
    """The options that choose the machines of a run."""

    device: str
    threads: int | None
    cluster: str | None
    on: list[str]
    shards: int | None
    patience_seconds: float | None
    budget: float | None

    @property
    def many(self) -> bool:
        """Whether it is more than one device of this machine; else their options are mistakes."""
        if self.cluster is not None:
            return True
        if self.patience_seconds is not None:
            raise UsageError("--wait needs --cluster: the devices of this machine do not go away.")
        many = "," in self.device
        if not many and (self.on or self.shards):
            raise UsageError("--on and --shards need --cluster, or a list in --device.")
        return many

    @property
    def only_finds(self) -> bool:
        """Whether its options say no more than where the machines of a run are to be found."""
        return self.cluster is not None or (self.device == "auto" and self.threads is None)

    def run(self, question: Question) -> list[Path]:
        if not self.many:
            from hwbench.measure import run as runner

            return [runner.answer(question, self.device, self.threads, self.budget)]
        with self._connected(question.listener) as fleet:
            return fleet.run(question)

    def resume(self, path: Path, listener: Listener) -> None:
        if self.cluster is None:
            from hwbench.measure import run as runner

            if self.on or self.shards or self.patience_seconds is not None:
                raise UsageError("--resume takes --on, --shards and --wait with --cluster only.")
            runner.resume(path, time_budget_seconds=self.budget, listener=listener)
            return
        with self._connected(listener) as fleet:
            fleet.resume(path)

    @contextlib.contextmanager
    def _connected(self, listener: Listener) -> Iterator[Fleet]:
        from hwbench.measure.fleet import Fleet, local_seats
        from hwbench.measure.transports.ray import Cluster

        options: dict[str, Any] = {
            "on": self.on, "shards": self.shards, "listener": listener,
            "time_budget_seconds": self.budget,
            "patience_seconds": (
                _PATIENCE_SECONDS if self.patience_seconds is None else self.patience_seconds
            ),
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


def _check_failed(results: list[Any], where: str) -> None:
    """Raise the error of exit code 5, if a case failed or nothing could be measured."""
    from hwbench.records import ANSWERS, Status

    failed = {result.case for result in results if result.status not in ANSWERS}
    if failed:
        raise CasesFailedError(
            f"{len(failed)} case{'s were' if len(failed) > 1 else ' was'} wrong, crashed or timed "
            f"out; {where}."
        )
    if not any(result.status is Status.OK for result in results):
        raise CasesFailedError(f"Nothing could be measured; {where}.")


def _show(runs: Mapping[Path, Run], *, as_json: bool, print_path: bool) -> None:
    """Each run, its path alone, or the rows of several as one JSON list."""
    from hwbench.report.text import rows_json

    if as_json and len(runs) > 1:
        rows = [{"run": str(path), **row} for path, run in runs.items() for row in rows_json(run)]
        _shared.say_json(rows)
        return
    for path, run in runs.items():
        if print_path:
            _shared.say(str(path))
        else:
            print_run(path, run, as_json=as_json)
