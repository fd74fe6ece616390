"""The command line: one verb a file; the only place that prints or picks an exit code.

Exit codes: 0 fine; 1 regression; 2 usage or bad input; 3 undecided; 4 environments not comparable;
5 a case failed or nothing could be measured; 6 no usable baseline; 70 a bug in hwbench; 130
interrupted. What becomes of the output changes none of them, see ``_streams``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import typer

import hwbench
from hwbench.channels import guarded, visible
from hwbench.cli import (
    _shared,
    _streams,
    ab,
    baseline,
    capture,
    ceilings,
    check,
    choose,
    compare,
    doctor,
    export,
    history,
    list_,
    plot,
    profile,
    report,
    run,
    selftest,
    shapes,
    share,
    show,
)
from hwbench.errors import HwbenchError, UsageError

BUG, INTERRUPTED = 70, 130
_COMPLETION = ("--install-completion", "--show-completion")
_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="hwbench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    help="Which weight format should this linear layer use on this machine, "
    "at the accuracy I need?",
    epilog="Start with: hwbench run --suite smoke, then hwbench run, "
    "then hwbench report runs/*.jsonl",
)
MEASURE, READ = "Measure", "Read what was measured"
JUDGE, MACHINE = "Compare and judge", "This machine, and what there is"

app.command("run", rich_help_panel=MEASURE)(run.run)
app.command("choose", rich_help_panel=MEASURE)(choose.choose)
app.command("shapes", rich_help_panel=MEASURE)(shapes.shapes)
app.command("capture", rich_help_panel=MEASURE)(capture.capture)
app.command("profile", rich_help_panel=MEASURE)(profile.profile)
app.command("show", rich_help_panel=READ)(show.show)
app.command("report", rich_help_panel=READ)(report.report)
app.command("plot", rich_help_panel=READ)(plot.plot)
app.command("export", rich_help_panel=READ)(export.export)
app.command("share", rich_help_panel=READ)(share.share)
app.command("compare", rich_help_panel=JUDGE)(compare.compare)
app.command("check", rich_help_panel=JUDGE)(check.check)
app.command("ab", rich_help_panel=JUDGE)(ab.ab)
app.add_typer(baseline.app, name="baseline", rich_help_panel=JUDGE)
app.command("history", rich_help_panel=JUDGE)(history.history)
app.command("selftest", rich_help_panel=JUDGE)(selftest.selftest)
app.command("doctor", rich_help_panel=MACHINE)(doctor.doctor)
app.command("ceilings", rich_help_panel=MACHINE)(ceilings.ceilings)
app.command("list", rich_help_panel=MACHINE)(list_.list_)

for _group in (app, baseline.app):
    for _command in _group.registered_commands:
        assert _command.callback is not None
        _command.callback = _shared.at_home(_command.callback)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"hwbench {hwbench.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and end."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback with every error."),
) -> None:
    del version
    _Debug.on = debug


class _Debug:
    on = False


def main() -> None:
    """Run the command line and end the process with its exit code."""
    _streams.opened()
    code = _code()
    _streams.hushed()
    sys.exit(code)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which batch systems and ``timeout`` send, ends the command as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_ended_by_sigterm()
def _code() -> int:
    """The exit code of the verb's result; trouble with the output does not change it.

    Only a success whose output was lost is none: it is exit code 2.
    """
    with _streams.steady() as (out, _), guarded():
        code = _ended()
        out.flush()
        if out.lost:
            _tell(f"hwbench: Not all of the output could be written: {out.lost}.")
            code = code or UsageError.exit_code
    return code


def _ended() -> int:
    _Debug.on = False  # a mistake in the words before it is parsed knows of no option
    try:
        return _parser()(standalone_mode=False) or 0
    except HwbenchError as error:
        _tell(f"hwbench: {error}")
        return error.exit_code
    except typer.Exit as ended:
        return ended.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _tell("hwbench: interrupted.")
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the last boundary: a bug must not look like a regression)
        return _unforeseen(error)


@functools.cache
def _parser() -> Any:
    """The command line, with a help that fits every terminal.

    Typer keeps the line breaks of a docstring, and names the type of what is on or off.
    """
    commands = [typer.main.get_command(app)]
    for command in commands:  # which grows
        commands += getattr(command, "commands", {}).values()
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or ""))
        context = typer.Context(command, help_option_names=_CONTEXT["help_option_names"])
        for option in command.get_params(context):
            if getattr(option, "is_flag", False):
                option.metavar = ""
    return commands[0]


def _unforeseen(error: BaseException) -> int:
    """Handles the errors that no verb handles: the system's, the parser's, an exit, a bug."""
    if isinstance(error, SystemExit):
        if isinstance(error.__context__, OSError):  # so the parser passes a broken pipe on
            return _refused(error.__context__)
        if not error.code and _completing():  # so the parser ends when it has served a shell
            return 0
    if isinstance(error, (OSError, MemoryError)):
        return _refused(error)
    if hasattr(error, "format_message"):  # the parser's own: typer keeps the class private
        if message := error.format_message():  # else it printed its help, as nothing was asked for
            _tell(f"hwbench: {_explained(message, error)} See {_path(error)} --help.")
        return UsageError.exit_code
    _tell(f"hwbench: a bug: {type(error).__name__}: {error}. Run with --debug for a traceback.")
    return BUG


def _explained(message: str, error: Any) -> str:
    """The parser's message, with the help on the option or argument that was left out."""
    words = getattr(getattr(error, "param", None), "help", None)
    missing = type(error).__name__ == "MissingParameter"
    return f"{message.removesuffix('.')}: {words}" if missing and words else message


def _path(error: Any) -> str:
    """The command whose help says more: ``hwbench plot``."""
    names, context = [], getattr(error, "ctx", None)
    while context is not None and context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return " ".join(["hwbench", *reversed(names)])


def _completing() -> bool:
    """Whether a shell asks for completions, or a user for the completion script."""
    return "_HWBENCH_COMPLETE" in os.environ or any(each in _COMPLETION for each in sys.argv)


def _refused(error: OSError | MemoryError) -> int:
    """A sentence that names what the system refused: a file, a folder, or memory."""
    if isinstance(error, MemoryError):
        why = "There is not enough memory for this; free some, or give it less to read"
    else:
        why = error.strerror or str(error) or type(error).__name__
        if error.filename is not None:
            why = f"Cannot use {os.fsdecode(error.filename)}: {why}"
    _tell(f"hwbench: {why}.")
    return UsageError.exit_code


def _tell(sentence: str) -> None:
    if _Debug.on:
        traceback.print_exc()
    print(visible(sentence), file=sys.stderr)
