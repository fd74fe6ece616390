"""The report: one page that holds everything it needs, opens from disk and asks no network.

What the page says is made here, in Python, from the rows; its script only draws, sorts and filters.
Everything that comes from a run is escaped: by Jinja2 in the text, by ``_pack.embedded`` in the
data. A content security policy in the page forbids every request on top of that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hwbench import environment, units
from hwbench.analysis.accuracy import Joined
from hwbench.analysis.quiet import slowed
from hwbench.errors import UsageError
from hwbench.quantities import CHART, ENERGY, PAGE, RELATIVE, SCORE, TIME, Quantity
from hwbench.report import (
    _again,
    _answers,
    _bytes,
    _clock,
    _density,
    _experiments,
    _facts,
    _heat,
    _pack,
    _questions,
    _samples,
    _sections,
    _totals,
    _trade,
    decision,
)
from hwbench.report import _words as words
from hwbench.report._palette import DARK, LIGHT, VARIANTS, Style, Variant, styles, variants
from hwbench.report._scores import scores
from hwbench.report.rows import (
    Against,
    Row,
    groups,
    known,
    numbered,
    printable,
    quantities_shown,
    report_rows,
    row_of,
)
from hwbench.store import Run

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = (
    *("data.js", "filters.js", "labels.js", "legend.js", "charts.js", "case.js", "keep.js"),
    *("decision.js", "heat.js", "rows.js", "ratios.js", "links.js", "page.js"),
)
_ALWAYS = (TIME, RELATIVE, SCORE)  # the quantities that the page draws by itself
_FLIPS = 40  # settings with another winner that are listed for each compared run
_ANSWERS = 6  # groups whose answer stands open …
_SPELLED = 48  # … and is spelled out at all; the table of winners has every group


@dataclass(frozen=True)
class Compared:
    """A run beside the first one, as the page shows it above everything else."""

    title: str
    headline: str  # who is faster, and by how much
    answers: list[str]
    by_format: list[tuple[str, str, str]]  # a format, its median ratio, who is faster with it
    winners: list[tuple[str, str, str, str]]  # where another format wins: see ``versus.winners``
    statistics: list[str]
    heads: tuple[str, ...]
    names: tuple[str, str]  # of the first run and of this one
    groups: list[tuple[str, list[list[str]]]]  # of ratios: the title of a group, its first lines
    environment: list[tuple[str, str, str]]
    roofs: list[tuple[str, str, str, str]]
    against: Mapping[str, Against]  # of its cases, by case


def render(
    runs: list[Run],
    samples: Collection[str] = (),
    comparisons: Sequence[Compared] = (),
    names: list[str] | None = None,
) -> str:
    """The report of one run, or of several side by side, as one HTML page.

    Args:
        runs: what is reported.
        samples: cases, or parts of their names, whose raw samples the page carries.
        comparisons: each further run compared with the first one, in their order; they stand first.
        names: what the runs are called; without it, their machines.

    Raises:
        UsageError: there is no run, or ``samples`` names no case that was timed.
    """
    if not runs:
        raise UsageError("There is no run to report; name at least one run file.")
    machines = names or _facts.machines(runs)
    rows = _rows(runs, machines, [each.against for each in comparisons])
    chosen = _samples.named_cases(runs, samples)
    template = _environment().get_template("page.html.j2")
    return template.render(
        **_context(_page(runs, machines, rows, chosen, comparisons)),
        css=_safe(_lean("page.css")),
        colours=list(zip(LIGHT, DARK, strict=True)),
        script=_safe("\n".join(map(_lean, _SCRIPTS))),
        library=_safe(_library()),
    )


def _rows(
    runs: list[Run], machines: list[str], ratios: Sequence[Mapping[str, Against]] = ()
) -> list[Row]:
    """All rows, numbered; those of several runs are labelled by their machine.

    ``ratios`` are those of the cases of every run but the first, by case.
    """
    rows: list[Row] = []
    for number, run in enumerate(runs):
        run_rows = report_rows(run, number, machines[number] if len(runs) > 1 else "")
        against = ratios[number - 1] if ratios and number else {}
        rows += [
            replace(row, against=against[row.case]) if row.case in against else row
            for row in _samples.attached(run, run_rows)
        ]
    return _heat.marked(numbered(rows))


@dataclass(frozen=True)
class _Page:
    """The data from which the parts of the page are made, each made once."""

    runs: list[Run]
    machines: list[str]  # what the runs are called
    rows: list[Row]
    by_run: list[list[Row]]
    summaries: list[_facts.Summary]
    joins: list[Joined]
    joined: list[Joined]  # those that are drawn
    settings: list[decision.Setting]
    byte_answers: list[_bytes.ByteAnswer]
    sections: list[_sections.Section]
    looks: dict[str, Style]
    comparisons: Sequence[Compared]


def _page(
    runs: list[Run],
    machines: list[str],
    rows: list[Row],
    chosen: set[str],
    comparisons: Sequence[Compared],
) -> _Page:
    """The parts of the page, before any of them is put into words of the template."""
    by_run = [[row for row in rows if row.run == n] for n in range(len(runs))]
    joins = [_trade.joins(run_rows) for run_rows in by_run]
    settings = [
        setting
        for run_rows, own_joins in zip(by_run, joins, strict=True)
        for setting in decision.settings(run_rows, own_joins)
    ]
    all_joined = list(chain(*joins))
    joined = sorted(filter(_trade.drawable, all_joined), key=lambda each: row_of(each.timed).number)
    sections = _sections.sections(rows, runs, joined, chosen)
    sections += _sections.compared(rows, machines) if comparisons else []
    byte_answers = [] if settings else _bytes.answers(rows)
    if byte_answers:  # the answer is one of bytes, so the charts of bytes stand beside it
        for section in sections:
            section.figures.sort(key=lambda each: not each.kind.startswith("error_bytes"))
    return _Page(
        runs=runs,
        machines=machines,
        rows=rows,
        by_run=by_run,
        summaries=[
            _facts.summary(run, name, run_rows)
            for run, name, run_rows in zip(runs, machines, by_run, strict=True)
        ],
        joins=all_joined,
        joined=joined,
        settings=settings,
        byte_answers=byte_answers,
        sections=sections,
        looks=styles(row.format for row in rows),
        comparisons=comparisons,
    )


def _context(page: _Page) -> dict[str, Any]:
    """The variables of the template."""
    parts = {**_above(page), **_answer(page), **_questioned(page), **_below(page)}
    under = {
        "compare": page.comparisons,
        "answer": True,
        "questions": parts["overview"] or parts["questions"] or parts["answers"],
        "winners": parts["heat"].lines,
        "accuracy": parts["trades"] or (page.settings and parts["unjoined"]),
        "density": parts["starts"].lines or parts["totals"],
        "rows": True,
        "method": True,
    }
    # errors stand in the answer where it is one of bytes
    below = [each for each in page.sections if not (page.byte_answers and each.id == "errors")]
    return {**parts, "contents": _sections.contents(below, under), "data": _data(page)}


def _above(page: _Page) -> dict[str, Any]:
    """The head of the page, and the comparison of its runs."""
    return {
        "runs": page.summaries,
        "title": _title(page.runs, page.machines),
        "several": len(page.runs) > 1,
        "comparisons": page.comparisons,
        "flips_shown": _FLIPS,
        "total": len(page.rows),
        "measured": sum(row.status == "ok" for row in page.rows),
        "summed": bool(page.settings or page.byte_answers or page.comparisons),
        "sections": {section.id: section for section in page.sections},
        "marks": _marks(page.rows, page.looks),
    }


def _answer(page: _Page) -> dict[str, Any]:
    """The answer: what to use in the first setting without an error, or in how many bytes."""
    headline = ""
    if page.settings:
        first, limit = page.settings[0], page.settings[0].levels[0].limit
        best = first.best(limit)
        headline = first.headline(best, limit) if best else "Nothing that was measured is exact."
    sentences = cautions(page.runs, page.by_run, page.machines)
    return {
        "settings": page.settings,
        "headline": headline,
        "byte_answers": page.byte_answers,
        "byte_heads": _bytes.HEADS,
        "answers_shown": _ANSWERS,
        "cautions": [_folded(each, page.machines) for each in sentences],
        "failures": _failures(page.rows),
    }


def _questioned(page: _Page) -> dict[str, Any]:
    """The sentences on every group, and who wins where."""
    by_run = [_group_answers(rows) for rows in page.by_run]
    return {
        "answers": sorted(chain(*by_run), key=lambda answer: answer.group),
        "answers_spelled": _SPELLED,
        "overview": [
            sentence
            for machine, answers in zip(page.machines, by_run, strict=True)
            for sentence in _answers.overview(answers, machine if len(page.runs) > 1 else "")
        ],
        "questions": _questions.questions(page.rows, page.joined, sizes=not page.byte_answers),
        "heat": _heat.heat(page.rows),
        "shades": _heat.SHADES,
    }


def _below(page: _Page) -> dict[str, Any]:
    """Tables of accuracy and of crossings, and the method."""
    bounded = sum(known(row.relative_low) for row in page.rows)
    return {
        "trades": [_trade.trade(each) for each in page.joined[:_SPELLED]],
        "trades_left": max(0, len(page.joined) - _SPELLED),
        "unjoined": _trade.unjoined(page.joins),
        "starts": _density.starts(page.rows),
        "totals": _totals.totals(page.rows),
        "totals_heads": _totals.HEADS,
        "clocks": _clocks(page.runs, page.by_run, page.machines),
        "flags": [(words.flag(name), meaning) for name, meaning in words.FLAGS.items()],
        "energy": _energy(page.rows),
        "intervals": bounded,
        "missed": max(1, round(0.05 * bounded)),
    }


def _marks(rows: list[Row], looks: Mapping[str, Style]) -> dict[str, tuple[Style, Variant]]:
    """The marks of a legend by their names: formats, or all series of a format that has several."""
    drawn = _drawn(rows)
    numbers = variants(drawn)
    series_of: dict[str, list[str]] = {}
    for name, series in drawn:
        series_of.setdefault(name, []).append(series)
    return {
        series if len(members) > 1 else name: (looks[name], VARIANTS[numbers[series]])
        for name, members in series_of.items()
        for series in members
    }


def _drawn(rows: list[Row]) -> list[tuple[str, str]]:
    """Each format with each of its series, of experiments too, in the order of the rows."""
    return list(dict.fromkeys((row.format, _experiments.series(row)) for row in rows))


def _group_answers(rows: list[Row]) -> list[_answers.Answer]:
    """The answer of every timed group of one run."""
    layers = [row for row in rows if not row.scored]
    return [_answers.answer(members) for members in groups(layers).values()]


def cautions(
    runs: Sequence[Run], by_run: Sequence[list[Row]], machines: Sequence[str]
) -> list[str]:
    """The warnings before the answer, of each machine where there are several."""
    pairs = []
    for run, rows, machine in zip(runs, by_run, machines, strict=True):
        slowdown = slowed(run.header, run.planned, run.results)
        sentences = [str(slowdown) if slowdown else None]
        sentences += [_answers.disturbance(rows), _clock.launches(run, rows), _clock.starved(rows)]
        pairs += [(machine, sentence) for sentence in sentences if sentence]
    return [f"{name}: {sentence}" if len(runs) > 1 else sentence for name, sentence in pairs]


def _folded(caution: str, machines: list[str]) -> tuple[str, str]:
    """A caution as what stands open, up to its colon, and what explains it."""
    machine = next((f"{name}: " for name in machines if caution.startswith(f"{name}: ")), "")
    head, colon, rest = caution.removeprefix(machine).partition(": ")
    return f"{machine}{head}{colon.rstrip()}", rest


def _clocks(runs: list[Run], by_run: list[list[Row]], machines: list[str]) -> list[str]:
    """By which clock each run was timed, how fast the device ran, and what disturbed it."""
    pairs = []
    for run, rows, machine in zip(runs, by_run, machines, strict=True):
        sentences = [*_clock.contracts(rows), _clock.clocks(run), _clock.causes(run)]
        pairs += [(machine, sentence) for sentence in sentences if sentence]
    return [f"{name}: {sentence}" if len(runs) > 1 else sentence for name, sentence in pairs]


def _energy(rows: list[Row]) -> str:
    if any(known(row.value(ENERGY.name)) for row in rows):
        return "Energy is the device’s own counter over two seconds of calls, idle power included."
    return (
        "Energy was not read in this run: hwbench run --energy reads it where there is a counter."
    )


def _title(runs: list[Run], machines: list[str]) -> str:
    suites = " and ".join(dict.fromkeys(printable(run.header.suite) for run in runs))
    where = ", ".join(dict.fromkeys(machines))
    if len(runs) > 2:
        many = len(set(_facts.devices(runs)))
        where = f"{units.count(many, 'machine')}, {len(runs)} runs"
    return f"{suites} on {where}"


def _data(page: _Page) -> dict[str, Any]:
    """The data of the script: plain JSON while it is small, gzipped when it is not."""
    from hwbench.report._charts import CONFIG, specifications

    rows, looks = page.rows, page.looks
    titles = [words.group_title(members[0]) for members in groups(rows).values()]
    by_name = scores(rows)
    listed, chart = quantities_shown(page.runs, PAGE), quantities_shown(page.runs, CHART)
    quantities = [*_ALWAYS, *(q for q in listed if q not in chart), *chart]
    text = _pack.embedded(
        {
            "schema": 1,
            "count": len(rows),
            "runs": [{"name": s.name, "machine": s.machine} for s in page.summaries],
            "groups": titles,
            "settings": decision.packed(page.settings),
            "again": _again.packed(page.runs, rows),
            "statuses": words.STATUSES,
            "flags": words.FLAGS,
            "directions": words.DIRECTIONS,
            "heat_words": _heat.FAILED,
            "level_words": _heat.LEVEL,
            "far": words.FAR,
            "looks": {name: {"css": s.css, "path": s.path} for name, s in looks.items()},
            "variants": variants(_drawn(rows)),
            "variant_looks": [asdict(each) | {"hollow": each.hollow} for each in VARIANTS],
            "columns": _pack.columns(rows, dict.fromkeys(each.name for each in quantities)),
            "quantities": [
                _declared(each, each in listed) for each in quantities if each not in _ALWAYS
            ],
            "figures": {s.id: [figure.packed() for figure in s.figures] for s in page.sections},
            "specifications": specifications(looks, by_name.values(), chart) if looks else {},
            "scores": {n: {"title": s.title, "unit": s.unit} for n, s in by_name.items()},
            "config": CONFIG,
        }
    )
    plain = len(text) <= _pack.PLAIN_LIMIT
    return {"plain": plain, "text": _safe(text if plain else _pack.squeezed(text))}


def _declared(quantity: Quantity, column: bool) -> dict[str, Any]:
    """The facts by which the script writes a quantity: its unit, digits, and its column if any."""
    return {
        "name": quantity.name,
        "unit": "" if quantity.unit == "×" else quantity.unit,
        "digits": quantity.digits,
        "column": quantity.short if column else None,
        "heading": quantity.heading,
    }


def _failures(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    """Status in words, reason, and the cases that ended so."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status != "ok":
            missing = row.status == "missing"
            no_reason = "the run has no result of it" if missing else "no reason given"
            cases.setdefault((row.status, printable(row.reason or no_reason)), []).append(row)
    return [
        (words.STATUSES.get(status, printable(status)), reason, members)
        for (status, reason), members in cases.items()
    ]


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "breakable": _breakable, "dotted": _dotted}
    return environment


