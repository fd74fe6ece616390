"""``hwbench choose``: a format for each linear layer of a model, within a budget."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hwbench.cli import _options, _shared
from hwbench.cli._progress import progress
from hwbench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from hwbench.store import Run
    from hwbench.studies.choose import Budget, Choice, Question, Whole

_OF = {
    "error": "each one's relative output error",
    "output": "the model's relative error with each one alone in its format",
    "kl": "nats a token, as the sensitivities of groups add up",
}


def choose(
    model: str | None = typer.Option(
        None, "--model", "-m", help="A folder, or a name on the Hub.  [default: all-MiniLM-L6-v2]"
    ),
    budget: str | None = typer.Option(
        None, "--budget", "-b", help="Of all linear layers: bytes=50%, params=50% or time=-30%."
    ),
    objective: str | None = typer.Option(
        None,
        "--objective",
        help="kl (of next tokens), output (of the model) or error (of layers: quick, and can "
        "mislead).  [default: kl for a model that predicts the next token, else error]",
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
        None, "--from", help="Choose from a run of an earlier choose; no layer is measured."
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

    Each shape is timed in each format here, and layers are judged on calibration texts: by what
    groups of them do to the next token (kl), by the model's output with one layer changed, or by
    their own error. What adds up is made least. For kl whole candidates are then measured, single
    formats among them, and the best is kept; the error is quick and can mislead. --apply measures
    the whole model, against the best single format and against the model as it was.
    """
    from hwbench import checkpoints
    from hwbench.store import read_run
    from hwbench.studies import choose as study

    if objective is not None and objective not in study.OBJECTIVES:
        raise UnknownNameError("objective", objective, study.OBJECTIVES)
    if apply is not None:
        checkpoints.check_free(apply)
    if plan is not None:
        if budget or from_ or model:
            raise UsageError("--plan has its model, its run and its budget; give it alone.")
        choice, found = study.again(plan)
    else:
        if budget is None:
            raise UsageError("--budget is needed: bytes=50%, params=50% or time=-30%.")
        limit = study.Budget.parse(budget)
        if from_ is not None and (model or objective):
            given = "model" if model else "objective"
            raise UsageError(f"--from has its {given}; leave --{given} out.")
        study.check_outputs(model or "", out)
        if from_ is None:
            asked = _asked(model, tokens, format_, density, replicates, objective, limit)
            with progress() as listener:
                from_ = study.measure(
                    asked, device=device, threads=threads, out=runs, listener=listener
                )
        found = read_run(from_)
        choice = study.choose(study.layers_of(found), limit)
        if study.objective(found) == study.KL:
            with progress() as listener:
                choice = study.refined(
                    choice, found, _candidates(out), device=device, threads=threads, out=runs,
                    listener=listener,
                )  # fmt: skip
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
    objective: str | None,
    limit: Budget,
) -> Question:
    """The question, with the budget's own share among the densities: single formats can meet it."""
    from hwbench import checkpoints
    from hwbench.studies import choose as study

    numbers = _shared.numbers("--density", densities, float)
    if not numbers:
        own = {limit.share} if limit.kind != "time" else set[float]()
        numbers = sorted({*study.DENSITIES, *own}, reverse=True)
    if wrong := [each for each in numbers if not 0 < each <= 1]:
        raise UsageError(f"--density is above 0 and at most 1, not {wrong[0]:g}.")
    stored = checkpoints.fetched(model) if model else ""
    causal = bool(stored) and checkpoints.kind(checkpoints.folder(stored)) == checkpoints.CAUSAL
    if objective == study.KL and not causal:
        raise UsageError(
            "--objective kl needs a model that predicts the next token; "
            "for this one there are output and error."
        )
    return study.Question(
        model=stored,
        tokens=tokens,
        formats=_shared.listed(formats) or study.FORMATS,
        densities=numbers,
        replicates=replicates,
        objective=objective or (study.KL if causal else "error"),
    )


def _candidates(out: Path) -> Path:
    """The folder beside a plan for the whole candidates that were measured."""
    return out.with_name(f"{out.stem}-candidates")


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

    told = study.objective(found)
    head = "loss" if told == study.KL else "error"
    lines = []
    if label := choice.wins_everywhere:
        lines.append(f"One format wins everywhere: {label}.")
    lines += [
        f"{choice.budget} of {len(choice.layers)} linear layers on {found.header.machine}",
        "",
        f"{'':<12}{'time':>10}{'bytes':>10}{'parameters':>12}{head:>8}",
    ]
    rows = {"dense": choice.dense, "plan": choice.planned}
    if choice.alone is not None:
        rows["best single"] = choice.alone
    for name, costs in rows.items():
        lines.append(
            f"{name:<12}{units.seconds(costs.time_seconds):>10}{units.nbytes(int(costs.bytes)):>10}"
            f"{units.si(costs.parameters, ''):>12}"
            f"{costs.loss if told == study.KL else (costs.loss / len(choice.layers)) ** 0.5:>8.3f}"
        )
    lines += _measured_lines(choice) if choice.measured else []
    lines += [
        "",
        f"error: the root mean square over the layers of {_OF[told]}."
        if told != study.KL
        else f"loss: {_OF[told]}; KL: measured of the whole model.",
        *(["It is quick to find and can mislead; --apply measures the model."] * (told == "error")),
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


def _measured_lines(choice: Choice) -> list[str]:
    """What whole candidates were measured to lose, the least first."""
    ranked = sorted(choice.measured.items(), key=lambda pair: pair[1])
    width = max(map(len, choice.measured))
    lines = ["", "Whole candidates, by nats a token from the original on calibration texts (KL)"]
    lines += [
        f"{name:<{width}}{nats:>10.4g}{'  kept' if name == choice.kept else ''}"
        for name, nats in ranked
    ]
    if choice.single and choice.kept != choice.single and choice.measured[choice.single] > 0:
        saved = 1 - choice.measured[choice.kept] / choice.measured[choice.single]
        lines.append(f"That is {saved:.0%} below {choice.single}, the best single format.")
    return lines


def _whole_lines(wholes: dict[str, Whole]) -> list[str]:
    from hwbench import units
    from hwbench.studies import choose as study

    name = wholes["dense"].score_name.replace("_", " ")
    causal = any(math.isfinite(each.divergence) for each in wholes.values())
    last = "KL in nats a token" if causal else "retrieval agreement"
    lines = [f"The whole model: {name}, time of a pass, bytes, {last}"]
    for key, each in wholes.items():
        words = {"single": "best single"}.get(key, key)
        number = each.divergence if causal else each.retrieval_agreement
        agreed = f"{number:.3f}" if number >= 0 else "–"
        lines.append(
            f"{words:<12}{each.score:>10.4f}{units.seconds(each.model_seconds):>10}"
            f"{units.nbytes(int(each.model_bytes)):>10}{agreed:>8}"
        )
    if "single" in wholes and study.better(wholes["single"], wholes["plan"]):
        lines.append(
            "The best single format keeps more of the whole model than the plan: it is written."
        )
    return [*lines, ""]
