"""What every reader makes of the stored runs of tests/golden, as texts that a diff can show."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hwbench

FOLDER = Path(__file__).parent / "golden"
EXPECTED = FOLDER / "expected"
_OTHER = "epyc"  # is read by ``compare`` alone
_DIGITS = 9  # of a float: its last ones differ between versions of numpy and scipy
_WIDTH = 160  # of the terminal
_SKIPPED = ("script", "style")
_LINES = ("p", "li", "tr", "h1", "h2", "h3", "h4", "figcaption", "summary", "caption", "title")
_LINES += ("option", "dt", "text", "div")
_CELLS = ("td", "th", "dd")


def files() -> dict[str, Callable[[], str]]:
    """The name of every expected file, and what makes its text."""
    found: dict[str, Callable[[], str]] = {}
    for path in sorted((FOLDER / "runs").glob("*.jsonl")):
        for name, make in _READERS.items() if path.stem != _OTHER else ():
            found[f"{path.stem}/{name}"] = _called(make, path)
    for name, make in _FEW.items():
        found[f"{name.partition(' ')[0]}/{name.partition(' ')[2]}"] = _called(
            make, FOLDER / "runs" / f"{name.partition(' ')[0]}.jsonl"
        )
    for path in sorted((FOLDER / "tonight").glob("*.jsonl")):
        found[f"check/{path.stem}.txt"] = _called(_check, path)
        found[f"check/{path.stem}.json"] = _called(_check_json, path)
    return found | _ALL


def _called(make: Callable[[Path], str], path: Path) -> Callable[[], str]:
    return lambda: make(path)


def difference(name: str, text: str, most: int = 30) -> str:
    """A short diff of the expected file with this text; empty where they agree."""
    path = EXPECTED / name
    if not path.exists():
        return f"{name} is not expected: run python tests/golden/make.py"
    old = path.read_text(encoding="utf-8")
    if old == text:
        return ""
    lines = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "now", n=0, lineterm="")
    shown = [line if len(line) <= 300 else f"{line[:300]}…" for line in lines]
    more = [f"… and {len(shown) - most} more lines"] if len(shown) > most else []
    return "\n".join([*shown[:most], *more])


# --- normal forms -----------------------------------------------------------------------------


def normal(text: str) -> str:
    """Text without what changes from one version, folder or machine to the next."""
    text = text.replace(f"{FOLDER}/", "")
    text = re.sub(r"\b\d+\.\d{10,}\b", lambda found: str(_value(float(found[0]))), text)
    return re.sub(rf"\b{re.escape(hwbench.__version__)}\b(?! s\b)", "VERSION", text)


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _value(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _json(value: Any) -> str:
    """JSON in lines that a diff can show: what fits in a line stands in one."""
    return "\n".join(_lines(_value(value))) + "\n"


def _lines(value: Any, indent: str = "", head: str = "") -> Iterator[str]:
    whole = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or len(whole) <= 160:
        yield f"{indent}{head}{whole}"
        return
    brackets = "{}" if isinstance(value, dict) else "[]"
    yield f"{indent}{head}{brackets[0]}"
    items: Iterable[tuple[str, Any]] = [("", each) for each in value]
    if isinstance(value, dict):
        items = [(f"{json.dumps(key)}: ", each) for key, each in value.items()]
    for key, inner in items:
        yield from _lines(inner, f"{indent} ", key)
    yield f"{indent}{brackets[1]}"


def _records(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as CSV turned on its side: a line a column, so that a column more is a line more."""
    rows = list(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [_value(row.get(name)) for row in rows]
        writer.writerow([name, *("" if v is None or v != v else v for v in values)])
    return out.getvalue()


def _frame(frame: Any) -> str:
    return _records(frame.astype(object).to_dict("records"))


class _Visible(HTMLParser):
    """The text of a page, a line a paragraph or a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.hidden = 0
        self.here: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self.hidden += 1
        elif tag in _LINES:
            self._end()
            self.here.append(f"{tag}: ")
        elif tag in _CELLS:
            self.here.append(" | ")
        said = dict(attrs)
        self.here += [f"[{said[key]}]" for key in ("title", "aria-label") if said.get(key)]

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self.hidden -= 1
        elif tag in _LINES:
            self._end()

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.here.append(data)

    def _end(self) -> None:
        line = " ".join("".join(self.here).split())
        if line and not re.fullmatch(r"\w+:", line):
            self.lines.append(line)
        self.here = []


def _visible(page: str) -> str:
    parser = _Visible()
    parser.feed(page)
    parser._end()
    return normal("\n".join(parser.lines) + "\n")


# --- readers of one run -----------------------------------------------------------------------


def _run(path: Path) -> Any:
    from hwbench.store import read_run

    return read_run(path)


def _printed(parts: Iterable[Any]) -> str:
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, no_color=True, highlight=False)
    for part in parts:
        console.print(part)
    return normal("\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n")


def _table(path: Path) -> str:
    from hwbench.report.text import table

    return _printed(table(_run(path), _WIDTH))


def _rows_json(path: Path) -> str:
    from hwbench.report.text import rows_json

    return _records(
        {**row, "roofline": json.dumps(_value(row["roofline"]))} for row in rows_json(_run(path))
    )


@cache
def _rendered(path: Path) -> str:
    """The report of a run; that of a measured one with samples."""
    from hwbench.report.html import render

    return render([_run(path)], samples=["low_rank"] if path.stem == "measured" else [])


def _data(page: str) -> dict[str, Any]:
    """What the script of the page reads."""
    import base64
    import gzip

    found = re.search(r'id="hw-data" data-form="(\w+)">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    text = found[2]
    if found[1] == "gzip":
        text = gzip.decompress(base64.b64decode(text)).decode()
    data: dict[str, Any] = json.loads(text)
    return data


def _page_data(path: Path) -> str:
    return normal(_json(_unpacked(_data(_rendered(path)))))


def _unpacked(data: dict[str, Any]) -> dict[str, Any]:
    """The data with its rows as columns of values; charts' specifications have a file of theirs."""
    from hwbench.report import _pack

    rows = {name: _pack.unpacked(data["columns"], name) for name in data["columns"]}
    kept = {k: v for k, v in data.items() if k not in ("columns", "specifications", "config")}
    return {**kept, "rows": rows}


def _specifications(path: Path) -> str:
    data = _data(_rendered(path))
    return _json({"specifications": data["specifications"], "config": data["config"]})


def _exported(kind: str) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        import tempfile

        from hwbench.report.export import export

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "out"
            export(_run(path), kind, target)
            text = target.read_text(encoding="utf-8")
        if kind == "csv":
            columns = zip(*csv.reader(io.StringIO(text)), strict=True)
            return "\n".join(json.dumps(column) for column in columns) + "\n"
        return normal(_json(json.loads(text)))

    return make


_READERS: dict[str, Callable[[Path], str]] = {
    "table.txt": _table,
    "table.json.csv": _rows_json,
    "load_run.csv": lambda path: _frame(hwbench.load_run(path)),
    "summary.csv": lambda path: _frame(hwbench.summary(path)),
    "page.txt": lambda path: _visible(_rendered(path)),
    "page.json": _page_data,
}
_FEW: dict[str, Callable[[Path], str]] = {
    "foreign_quantities export.csv": _exported("csv"),
    "foreign_quantities export.json": _exported("json"),
    "foreign_quantities export.pytest-benchmark.json": _exported("pytest-benchmark"),
    "failures export.pytest-benchmark.json": _exported("pytest-benchmark"),
    "scored specifications.json": _specifications,
}


# --- readers of several runs ------------------------------------------------------------------


def _outcome(path: Path) -> Any:
    from hwbench.studies import gate

    return gate.check(path, FOLDER / "nights")


def _check(path: Path) -> str:
    from hwbench.report import changes, github, junit, markdown

    outcome = _outcome(path)
    parts = {
        "exit": f"{outcome.exit}\n",
        "terminal": _printed(changes.table(outcome)),
        "sentence": f"{outcome.sentence()}\n",
        "markdown": markdown.render(outcome),
        "github": "\n".join(github.commands(outcome)) + "\n",
        "junit": junit.render(outcome),
    }
    return normal("\n".join(f"===== {name}\n{text}" for name, text in parts.items()))


def _check_json(path: Path) -> str:
    from hwbench.analysis.outcome import plain

    return normal(_json(plain(_outcome(path))))


def _pair() -> list[Any]:
    return [_run(FOLDER / "runs" / f"{name}.jsonl") for name in ("measured", "epyc")]


def _compare() -> str:
    from hwbench.report import versus

    return _printed(part for part in versus.table(versus.compare(_pair())))


def _compare_json() -> str:
    from hwbench.report import versus

    return normal(_json(versus.plain(versus.compare(_pair()))))


def _compare_page() -> str:
    from hwbench.report import versus

    return _visible(versus.page(_pair(), versus.compare(_pair())))


def _history() -> Any:
    from hwbench.studies.history import history

    return history(FOLDER / "nights")


def _history_text() -> str:
    from hwbench.report.history import lines

    told = _history()
    found = [line for each in told.histories for line in lines(each)]
    return normal("\n".join([*found, *told.notes]) + "\n")


def _history_json() -> str:
    from hwbench.report.history import plain

    told = _history()
    return normal(_json(plain(told.histories, told.notes)))


def _history_page() -> str:
    from hwbench.report.history import render

    told = _history()
    return _visible(render(told.histories, told.notes))


# --- costs ------------------------------------------------------------------------------------

_SHAPES = ((1024, 1024), (512, 2048), (96, 64), (63, 45))


def _costs() -> str:
    """The exact cost of every kernel of every format, in every direction, at half density."""
    from _formats import CLASSES, DIRECTIONS

    head = "format kernel shape tokens item_bytes direction parameters stored_bytes flops"
    head += " dense_flops compulsory_bytes intermediate_bytes"
    lines = [head.replace(" ", ",")]
    own = {name for name, kind in CLASSES.items() if kind.__module__.startswith("hwbench.")}
    for name, kind in sorted((name, CLASSES[name]) for name in own):
        for kernel in kind.KERNELS:
            for shape in _SHAPES:
                lines += _of_setting(name, kind, kernel, shape, DIRECTIONS)
    return "\n".join(lines) + "\n"


def _of_setting(
    name: str, kind: Any, kernel: str, shape: tuple[int, int], directions: Iterable[str]
) -> Iterator[str]:
    from hwbench.errors import HwbenchError

    found = None
    for knobs in ({"density": 0.5}, {}):
        with contextlib.suppress(HwbenchError):
            found = found or kind.from_knobs(*shape, kernel=kernel, **knobs)
    out = "x".join(map(str, shape))
    if found is None:
        yield f"{name},{kernel},{out},refused"
        return
    tokens, item = (16, 2) if shape[0] == shape[1] else (7, 4)
    for direction in directions:
        c = found.cost(tokens, item, direction)
        yield (
            f"{name},{kernel},{out},{tokens},{item},{direction},{c.parameters},{c.stored_bytes},"
            f"{c.flops},{c.dense_flops},{c.compulsory_bytes},{c.intermediate_bytes}"
        )


_ALL: dict[str, Callable[[], str]] = {
    "compare/compare.txt": _compare,
    "compare/compare.json": _compare_json,
    "compare/page.txt": _compare_page,
    "history/history.txt": _history_text,
    "history/history.json": _history_json,
    "history/page.txt": _history_page,
    "costs.csv": _costs,
}
