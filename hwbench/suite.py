"""TOML → Suite → cases as written: syntax, axes and names; the planner checks the rest.

A list multiplies, a scalar does not. ``on.<kind>`` replaces axes on that kind of device,
``exclude`` removes cases. Unknown keys are errors that name the file, the key and the nearest one.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hwbench import files, plugins
from hwbench.errors import HwbenchError, SuiteError, UnknownNameError, shortened
from hwbench.records import (
    ITEM_BYTES,
    Allocator,
    Case,
    Direction,
    Knob,
    Mode,
    Plan,
    Regime,
    Suite,
)

SCHEMA = 1
_TOP = ("schema", "name", "about", "plan", "cases")
_AXES = ("shape", "tokens", "dtype", "direction", "regime", "mode")
_BLOCK = ("workload", "format", "exclude", "on", "only", "quick", "count", *_AXES)
_MOST_FEATURES = 2**24  # a longer side is a slip, not a layer
_MOST_LAYERS = 2**20  # of one shape in one model
_LONGEST_WORD = 400  # the path of a folder is a word too
_TOO_LARGE = 2**63  # a run file holds 64-bit numbers
_MOST_CASES = 1_000_000  # more in one suite is a slip too, and would fill the memory before it ran
_CHOICES: dict[str, Sequence[str]] = {
    "direction": [d.value for d in Direction],
    "regime": [r.value for r in Regime],
    "mode": [m.value for m in Mode],
    "dtype": list(ITEM_BYTES),
    "allocator": [a.value for a in Allocator],
}
SHARES = ("density", "stored")
"""The knobs that every format has: shares of dense's parameters, and of its bytes."""

PLAN: dict[str, Any] = {"allocator": Allocator.KEPT.value}
"""What a new run is planned with where its suite says nothing, and the record has another default:
there it is what runs were from before it was stored."""

_DEFAULTS: dict[str, Any] = {"tokens": 256, "dtype": "float32", "direction": "forward"}


def folder() -> Path:
    """Where the shipped suites are: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "suites"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "suites"


def names() -> list[str]:
    """The shipped suites by name."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def model_names() -> list[str]:
    """The shipped suites of models' linear layers by name, such as ``models/llama_3_1_8b``."""
    return sorted(f"models/{path.stem}" for path in (folder() / "models").glob("*.toml"))


def read(name_or_path: str) -> dict[str, Any]:
    """The document of a shipped suite, or of a file, as written.

    Raises:
        SuiteError: the file cannot be read or is not TOML.
        UnknownNameError: there is neither such a file nor such a suite.
    """
    path = files.named(name_or_path, SuiteError)
    if path.suffix != ".toml" and not path.is_file():
        shipped = [*names(), *model_names()]
        if name_or_path not in shipped:
            raise UnknownNameError("suite", name_or_path, shipped)
        path = folder() / f"{name_or_path}.toml"
    try:
        document = tomllib.loads(files.read_text(path))
    except OSError as error:
        raise SuiteError(f"Cannot read the suite {path}: {error.strerror}.") from error
    except RecursionError:
        raise SuiteError(f"{path} is not a suite: it is nested too deeply.") from None
    except ValueError as error:  # also of TOML, of UTF-8, and of a number with thousands of digits
        raise SuiteError(f"{path} is not valid TOML: {shortened(str(error))}.") from error
    try:
        _check_keys(document, _TOP, "key")  # before keys of our own are added
    except UnknownNameError as error:
        raise SuiteError(f"{path}: {error}") from error
    return {**document, "source": str(path), "merge": False}


