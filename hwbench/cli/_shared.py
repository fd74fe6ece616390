"""Shared by several verbs: consoles, lists in options, and finding a run file."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from hwbench import files
from hwbench.channels import plain_json, visible
from hwbench.errors import RunFileError, SuiteError, UsageError, shortened

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_PIPED_WIDTH = 160  # columns of a table that no terminal cuts
_LONGEST_NAMES = 300  # characters of a list of files in a sentence


def console(*, error: bool = False) -> Console:
    """A console that knows whether it is a terminal; a pipe gets plain text of a fixed width.

    No text is markup: a name may hold brackets and colons.
    """
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    if stream.isatty():
        return Console(file=stream, **plain)
    return Console(file=stream, width=_PIPED_WIDTH, no_color=True, **plain)


def say(sentence: str = "", *, error: bool = False) -> None:
    """Print one line; a quoted path or name can neither break it nor steer the terminal."""
    typer.echo(visible(sentence), err=error)


def say_json(document: object, **style: Any) -> None:
    """Print a document ``as_json``; its strings can steer neither a terminal nor a log."""
    typer.echo(plain_json(as_json(document, **style)))


def as_json(document: object, **style: Any) -> str:
    """A document as JSON; a number that is not known, or without a limit, is null.

    ``style`` are arguments of ``json.dumps``.
    """
    return json.dumps(_finite(document), allow_nan=False, **style)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def is_stream(*targets: Path | None) -> bool:
    """Whether one of the files that are to be written is none: a pipe, a device, our own output.

    Words then go to standard error, so that what is piped on is what was asked for. It is asked
    before anything is written: a file that standard output led to is replaced by the new one.
    """
    return any(target is not None and _is_stream(target) for target in targets)


def _is_stream(target: Path) -> bool:
    if not target.exists():
        return False
    return not target.is_file() or os.path.samestat(target.stat(), os.fstat(1))


def at_home(verb: Callable[..., T]) -> Callable[..., T]:
    """A verb whose paths may begin with ``~``, which no shell replaces in ``--out=~/runs``."""

    @functools.wraps(verb)
    def call(**arguments: Any) -> T:
        return verb(**{name: _at_home(value) for name, value in arguments.items()})

    return call


def _at_home(value: Any) -> Any:
    if isinstance(value, Path):
        # A file that is there under this very name is what is meant.
        return value if os.path.lexists(value) else files.named(value)
    return [_at_home(each) for each in value] if isinstance(value, list) else value


def listed(values: list[str] | None) -> list[str]:
    """Options that may be repeated or hold commas, as one list."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def shapes(values: list[str] | None) -> list[list[int]]:
    """``4096x11008`` as [out_features, in_features].

    Raises:
        UsageError: a value is not two whole numbers with an x between them.
    """
    pairs = []
    for value in listed(values):
        match = re.fullmatch(r"(\d+)[x×](\d+)", value)
        if not match:
            raise UsageError(f"--shape is OUTxIN, such as 4096x11008, not {value!r}.")
        pairs.append([int(match[1]), int(match[2])])
    return pairs


def numbers(option: str, values: list[str] | None, kind: type[int] | type[float]) -> list[float]:
    """Numbers of an option that may hold commas.

    Raises:
        UsageError: a value is not a number, or not a finite one.
    """
    converted: list[float] = []
    for value in listed(values):
        try:
            converted.append(kind(value))
        except ValueError:
            raise UsageError(f"{option} takes numbers, not {value!r}.") from None
        if kind is float and not math.isfinite(converted[-1]):
            raise UsageError(f"{option} takes finite numbers, not {value!r}.")
    return converted


def with_data(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The document of a suite with this folder where its cases ask for data; None changes nothing.

    Raises:
        SuiteError: no case asks for data.
        UsageError: there is no such folder.
    """
    if folder is None:
        return document
    directory = files.named(folder)
    if not directory.is_dir():
        raise UsageError(f"--data {str(folder)!r} is not a folder.")
    changed, asking = _asking(
        document,
        lambda block: "data" in block,
        "--data is for suites that ask for it, such as --suite training_gpt2.",
    )
    for block in asking:
        block["data"] = str(directory.resolve())
    return changed


def with_model(document: dict[str, Any], model: str | None) -> dict[str, Any]:
    """The document of a suite with this model in its compressions, and their shape as its width.

    Args:
        document: as ``suite.override`` returns it.
        model: as for ``models.fetched``; None changes nothing.

    Raises:
        SuiteError: nothing in it compresses a model.
        UsageError: as for ``models.fetched``, or the model cannot be read after all.
    """
    from hwbench import checkpoints as models
    from hwbench.measure import run as runner
    from hwbench.records import Case

    if model is None:
        return document
    changed, compressing = _asking(
        document,
        lambda block: block.get("workload") == "compress",
        "--model is for suites that compress a model, such as --suite compress; "
        f"{shortened(str(document.get('name')))} has no such case.",
    )
    stored = models.fetched(model)
    side = models.width(models.folder(stored))
    whole = Case(
        workload="compress", format="dense", out_features=side, in_features=side,
        dtype="float32", device="cpu", options={"model": stored},
    )  # fmt: skip
    if reason := runner.unsupported(whole):
        raise UsageError(reason)
    for block in compressing:
        block |= {"model": stored, "shape": [[side, side]]}
    return changed


def _asking(
    document: dict[str, Any], asks: Callable[[dict[str, Any]], bool], otherwise: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A copy of the document, and those of its blocks that may be changed; an error for none."""
    blocks = [dict(block) for block in document.get("cases", [])]
    asking = [block for block in blocks if asks(block)]
    if not asking:
        raise SuiteError(otherwise)
    return {**document, "cases": blocks}, asking


def run_files(paths: list[Path]) -> list[Path]:
    """The run files that the paths name; a folder stands for the runs that it holds, each once.

    Raises:
        RunFileError: a path is not there, or a folder holds no run.
    """
    from hwbench.store import list_runs

    run_paths: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = list_runs(path)
            if not inside:
                raise RunFileError(f"{path} holds no run file (*.jsonl).")
            run_paths += _each_once(path, inside)
        elif path.exists():
            run_paths.append(path)
        else:
            raise RunFileError(f"There is no run file {path}.")
    return run_paths


def _each_once(folder: Path, inside: list[Path]) -> list[Path]:
    """One file of each run of a folder, and a line that names the others, such as shared copies.

    It is the one that has the name of its run, else the first.
    """
    from hwbench.store import read_header

    by_run: dict[str, Path] = {}
    unread: set[Path] = set()
    for path in inside:
        try:
            run = read_header(path).run
        except RunFileError:
            # It stays in the list: the verb that reads it says what is wrong with it.
            unread.add(path)
            continue
        if run not in by_run or path.name == f"{run}.jsonl":
            by_run[run] = path
    once = unread | {*by_run.values()}
    if copies := [path.name for path in inside if path not in once]:
        from hwbench.studies.baseline import COPIES

        names = shortened(", ".join(copies), _LONGEST_NAMES)
        say(
            f"Runs in {folder} that are left out: {len(copies)} {COPIES} ({names}).",
            error=True,
        )
    return [path for path in inside if path in once]
