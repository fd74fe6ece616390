"""The command line: one verb a file; the only place that prints or picks an exit code.

Exit codes: 0 fine; 1 regression; 2 usage or bad input; 3 undecided; 4 environments not comparable;
5 a case failed or nothing could be measured; 6 no usable baseline; 70 a bug in hwbench; 130
interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

import typer

import hwbench
from hwbench.channels import guarded, visible
from hwbench.cli import (
    ab,
    baseline,
    ceilings,
    check,
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
)
from hwbench.errors import HwbenchError, UsageError

BUG, INTERRUPTED = 70, 130

app = typer.Typer(
    name="hwbench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which weight format should this linear layer use on this machine, "
    "at the accuracy I need?",
    epilog="Start with: hwbench run --suite smoke, then hwbench run, "
    "then hwbench report runs/*.jsonl",
)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("check")(check.check)
app.command("ab")(ab.ab)
app.command("selftest")(selftest.selftest)
app.add_typer(baseline.app, name="baseline")
app.command("history")(history.history)
app.command("plot")(plot.plot)
app.command("export")(export.export)
app.command("ceilings")(ceilings.ceilings)
app.command("doctor")(doctor.doctor)
app.command("profile")(profile.profile)
app.command("list")(list_.list_)


def _version(asked: bool) -> None:
    if asked:
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
    sys.exit(_code())


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
@guarded()
def _code() -> int:
    try:
        return app(standalone_mode=False) or 0
    except HwbenchError as error:
        _tell(f"hwbench: {error}")
        return error.exit_code
    except typer.Exit as ended:
        return ended.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _tell("hwbench: interrupted.")
        return INTERRUPTED
    except SystemExit:  # how typer ends when the reader of our output goes away, as head does
        return 0
    except Exception as error:  # noqa: BLE001 (the last boundary: a bug must not look like a regression)
        if hasattr(error, "format_message"):  # the parser's own: typer keeps the class private
            _tell(f"hwbench: {error.format_message()} See hwbench --help.")
            return UsageError.exit_code
        _tell(f"hwbench: a bug: {type(error).__name__}: {error}. Run with --debug for a traceback.")
        return BUG


def _tell(sentence: str) -> None:
    if _Debug.on:
        traceback.print_exc()
    print(visible(sentence), file=sys.stderr)
