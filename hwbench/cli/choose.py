"""``hwbench choose``: a format for each linear layer of a model, within a budget."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hwbench.cli import _options, _shared
from hwbench.cli._progress import progress
from hwbench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from hwbench.store import Run
    from hwbench.studies.choose import Choice, Question, Whole

_OF = {
    "error": "each one's relative output error",
    "output": "the model's relative error with each one alone in its format",
}


def choose(
    model: str | None = typer.Option(
        None, "--model", "-m", help="A folder, or a name on the Hub.  [default: all-MiniLM-L6-v2]"
    ),
    budget: str | None = typer.Option(
        None, "--budget", "-b", help="Of all linear layers: bytes=50%, params=50% or time=-30%."
    ),
    objective: str = typer.Option(
        "error", "--objective", help="error (of layers), or output (of the model)."
    ),
    format_: list[str] | None = typer.Option(
        None, "--format", "-f", help="The formats to try, beside dense."
    ),
    density: list[str] | None = typer.Option(None, "--density", help="The densities to try."),
    tokens: int = typer.Option(128, "--tokens", min=1, help="Tokens at once when timed."),
    replicates: int = typer.Option(3, "--replicates", min=1, help="Fresh processes that time."),
    device: _options.Device = "auto",
    threads: _options.Threads = None,
    from_: Path | None = typer.Option(
        None, "--from", help="Choose from a run of an earlier choose; nothing is measured."
    ),
    plan: Path | None = typer.Option(
        None, "--plan", help="Take the plan of this file, made again from its run."
    ),
    apply: Path | None = typer.Option(
        None, "--apply", help="Measure the whole model as planned, and write it to this folder."
    ),
    out: Path = typer.Option(Path("plan.json"), "--out", "-o", help="The plan's file."),
    runs: Path = typer.Option(Path("runs"), "--runs", help="Folder for run files."),
    as_json: _options.PrintJson = False,
) -> None:
    """Choose a format for each linear layer of a model, within a budget of bytes or time.

    Each shape is timed in each format here, and each layer's error is taken on calibration texts.
    Then the sum of the squared errors is made least. Of the layers' own errors that is quick and
    can mislead; --objective output takes the model's with each layer alone changed. --apply
    measures the whole model, against the best single format and against the model as it was.
    """
    from hwbench import checkpoints
    from hwbench.store import read_run
    from hwbench.studies import choose as study

    if objective not in study.OBJECTIVES:
        raise UnknownNameError("objective", objective, study.OBJECTIVES)
    if apply is not None:
        checkpoints.check_free(apply.expanduser())
    if plan is not None:
        if budget or from_ or model:
            raise UsageError("--plan has its model, its run and its budget; give it alone.")
        choice, found = study.again(plan)
    else:
        if budget is None:
            raise UsageError("--budget is needed: bytes=50%, params=50% or time=-30%.")
        limit = study.Budget.parse(budget)
        asked = _asked(model, tokens, format_, density, replicates, objective)
        if from_ is not None and model:
            raise UsageError("--from has its model; leave --model out.")
        study.check_outputs(model or "", out)
        if from_ is None:
            with progress() as listener:
                from_ = study.measure(
                    asked, device=device, threads=threads, out=runs, listener=listener
                )
        found = read_run(from_)
        choice = study.choose(study.layers_of(found), limit)
        study.write(choice, found, out)
        plan = out
    wholes: dict[str, Whole] = {}
    if apply is not None:
        wholes = _applied(choice, plan, apply, device, threads, runs)
    if as_json:
        told = {**study.described(choice, found, choice.picked)}
        measured = {name: vars(whole) for name, whole in wholes.items()}
        _shared.say_json(json.dumps({**told, "plan": str(plan), "measured": measured}))
        return
    for line in _shown(choice, found, plan, wholes, apply):
        _shared.say(line)


def _asked(
    model: str | None,
    tokens: int,
    formats: list[str] | None,
    densities: list[str] | None,
    replicates: int,
    objective: str,
) -> Question:
    from hwbench import checkpoints
    from hwbench.studies import choose as study

    numbers = _shared.numbers("--density", densities, float) or list(study.DENSITIES)
    if wrong := [each for each in numbers if not 0 < each <= 1]:
        raise UsageError(f"--density is above 0 and at most 1, not {wrong[0]:g}.")
    return study.Question(
        model=checkpoints.fetched(model) if model else "",
        tokens=tokens,
        formats=_shared.listed(formats) or study.FORMATS,
        densities=numbers,
        replicates=replicates,
        objective=objective,
    )


def _applied(
    choice: Choice, plan: Path, out: Path, device: str, threads: int | None, runs: Path
) -> dict[str, Whole]:
    """Measure the whole models, and write the one that keeps more."""
    from hwbench.studies import choose as study

    single = choice.single is not None and choice.wins_everywhere is None
    with progress() as listener:
        wholes = study.measured(
            plan, single=single, device=device, threads=threads, out=runs, listener=listener
        )
    chosen = plan
    if single and study.better(wholes["single"], wholes["plan"]):
        chosen = study.single_path(plan)
    study.apply(chosen, out, device=device, threads=threads)
    return wholes


def _shown(
    choice: Choice, found: Run, plan: Path, wholes: dict[str, Whole], out: Path | None
) -> list[str]:
    """The plan in lines: what comes out first, then layer by layer."""
    from hwbench import units
    from hwbench.studies import choose as study

    lines = []
    if label := choice.wins_everywhere:
        lines.append(f"One format wins everywhere: {label}.")
    lines += [
        f"{choice.budget} of {len(choice.layers)} linear layers on {found.header.machine}",
        "",
        f"{'':<12}{'time':>10}{'bytes':>10}{'parameters':>12}{'error':>8}",
    ]
    rows = {"dense": choice.dense, "plan": choice.planned}
    if choice.alone is not None:
        rows["best single"] = choice.alone
    for name, costs in rows.items():
        lines.append(
            f"{name:<12}{units.seconds(costs.time_seconds):>10}{units.nbytes(int(costs.bytes)):>10}"
            f"{units.si(costs.parameters, ''):>12}"
            f"{(costs.loss / len(choice.layers)) ** 0.5:>8.3f}"
        )
    lines += [
        "",
        f"error: the root mean square over the layers of {_OF[study.objective(found)]}.",
        f"best single: {choice.single or 'no format meets the budget alone'}.",
        f"The solver (scipy.optimize.milp) proved a gap of {choice.gap:.2g}.",
        "",
    ]
    counts = Counter(choice.picked.values())
    width = max(map(len, choice.picked))
    lines += [f"{name:<{width}}  {label}" for name, label in choice.picked.items()]
    lines += ["", "; ".join(f"{label}: {count}" for label, count in counts.most_common()), ""]
    if wholes:
        lines += _whole_lines(wholes)
        lines.append(f"The model is in {out}.")
    lines.append(f"The plan is in {plan}, made from {found.path}.")
    return lines


def _whole_lines(wholes: dict[str, Whole]) -> list[str]:
    from hwbench import units
    from hwbench.studies import choose as study

    name = wholes["dense"].score_name.replace("_", " ")
    lines = [f"The whole model: {name}, time of a pass, bytes, retrieval agreement"]
    for key, each in wholes.items():
        words = {"single": "best single"}.get(key, key)
        agreed = f"{each.retrieval_agreement:.3f}" if each.retrieval_agreement >= 0 else "–"
        lines.append(
            f"{words:<12}{each.score:>10.4f}{units.seconds(each.model_seconds):>10}"
            f"{units.nbytes(int(each.model_bytes)):>10}{agreed:>8}"
        )
    if "single" in wholes and study.better(wholes["single"], wholes["plan"]):
        lines.append(
            "The best single format keeps more of the whole model than the plan: it is written."
        )
    return [*lines, ""]