def build(document: Mapping[str, Any], device: str) -> Suite:
    """The suite of a document for one kind of device, its cases multiplied out.

    Raises:
        SuiteError: a key, a value or a combination is wrong; the message names file and key.
    """
    document = dict(document)
    where, merge = str(document.pop("source", "the suite")), document.pop("merge", False)
    try:
        _check_keys(document, _TOP, "key")
        if document.get("schema") != SCHEMA:
            raise SuiteError(f"schema must be {SCHEMA}, not {_quoted(document.get('schema'))}.")
        name = document.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SuiteError(f"name must be letters, digits, _ and -, not {_quoted(name)}.")
        plan = _plan(document.get("plan", {}))
        blocks = document.get("cases", [])
        if not isinstance(blocks, list) or not blocks:
            raise SuiteError("there is no [[cases]] block.")
        cases: list[Case] = []
        for block in blocks:
            cases += _block(block, plan, device)
            if len(cases) > _MOST_CASES:
                raise SuiteError(f"it asks for more than {_MOST_CASES} cases.")
    except HwbenchError as error:
        raise SuiteError(f"{where}: {error}") from error
    repeated = [i for i, n in Counter(case.id for case in cases).items() if n > 1]
    if repeated and not merge:
        raise SuiteError(f"{where}: the case {repeated[0]} is asked for twice.")
    if not cases:
        raise SuiteError(f"{where}: no case is left after the exclusions.")
    about, by_id = str(document.get("about", "")), {case.id: case for case in cases}
    return Suite(name=name, about=about, plan=plan, cases=list(by_id.values()), source=where)


def _check_keys(table: object, allowed: Iterable[str], kind: str) -> None:
    if not isinstance(table, dict):
        raise SuiteError(f"expected a table, found {_quoted(table)}.")
    for key in table:
        if key not in allowed:
            raise UnknownNameError(kind, str(key), allowed)


def _plan(table: dict[str, Any]) -> Plan:
    _check_keys(table, Plan.__struct_fields__, "key of [plan]")
    try:
        plan = msgspec.convert({**PLAN, **table}, Plan)
    except msgspec.ValidationError as error:
        raise SuiteError(f"[plan] is wrong: {error}.") from error
    for key in ("relative_width", "budget_seconds", "timeout_seconds"):
        value = getattr(plan, key)
        if not (math.isfinite(value) and value > 0):
            raise SuiteError(f"[plan] {key} must be above zero, not {value}.")
    if not 1 <= plan.replicates <= 1000:
        raise SuiteError(f"[plan] replicates must be between 1 and 1000, not {plan.replicates}.")
    most = plan.replicates_most
    if most is not None and not plan.replicates <= most <= 1000:
        raise SuiteError(
            f"[plan] replicates_most must be between replicates ({plan.replicates}) and 1000, "
            f"not {most}."
        )
    for key in ("regime", "mode"):
        for value in _listed(getattr(plan, key)):
            _choice(key, value)
    _choice("allocator", plan.allocator)
    return plan


