"""Members of the open sets, found by name: the file name is the registration.

``hwbench/formats/monarch.py`` *is* the format ``monarch``. Other packages add members through the
entry-point groups ``hwbench.formats``, ``hwbench.workloads``, ``hwbench.devices`` and
``hwbench.meters``. Listing names imports nothing; asking for one member imports that one only.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from hwbench import files
from hwbench.errors import UnknownNameError, UsageError, first_line, shortened

T = TypeVar("T")

_ABSTRACT = "__isabstractmethod__"
KINDS = ("formats", "workloads", "devices", "meters")


def _folder(kind: str) -> Path:
    return Path(__file__).parent / kind


@cache
def _external(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"hwbench.{kind}")}


@cache
def _own(kind: str) -> frozenset[str]:
    stems = (path.stem for path in _folder(kind).glob("*.py"))
    return frozenset(name for name in stems if not name.startswith("_"))


def names(kind: str) -> list[str]:
    """Every member of an open set, built-in and third-party, sorted; nothing is imported."""
    return sorted(_own(kind) | set(_external(kind)))


def check(kind: str, name: str) -> str:
    """Return ``name`` if it is a member of the open set.

    Raises:
        UnknownNameError: no member has that name; the message says which is nearest.
    """
    if name not in _own(kind) and name not in _external(kind):
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    return name


def summary(kind: str, name: str) -> str:
    """The first sentence of a member's docstring, read without importing it."""
    path = _folder(kind) / f"{check(kind, name)}.py"
    if not path.exists():
        point = _external(kind)[name]
        located = _located(point.module)
        if located is None:
            return f"from the package {point.dist.name}" if point.dist else "from another package"
        path = located
    try:
        doc = ast.get_docstring(ast.parse(files.read(path, files.MOST_OF_A_DOCUMENT))) or ""
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"cannot be used: its source cannot be read ({shortened(first_line(error))})"
    return doc.split("\n\n")[0].replace("\n", " ").strip()


def _located(module: str) -> Path | None:
    """The source file of a module, found without importing it or what it lies in."""
    first, *others = module.split(".")
    spec = importlib.util.find_spec(first)
    for number in range(len(others)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        whole = ".".join([first, *others[: number + 1]])
        spec = PathFinder.find_spec(whole, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def load(kind: str, name: str, base: type[T]) -> type[T]:
    """Import one member and return its class, the one subclass of ``base`` that it defines.

    Raises:
        UnknownNameError: no member has that name.
        UsageError: the member does not define exactly one public subclass of ``base``, or another
            package's member cannot be imported.
    """
    check(kind, name)
    built_in = (_folder(kind) / f"{name}.py").exists()
    point = None if built_in else _external(kind)[name]
    try:
        target = point.load() if point else importlib.import_module(f"hwbench.{kind}.{name}")
    except Exception as error:
        if point is None:
            raise
        raise UsageError(f"The {kind[:-1]} {name!r} ({point.value}) fails: {error}.") from error
    if inspect.isclass(target):
        members = [target]
    else:
        members = [
            member
            for member in vars(target).values()
            if inspect.isclass(member)
            and member.__module__ == target.__name__
            and not member.__name__.startswith("_")
        ]
    own = [member for member in members if issubclass(member, base)]
    concrete = [member for member in own if not inspect.isabstract(member)]
    if len(concrete) != 1:
        where = point.value if point else f"hwbench/{kind}/{name}.py"
        lacking = "".join(
            f"; {each.__name__} lacks {', '.join(_abstract(each))}"
            for each in own
            if inspect.isabstract(each)
        )
        raise UsageError(
            f"{where} must define exactly one public subclass of {base.__name__}; "
            f"it defines {len(concrete)}{lacking}."
        )
    return concrete[0]


def _abstract(member: type) -> list[str]:
    """The methods that a class has still to give."""
    return [name for name in dir(member) if getattr(getattr(member, name), _ABSTRACT, False)]
