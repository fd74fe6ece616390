"""``hwbench choose``: a format for each linear layer of a model, within a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hwbench.cli import _options, _shared
from hwbench.cli._progress import progress
from hwbench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from hwbench.store import Run
    from hwbench.studies.choose import Budget, Choice, Passed, Place, Question, Whole

_OF = {
    "error": "each one's relative output error",
    "output": "the model's relative error with each one alone in its format",
    "kl": "nats a token, as the sensitivities of groups add up",
    "cosine": "1 − cosine, as the sensitivities of groups add up",
}
_WHOLE = {
    "kl": ("nats a token from the original on calibration texts (KL)", "KL"),
    "cosine": ("1 − cosine of embeddings to the original's on calibration texts", "1 − cosine"),
}
"""By objective that needs whole candidates: the name of the loss, and its short form."""
_OUT, _TOKENS, _REPLICATES = Path("plan.json"), 128, 3
"""What is taken where no option says otherwise; their help names the same."""


def choose(
    model: _options.ChosenModel = None,
    budget: _options.Budget = None,
    objective: _options.Objective = None,
    format_: _options.TriedFormats = None,
    density: _options.TriedDensities = None,
    tokens: _options.TimedTokens = None,
    replicates: _options.TimedReplicates = None,
    device: _options.Device = "auto",
    threads: _options.Threads = None,
    from_: _options.FromRun = None,
    plan: _options.Plan = None,
    apply: _options.Apply = None,
    out: _options.PlanFile = None,
    runs: _options.Runs = Path("runs"),
    as_json: _options.PrintJson = False,
) -> None:
    """Choose a format for each linear layer of a model, within a budget of bytes or time.

    Each shape is timed in each format here, and layers are judged on calibration texts: by what
    groups of them do to the next token (kl) or to embeddings (cosine), by the model's output with
    one layer changed, or by their own error. What adds up is made least. For kl and cosine whole
    candidates are then measured, single formats among them, and the best is kept; the error is
    quick and can mislead. A budget of time is of a pass of the whole model. --apply measures the
    whole model, against the best single format and against the model as it was.
    """
    from hwbench import checkpoints
    from hwbench.studies import choose as study

    if objective is not None and objective not in study.OBJECTIVES:
        raise UnknownNameError("objective", objective, study.OBJECTIVES)
    if apply is not None:
        checkpoints.check_free(apply)
    place: Place = {"device": device, "threads": threads, "out": runs}
    measured = {
        "model": model, "objective": objective, "format": format_, "density": density,
        "tokens": tokens, "replicates": replicates,
    }  # fmt: skip
    if plan is not None:
        _refuse_given("plan", {"budget": budget, "from": from_, "out": out, **measured})
        choice, run = study.again(plan)
    else:
        if from_ is not None:
            _refuse_given("from", measured)
        limit = _budget(budget)
        out = _OUT if out is None else out
        study.check_outputs(model or "", out)
        if from_ is None:
            question = _question(
                model, tokens or _TOKENS, format_, density, replicates or _REPLICATES, objective,
                limit,
            )  # fmt: skip
            with progress() as listener:
                from_ = study.measure(question, **place, listener=listener)
        with progress() as listener:
            choice, run = study.planned(from_, limit, out, **place, listener=listener)
        plan = out
    wholes = _measured_and_written(choice, plan, apply, place) if apply is not None else {}
    if as_json:
        described = study.described(choice, run, choice.picked)
        whole = {name: vars(each) for name, each in wholes.items()}
        _shared.say_json({**described, "plan": str(plan), **({"whole": whole} if whole else {})})
        return
    for line in _plan_lines(choice, run, plan, wholes, apply):
        _shared.say(line)


def _refuse_given(option: str, others: Mapping[str, object]) -> None:
    """Refuse options that would change nothing: what they ask for stands in the file of another.

    Raises:
        UsageError: one of them is given.
    """
    if given := [f"--{name}" for name, value in others.items() if value not in (None, [])]:
        raise UsageError(
            f"--{option} takes what was asked for from its file; leave {', '.join(given)} out."
        )


def _budget(budget: str | None) -> Budget:
    from hwbench.studies import choose as study

    if budget is None:
        raise UsageError("--budget is needed: bytes=50%, params=50% or time=-30%.")
    return study.Budget.parse(budget)


def _question(
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
    share = "stored" if limit.kind == "bytes" and not numbers else "density"
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
            "for this one there are cosine, output and error."
        )
    if objective == study.COSINE and causal:
        raise UsageError(
            "--objective cosine needs an encoder; for this model there are kl, output and error."
        )
    return study.Question(
        model=stored,
        tokens=tokens,
        formats=_shared.listed(formats) or study.FORMATS,
        densities=numbers,
        replicates=replicates,
        objective=objective or (study.KL if causal else study.COSINE),
        share=share,
    )


def _measured_and_written(choice: Choice, plan: Path, out: Path, place: Place) -> dict[str, Whole]:
    """Measure the whole models, and write the one that keeps more."""
    from hwbench.studies import choose as study

    single = choice.single is not None and choice.wins_everywhere is None
    with progress() as listener:
        wholes = study.measured(plan, single=single, **place, listener=listener)
    best = plan
    if single and study.better(wholes["single"], wholes["plan"]):
        best = study.single_path(plan)
    study.apply(best, out, device=place["device"], threads=place["threads"])
    return wholes


def _plan_lines(
    choice: Choice, run: Run, plan: Path, wholes: dict[str, Whole], out: Path | None
) -> list[str]:
    """Return the lines of a plan: the summary first, then one line a layer."""
    from hwbench.studies import choose as study

    objective = study.objective(run)
    quick = objective == "error"
    lines = []
    if label := choice.wins_everywhere:
        lines.append(f"One format wins everywhere: {label}.")
    lines += _costs_lines(choice, run)
    lines += _measured_lines(choice, objective) if choice.measured else []
    lines += [
        "",
        f"error: the root mean square over the layers of {_OF[objective]}."
        if objective not in _WHOLE
        else f"loss: {_OF[objective]}; {_WHOLE[objective][1]}: measured of the whole model.",
        *(["It is quick to find and can mislead; --apply measures the model."] if quick else []),
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
    lines.append(f"The plan is in {plan}, made from {run.path}.")
    return lines


def _costs_lines(choice: Choice, run: Run) -> list[str]:
    """Return the table of costs and losses of dense, the plan and the best single format."""
    from hwbench import units
    from hwbench.studies import choose as study

    whole = study.objective(run) in study.WHOLE
    head = "loss" if whole else "error"
    described = study.described(choice, run, choice.picked)
    lines = [
        f"{choice.budget} of {len(choice.layers)} linear layers on {run.header.machine}"
        if choice.budget.kind != "time"
        else f"{choice.budget} of a pass of {described['tokens']} tokens on {run.header.machine}",
        f"dense is {described['dtype']}; the formats are {', '.join(described['formats'])}",
        "",
        f"{'':<12}{'pass':>10}{'linear':>10}{'bytes':>10}{'parameters':>12}{head:>8}",
    ]
    rows = {"dense": choice.dense, "plan": choice.planned}
    if choice.alone is not None:
        rows["best single"] = choice.alone
    for name, costs in rows.items():
        passed = units.seconds(costs.time_seconds + choice.rest_seconds)
        lines.append(
            f"{name:<12}{passed if choice.rest_seconds else '–':>10}"
            f"{units.seconds(costs.time_seconds):>10}{units.nbytes(int(costs.bytes)):>10}"
            f"{units.si(costs.parameters, ''):>12}"
            f"{costs.loss if whole else (costs.loss / len(choice.layers)) ** 0.5:>8.3f}"
        )
    if choice.rest_seconds:
        rest = units.seconds(choice.rest_seconds)
        lines.append(f"pass: the linear layers and what the rest of the model takes, {rest}.")
    if choice.passed is not None:
        lines.append(_passed_line(choice, choice.passed))
    return lines


def _passed_line(choice: Choice, passed: Passed) -> str:
    """Say how long a pass as planned took, and whether that is within the budget."""
    from hwbench import units

    share, budget = passed.share, choice.budget.share
    verdict = "within it" if share <= budget else f"{share / budget - 1:.1%} above it"
    line = (
        f"measured: a pass takes {units.seconds(passed.planned_seconds)} as planned and "
        f"{units.seconds(passed.dense_seconds)} as it was, {share:.1%} of it; the budget is "
        f"{budget:.1%}, and that is {verdict}."
    )
    if choice.missed_seconds:
        missed = units.seconds(choice.missed_seconds)
        line += (
            f" The pass of an earlier plan exceeded it: this plan adds up to {missed} less than it."
        )
    return line


def _measured_lines(choice: Choice, objective: str) -> list[str]:
    """Return the measured losses of whole candidates, the least first."""
    ranked = sorted(choice.measured.items(), key=lambda pair: pair[1])
    width = max(map(len, choice.measured))
    lines = ["", f"Whole candidates, by {_WHOLE[objective][0]}"]
    lines += [
        f"{name:<{width}}{lost:>10.4g}{'  kept' if name == choice.kept else ''}"
        for name, lost in ranked
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