def fragment(template: str, **values: object) -> str:
    """A template filled in: a part of some other page."""
    return str(_environment().get_template(template).render(**values))


def _breakable(name: str) -> Any:
    """A name, escaped, that may be broken after an underscore."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in printable(name).split("_"))


def _dotted(name: str) -> Any:
    """The key of a fact, escaped, that may be broken after a dot."""
    from markupsafe import Markup, escape

    return Markup(".<wbr>").join(escape(part) for part in name.split("."))


def _safe(text: str) -> Any:
    """Text of our own files, or escaped already, that stands in the page as it is."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 (own files, or JSON with every < escaped)


@cache
def _lean(name: str) -> str:
    """A file of the page without its indents and lines of comment, which no reader opens there."""
    lines = (_TEMPLATES / name).read_text(encoding="utf-8").splitlines()
    stripped = (line.strip() for line in lines)
    return "\n".join(line for line in stripped if line and not line.startswith("//"))


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script.

    vl-convert carries it offline and takes over a second to bundle it, so the script is kept in the
    cache folder, under the version of vl-convert.
    """
    import vl_convert

    name = f"vega-{metadata.version('vl-convert-python')}.json"
    file = environment.cache_folder() / name
    script = environment.kept(file).get("script")
    if not isinstance(script, str):
        script = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # it has a default
        environment.keep(file, {"script": script})
    return script.replace("</script", "<\\/script")