def replanned(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    """The plan with some of its fields replaced; ``replicates_most`` follows more replicates.

    Raises:
        SuiteError: a value is wrong.
        UnknownNameError: a plan has no such field.
    """
    table = {name: getattr(plan, name) for name in plan.__struct_fields__} | dict(changes)
    most, asked = table["replicates_most"], table["replicates"]
    if "replicates_most" not in changes and most is not None and isinstance(asked, int):
        table["replicates_most"] = max(most, asked)
    return _plan(table)


def _block(block: object, plan: Plan, device: str) -> Iterator[Case]:
    if not isinstance(block, dict):
        raise SuiteError(f"a [[cases]] block must be a table, not {_quoted(block)}.")
    workload = block.get("workload")
    if not isinstance(workload, str):
        raise SuiteError("a [[cases]] block needs a workload.")
    plugins.check("workloads", workload)
    axes = {key: block[key] for key in _AXES if key in block}
    options = {key: block[key] for key in block if key not in _BLOCK}
    layers = _positive("count", block.get("count", 1), _MOST_LAYERS)
    by_kind = block.get("on", {})
    _check_keys(by_kind, plugins.names("devices"), "device kind in 'on'")
    for kind, replaced in by_kind.items():
        _check_keys(replaced, (*_AXES, "format"), f"axis in on.{kind}")
    only = [plugins.check("devices", str(kind)) for kind in _listed(block.get("only", []))]
    changes = by_kind.get(device, {})
    axes |= {key: value for key, value in changes.items() if key in _AXES}
    formats = _formats(changes.get("format", block.get("format")))
    timed = any(key in axes for key in ("tokens", "direction"))
    exclude = _listed(block.get("exclude", []))
    own_knobs = _knobs(table["format"] for table in (block, *by_kind.values()) if "format" in table)
    for rule in exclude:
        _check_keys(rule, ["format", *_AXES, *options, *own_knobs], "key of exclude")
    for key in ("regime", "mode"):
        axes.setdefault(key, getattr(plan, key))
    option_sets = _product(options)
    lists = _lists(axes, timed=timed)
    count = math.prod(map(len, lists.values())) * len(formats) * len(option_sets)
    if count > _MOST_CASES:
        raise SuiteError(f"a [[cases]] block asks for {count} cases; {_MOST_CASES} are the most.")
    if only and device not in only:
        return
    for values in _multiply(lists):
        for name, knobs in formats:
            for option in option_sets:
                case = Case(
                    workload=workload, format=name, knobs=knobs, options=option,
                    device=device, count=layers, **values,
                )  # fmt: skip
                if not any(_matches(case, rule) for rule in exclude):
                    yield case


def _lists(axes: Mapping[str, Any], *, timed: bool) -> dict[str, list[Any]]:
    """The checked values of each axis; without tokens or direction: of shape and dtype."""
    axes_needed = _AXES if timed else ("shape", "dtype")
    lists = {}
    for key in axes_needed:
        value = axes.get(key, _DEFAULTS.get(key))
        if value is None:
            raise SuiteError(f"a [[cases]] block needs {key}.")
        if key == "shape" and isinstance(value, list) and value and isinstance(value[0], int):
            value = [value]
        lists[key] = [_axis_value(key, each) for each in _listed(value)]
        if not lists[key]:
            raise SuiteError(f"{key} is an empty list.")
    return lists


def _multiply(lists: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes."""
    for combination in itertools.product(*lists.values()):
        values = dict(zip(lists, combination, strict=True))
        values["out_features"], values["in_features"] = values.pop("shape")
        yield values


def _axis_value(key: str, value: Any) -> Any:
    if key == "shape":
        if not isinstance(value, list) or len(value) != 2:
            raise SuiteError(f"a shape is [out_features, in_features], not {_quoted(value)}.")
        return tuple(_positive("shape", side, _MOST_FEATURES) for side in value)
    if key == "tokens":
        return _positive("tokens", value, 2**31)
    return _choice(key, value)


def _positive(key: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise SuiteError(
            f"{key} must be a whole number between 1 and {most}, not {_quoted(value)}."
        )
    return value


def _choice(key: str, value: Any) -> str:
    if value not in _CHOICES[key]:
        raise UnknownNameError(key, str(value), _CHOICES[key])
    return str(value)


def allocator(name: str) -> str:
    """The name of an allocator, where there is one.

    Raises:
        UnknownNameError: there is none; the message names the nearest.
    """
    return _choice("allocator", name)


def _quoted(value: object) -> str:
    """A value from a file as an error may quote it: escaped, and never long."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes out no whole number of more than 4300 digits
        return "a number of thousands of digits"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _formats(entries: Any) -> list[tuple[str, dict[str, Knob]]]:
    if not isinstance(entries, list) or not entries:
        raise SuiteError("format must be a list such as [{ name = 'dense' }].")
    formats = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise SuiteError(f"a format is a table with a name, not {_quoted(entry)}.")
        name = plugins.check("formats", entry["name"])
        knobs = {key: value for key, value in entry.items() if key != "name"}
        formats += [(name, _plain(each)) for each in _product(knobs)]
    return formats


def _knobs(entries: Iterable[Any]) -> set[str]:
    """The knobs that lists of formats name."""
    return {key for formats in entries for _, knobs in _formats(formats) for key in knobs}


def _plain(knobs: dict[str, Knob]) -> dict[str, Knob]:
    """Knobs with the shares of dense as floats, so that 1 and 1.0 make the same case."""
    whole = {
        key: float(value)
        for key, value in knobs.items()
        if key in SHARES and isinstance(value, int) and not isinstance(value, bool)
    }
    return {**knobs, **whole}


def _product(table: Mapping[str, Any]) -> list[dict[str, Knob]]:
    for key, value in table.items():
        for each in _listed(value):
            if not isinstance(each, (bool, int, float, str)):
                raise SuiteError(
                    f"{shortened(key)} must be a number, a word or a list of them, "
                    f"not {_quoted(each)}."
                )
            if isinstance(each, float) and not math.isfinite(each):
                raise SuiteError(f"{shortened(key)} must be a finite number, not {each}.")
            if isinstance(each, int) and abs(each) >= _TOO_LARGE:
                raise SuiteError(f"{shortened(key)} is out of range: {_quoted(each)}.")
            if isinstance(each, str) and not (each.isprintable() and len(each) <= _LONGEST_WORD):
                raise SuiteError(
                    f"{shortened(key)} must be a short plain word, not {_quoted(each)}."
                )
    lists = [_listed(value) for value in table.values()]
    count = math.prod(map(len, lists))
    if count > _MOST_CASES:
        raise SuiteError(f"one table of it asks for {count} cases; {_MOST_CASES} are the most.")
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*lists)]


