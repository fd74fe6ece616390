"""``hwbench check``: a run against its baseline, for a gate that fails on real regressions only."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from hwbench import files
from hwbench.channels import command
from hwbench.cli import _shared
from hwbench.cli._progress import progress
from hwbench.errors import RunFileError, UsageError

if TYPE_CHECKING:
    from hwbench.analysis.outcome import Outcome

_SUMMARY = "GITHUB_STEP_SUMMARY"
_FAIL_ON = ("undecided",)


def check(
    run: Path = typer.Argument(..., help="The run to check."),
    baseline: Path = typer.Option(
        ..., "--baseline", "-b", help="A run, or a folder: its last comparable runs."
    ),
    threshold: str = typer.Option(
        "3%", "--threshold", help="The smallest change that counts, such as 3%."
    ),
    metric: str = typer.Option(
        "auto",
        "--metric",
        help="auto, time, relative, memory, score or a quantity; auto prefers relative.",
    ),
    confirm: bool = typer.Option(
        False, "--confirm", help="Measure flagged cases again here, before anything fails."
    ),
    confirm_by: str | None = typer.Option(
        None,
        "--confirm-by",
        help="How: fresh (replicates tonight, as --confirm does), ab (the revisions of the "
        "baseline and of tonight, in pairs) or nights (the night before must say the same).",
    ),
    window: int = typer.Option(
        5, "--window", min=1, max=100, help="Baseline runs to take from a folder."
    ),
    fail_on: str | None = typer.Option(
        None, "--fail-on", help="undecided: exit 3 where a case has no verdict."
    ),
    require_sight: str | None = typer.Option(
        None,
        "--require-sight",
        help="Exit 3 where a slow-down of this size, such as 8%, would usually go unseen.",
    ),
    unfinished: bool = typer.Option(
        False, "--unfinished", help="Take a run that was cut off, as far as it got."
    ),
    junit: Path | None = typer.Option(None, "--junit", help="Write JUnit XML here."),
    markdown: Path | None = typer.Option(
        None, "--markdown", help="Write a comment for a pull request here."
    ),
    json_out: Path | None = typer.Option(None, "--json-out", help="Write the verdicts here."),
    as_json: bool = typer.Option(False, "--json", help="Print the verdicts as JSON."),
    github: bool = typer.Option(
        False, "--github", help="Print annotations, and append to the summary of the step."
    ),
) -> None:
    """Compare a run with its baseline, case by case, and fail on regressions only.

    hwbench check runs/tonight.jsonl --baseline baselines --confirm --markdown check.md

    Exit codes: 0 fine; 1 regression; 3 undecided, with --fail-on undecided; 4 another machine;
    5 a case failed, or nothing was measured; 6 no usable baseline.
    """
    from hwbench.studies import gate

    if fail_on is not None and fail_on not in _FAIL_ON:
        raise UsageError(f"--fail-on takes undecided, not {fail_on!r}.")
    if as_json and github:
        raise UsageError("--json and --github both print; use --json-out FILE with --github.")
    share = fraction("--threshold", threshold)
    files.refuse_inputs([junit, markdown, json_out], [run, baseline])
    with (
        progress()
        if confirm or confirm_by
        else contextlib.nullcontext(lambda result: None) as listener
    ):
        outcome = gate.check(
            run, baseline, threshold=share, metric=metric,
            window=window, confirm=confirm, confirm_by=confirm_by,
            fail_on_undecided=fail_on is not None,
            unfinished=unfinished,
            require_sight=fraction("--require-sight", require_sight) if require_sight else None,
            listener=listener,
        )  # fmt: skip
    aside = _shared.is_stream(junit, markdown, json_out)
    unwritten = write(outcome, junit=junit, markdown=markdown, json_out=json_out)
    tell(outcome, as_json=as_json, github=github, unwritten=unwritten, aside=aside)


def tell(
    outcome: Outcome,
    *,
    as_json: bool,
    github: bool = False,
    unwritten: Sequence[RunFileError] = (),
    aside: bool = False,
) -> NoReturn:
    """Print an outcome, its table on standard error where ``aside``; end with its exit code.

    A report that could not be written takes no verdict away: it is told, and only where all is
    well otherwise it is the exit code.
    """
    if as_json:
        from hwbench.analysis.outcome import plain

        _shared.say_json(plain(outcome))
    else:
        _show(outcome, aside=aside)
    if github:
        unwritten = [*unwritten, *_github(outcome)]
    _shared.say(f"hwbench: {_printable(outcome.sentence())}", error=True)
    for error in unwritten:
        _shared.say(f"hwbench: {_printable(str(error))}", error=True)
    raise typer.Exit(outcome.exit or (RunFileError.exit_code if unwritten else 0))


def fraction(option: str, text: str) -> float:
    """``3%`` or ``0.03`` as a fraction between 0 and 1.

    Raises:
        UsageError: the text is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{option} is a share between 0 and 1, such as 3% or 0.03, not {text!r}.")
    return value


def _show(outcome: Outcome, *, aside: bool) -> None:
    from hwbench.report.changes import table

    console = _shared.console(error=aside)
    for part in table(outcome, console.width):
        console.print(part)


def write(
    outcome: Outcome, *, junit: Path | None, markdown: Path | None, json_out: Path | None
) -> list[RunFileError]:
    """Write every requested report, whatever the verdict; returns why one could not be written."""
    from hwbench.analysis.outcome import plain
    from hwbench.report import junit as xml
    from hwbench.report import markdown as comment

    reports: list[tuple[Path | None, Callable[[Outcome], str]]] = [
        (junit, xml.render),
        (markdown, comment.render),
        (json_out, lambda outcome: _shared.as_json(plain(outcome)) + "\n"),
    ]
    unwritten = []
    for path, render in reports:
        if path is not None:
            try:
                files.write_text(path, render(outcome))
            except RunFileError as error:
                unwritten.append(error)
    return unwritten


def _github(outcome: Outcome) -> list[RunFileError]:
    """Print annotations and append to the summary; why that could not be written."""
    from hwbench.report import github

    for line in github.commands(outcome):
        command(line)
    target = os.environ.get(_SUMMARY)
    if not target:
        _shared.say(f"{_SUMMARY} is not set: there is no step to write a summary for.", error=True)
        return []
    try:
        with Path(target).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(github.summary(outcome))
    except OSError as error:
        return [RunFileError(f"Cannot write {target}: {error.strerror}.")]
    return []


def _printable(text: str) -> str:
    from hwbench.report.rows import printable

    return printable(text)