def _matches(case: Case, rule: Mapping[str, Any]) -> bool:
    facts = case.facts
    return all(
        facts.get(key) == value if key == "shape" else facts.get(key) in _listed(value)
        for key, value in rule.items()
    )


def quickened(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what each block's table ``quick`` says put in place: shorter trainings.

    Raises:
        SuiteError: ``quick`` is not a table, or names what the block does not have.
    """
    _well_formed(document)
    blocks = []
    for block in document.get("cases", []):
        table = block.get("quick", {})
        _check_keys(table, [key for key in block if key != "quick"], "key of quick")
        blocks.append({key: value for key, value in (block | table).items() if key != "quick"})
    return {**document, "cases": blocks}


def override(
    document: dict[str, Any],
    *,
    shape: Sequence[Sequence[int]] = (),
    tokens: Sequence[float] = (),
    dtype: Sequence[str] = (),
    density: Sequence[float] = (),
    stored: Sequence[float] = (),
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """The document with the axes that the command line asked for put in place of its own.

    ``shape``, ``tokens`` and ``dtype`` replace the axes of the blocks that have tokens; ``density``
    or ``stored`` replaces every share of dense; ``formats`` keeps those names, with dense as their
    yardstick, and adds the ones that the suite does not have. A block of dense alone beside others
    is a control, such as a smaller model, to which no format is added. What is asked for twice by
    it is one case.
    """
    _well_formed(document)
    if density and stored:
        raise SuiteError("Ask either for a density or for stored bytes, not for both.")
    shares = ("density", density) if density else ("stored", stored)
    axes_asked = {"shape": shape, "tokens": tokens, "dtype": dtype}
    blocks = [dict(block) for block in document.get("cases", [])]
    controls = [block for block in blocks if _is_dense(block)]
    for block in blocks:
        timed = "tokens" in block or "direction" in block
        by_kind = {kind: dict(axes) for kind, axes in block.get("on", {}).items()}
        for key, values in axes_asked.items():
            if values and timed:
                block[key] = list(values)
                if key == "shape":  # how often a layer stands in a model is not known of others
                    block.pop("count", None)
                for axes in by_kind.values():
                    axes.pop(key, None)
        tables = [table for table in (block, *by_kind.values()) if "format" in table]
        replaced = _knobs(table["format"] for table in tables)
        block_formats = () if block in controls and len(controls) < len(blocks) else formats
        for table in tables:
            table["format"] = _chosen(table["format"], *shares, block_formats)
        replaced -= _knobs(table["format"] for table in tables)
        rules = _listed(block.get("exclude", []))  # one by a knob that is gone matches nothing
        block["exclude"] = [r for r in rules if not (isinstance(r, dict) and replaced & r.keys())]
        if by_kind:
            block["on"] = by_kind
    return {
        **document,
        "cases": blocks,
        "merge": any([*axes_asked.values(), density, stored, formats]),
    }


def _is_dense(block: Mapping[str, Any]) -> bool:
    """Whether a block asks for dense alone, on every kind of device."""
    tables = [block, *block.get("on", {}).values()]
    format_lists = [_formats(table["format"]) for table in tables if "format" in table]
    return bool(format_lists) and all(name == "dense" for each in format_lists for name, _ in each)


def _well_formed(document: Mapping[str, Any]) -> None:
    """Tables where tables belong; what they hold is checked when the suite is built."""
    blocks = document.get("cases", [])
    if not isinstance(blocks, list):
        raise SuiteError("a case is written as [[cases]], with two brackets.")
    for block in blocks:
        by_kind = block.get("on", {}) if isinstance(block, dict) else None
        if not isinstance(by_kind, dict) or not all(
            isinstance(axes, dict) for axes in by_kind.values()
        ):
            raise SuiteError("[[cases]] and on.<device> must be tables.")
        for table in (block, *by_kind.values()):
            _formats(table.get("format", [{"name": "dense"}]))


def _chosen(
    entries: list[dict[str, Any]], name: str, shares: Sequence[float], formats: Sequence[str]
) -> list[dict[str, Any]]:
    """The entries of these formats alone, with these shares; empty asks for no change.

    Args:
        entries: the formats of a block.
        name: what the shares are of, one of ``SHARES``.
        shares: what to put in place of every density and every ``stored``.
        formats: the names to keep or add.
    """
    entries = [dict(entry) for entry in entries]
    if formats:
        present = {entry.get("name") for entry in entries}
        wanted = {"dense", *(plugins.check("formats", each) for each in formats)}
        entries = [entry for entry in entries if entry.get("name") in wanted]
        share = {name: list(shares)} if shares else {"density": [0.5]}
        entries += [{"name": each, **share} for each in formats if each not in present]
    for entry in entries:
        if shares and any(key in entry for key in SHARES):
            for key in SHARES:
                entry.pop(key, None)
            entry[name] = list(shares)
    return entries


def select(cases: Sequence[Case], expression: str) -> list[Case]:
    """The cases that match ``key=value,key=value`` (globs), or a glob over the case id.

    Raises:
        SuiteError: a term is not understood, or no case is left.
    """
    left = list(cases)
    for term in expression.split(","):
        key, sign, pattern = (part.strip() for part in term.partition("="))
        if not (sign and key.isidentifier()):
            part = term.strip()
            left = [c for c in left if part in c.id or fnmatch.fnmatchcase(c.id, f"*{part}*")]
            continue
        keys = {name for case in cases for name in case.facts}
        if key not in keys:
            raise UnknownNameError("key of --filter", key, keys)
        left = [case for case in left if fnmatch.fnmatchcase(_word(case.facts.get(key)), pattern)]
    if not left:
        raise SuiteError(f"--filter {shortened(repr(expression))} leaves no case.")
    return left


def term(key: str, value: Any) -> str:
    """The term of ``--filter`` that keeps the cases whose fact ``key`` is this value.

    A comma, which would end the term, and white space at its ends match any one character.
    """
    word = re.sub(r"[*?[]", r"[\g<0>]", _word(value))
    word = re.sub(r",|^\s|\s$", "?", word)
    return f"{key}={word}"


def _word(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
