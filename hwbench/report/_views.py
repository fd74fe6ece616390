"""The figures of the page: which rows each shows, and one sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hwbench import units
from hwbench.report import _words as words
from hwbench.report._answers import beats, loses
from hwbench.report._join import PROJECTION, Join, joins
from hwbench.report._rows import DENSE, Row, groups, known, printable, relative, timed
from hwbench.roofline import Line, Roof


@dataclass
class Figure:
    """One chart with its rows; ``rows`` are numbers into the table of all rows."""

    kind: str
    title: str
    says: str
    rows: list[int]
    note: str = ""
    alone: list[tuple[str, str]] = field(default_factory=list)  # what could not be drawn, and why
    own: dict[str, list[Any]] = field(default_factory=dict)  # columns beside those of the table
    extra: dict[str, Any] = field(default_factory=dict)  # what is not one value a row

    @property
    def label(self) -> str:
        """What a screen reader says of the chart."""
        return f"{self.title}. {self.says}"

    def packed(self) -> dict[str, Any]:
        """What the page's script needs to draw it."""
        return {
            "kind": self.kind,
            "title": self.title,
            "says": self.says,
            "note": self.note,
            "alone": self.alone,
            "rows": spans(self.rows),
            "own": self.own,
            **self.extra,
        }


def spans(numbers: Iterable[int]) -> list[list[int]]:
    """Whole numbers as half-open spans: ``[4, 5, 6, 9]`` is ``[[4, 7], [9, 10]]``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1][1] = number + 1
        else:
            found.append([number, number + 1])
    return found


def unjoined(rows: list[Row]) -> list[str]:
    """Timed groups for which the run has projections but no pair of the same knobs."""
    return [words.group_title(join.timed) for join in joins(rows) if not join.pairs]


def pareto(join: Join) -> Figure:
    """Projection error against relative time."""
    ordered = sorted(join.pairs, key=lambda pair: pair.timed["number"])
    front, faster = join.front, [pair for pair in join.front if pair.relative < 1]
    if faster:
        first, last = (
            f"{_mark(p.error)} ({printable(p.timed['label'])}, {units.ratio(p.relative)})"
            for p in (faster[0], faster[-1])
        )
        reach = f"from an error of {first} to {last}" if len(faster) > 1 else f"at {first}"
        sure = sum(beats(pair.timed) for pair in faster)
        surely = f"{sure or 'none'} of {len(faster)} such points"
        if sure == len(faster):
            surely = "each such point"
        says = f"The front is faster than dense {reach}; {surely} beyond its interval."
    else:
        says = f"None of the {len(front)} points on the front is faster than dense."
    timed_at, scored_at = (f"{words.shape(r)} {r['dtype']}" for r in (join.timed, join.scored))
    return Figure(
        kind="pareto",
        title=words.group_title(join.timed),
        says=says,
        rows=[pair.timed["number"] for pair in ordered],
        note=(
            f"Time measured at {printable(timed_at)}; error of {words.workload(join.scored)} "
            f"at {printable(scored_at)}."
        ),
        alone=[(printable(row["label"]), printable(why)) for row, why in join.alone],
        own={"error": [float(f"{pair.error:.5g}") for pair in ordered]},
    )


def errors(rows: list[Row]) -> list[Figure]:
    """Projection error against density and against stored bytes."""
    figures = []
    scored = [row for row in rows if row["workload"] == PROJECTION]
    for members in groups(scored).values():
        have = [row for row in members if known(row["score"])]
        if not have:
            continue
        title, numbers = words.group_title(members[0]), [row["number"] for row in have]
        for kind, field_name, what in (
            ("error_density", "density", "parameters kept"),
            ("error_bytes", "stored_ratio", "stored bytes of dense"),
        ):
            says = _least_errors(have, field_name, what)
            by = "by parameters kept" if kind == "error_density" else "by stored bytes"
            figures.append(Figure(kind=kind, title=f"{title}, {by}", says=says, rows=numbers))
    return figures


def _least_errors(have: list[Row], field_name: str, what: str) -> str:
    """The format with the least error at about half and about a tenth of dense."""
    said = []
    for share in (0.5, 0.1):
        near = [row for row in have if known(row[field_name]) and row[field_name] <= share]
        if near:
            best = min(near, key=lambda row: row["score"])
            said.append(
                f"{printable(best['label'])} ({_mark(best['score'])}) with at most "
                f"{share:g} of the {what.removesuffix(' of dense')}"
            )
    return f"The smallest error has {', and '.join(said)}." if said else "Every error by format."


def crossover(rows: list[Row]) -> list[Figure]:
    """Relative time against density, one figure a group."""
    figures = []
    for members in groups([r for r in rows if r["workload"] != PROJECTION]).values():
        have = [row for row in members if relative(row) is not None and known(row["density"])]
        if any(row["format"] != DENSE for row in have):
            title = words.group_title(members[0])
            numbers = [row["number"] for row in have]
            figures.append(
                Figure("crossover", title, _crossings(have), numbers, own={"aside": _aside(have)})
            )
    return figures


def _crossings(have: list[Row]) -> str:
    series: dict[str, list[Row]] = {}
    for row in have:
        if row["format"] != DENSE:
            series.setdefault(printable(row["series"]), []).append(row)
    if not any(known(row["relative_low"]) for row in have):
        return "One replicate: points without intervals decide nothing."
    won = [f"{name} {at}" for name, members in series.items() if (at := _winning(members))]
    lost = [name for name, members in series.items() if all(loses(row) for row in members)]
    said = f"Faster than dense: {', '.join(won)}" if won else "Nothing is surely faster than dense"
    return f"{said}; slower at every density: {', '.join(lost)}." if lost else f"{said}."


def _winning(members: list[Row]) -> str:
    """At which densities a format beats dense: ``from 0.495 down``, or ``at 0.25``."""
    won = sorted((row["density"] for row in members if beats(row)), reverse=True)
    below = [row["density"] for row in members if won and row["density"] <= won[0]]
    if len(won) > 1 and len(won) == len(below):
        return f"from {_mark(won[0])} down"
    return f"at {', '.join(map(_mark, won))}" if won else ""


def _aside(have: list[Row], step: float = 3.0) -> list[float]:
    """Pixels by which each row's point moves, so that formats of one density stay apart."""
    names = [name for name in dict.fromkeys(row["series"] for row in have) if name != DENSE]
    middle = (len(names) - 1) / 2
    places = {name: round((number - middle) * step, 1) for number, name in enumerate(names)}
    return [places.get(row["series"], 0.0) for row in have]


def rooflines(rows: list[Row], most: int = 600) -> list[Figure]:
    """One figure a run and dtype that has measured roofs and timed cases."""
    figures = []
    sets: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row["placement"] and row["flops"]:
            sets.setdefault((row["run"], row["dtype"]), []).append(row)
    for (_, dtype), members in sets.items():
        ceiling: Roof = members[0]["roof"]
        shown, note = _thinned(members, most)
        figures.append(
            Figure(
                kind="roofline",
                title=_titled(dtype, members[0]),
                says=_under_the_roof(shown, ceiling),
                rows=[row["number"] for row in shown],
                note=note,
                extra={"roofs": _roof_lines(shown, ceiling)},
            )
        )
    return figures


def _thinned(members: list[Row], most: int) -> tuple[list[Row], str]:
    """All points, or the fastest knobs of each format in each group, or evenly spaced groups."""
    if len(members) <= most:
        return members, ""
    best: dict[tuple[Any, ...], Row] = {}
    for row in members:
        key = (row["group"], row["format"])
        if key not in best or row["placement"].efficiency > best[key]["placement"].efficiency:
            best[key] = row
    kept = list(best.values())
    note = f"{len(kept)} of {len(members)} cases: the most efficient of each format and group"
    if len(kept) > most:
        every = -(-len(kept) // most)
        chosen = set(list(groups(kept))[::every])
        kept = [row for row in kept if row["group"] in chosen]
        note = (
            f"{len(kept)} of {len(members)} cases: the most efficient of each format, "
            f"in every {every}th group"
        )
    return sorted(kept, key=lambda row: row["number"]), f"{note}; the table has all."


def _under_the_roof(members: list[Row], ceiling: Roof) -> str:
    best = max(members, key=lambda row: row["placement"].efficiency)
    above = sum(row["placement"].efficiency > 1 for row in members)
    cached = sum(row["placement"].in_cache for row in members)
    said = (
        f"The measured roofs, {units.flops_per_second(ceiling.flops_per_second)} and "
        f"{units.si(ceiling.bytes_per_second, 'B/s')}, meet at "
        f"{units.significant(ceiling.ridge)} FLOP per byte; nearest to its roof, or furthest above "
        f"it, is {printable(best['label'])} ({units.percent(best['placement'].efficiency, 0)})"
    )
    if above:
        said += f"; {above} of {len(members)} points lie above a roof"
        said += f", {cached} of them because their operands stayed in cache" if cached else ""
    return f"{said}."


def _roof_lines(members: list[Row], ceiling: Roof) -> list[dict[str, Any]]:
    """Corners of every roof, and its words: beside slopes, and stacked over the highest top.

    ``lift`` is in pixels; ``room`` keeps the words within the figure.
    """
    places, roofs = [row["placement"] for row in members], members[0]["roofs"]
    ridges = [each.ridge for each in roofs]
    low = min([ceiling.ridge / 8, *(p.unfused_intensity / 2 for p in places)])
    high = max([*ridges, *(p.intensity for p in places)]) * 2
    drawn: list[dict[str, Any]] = []
    for each in roofs:
        foot = min(low, each.ridge / 2)
        for x in (foot, each.ridge, *([] if each.source == "cache" else [high])):
            y = min(each.flops_per_second, x * each.bytes_per_second)
            drawn.append(_corner(x, y, each) | {"text": ""})
        if each.source in ("measured", "cache"):
            said = f"{units.si(each.bytes_per_second, 'B/s')} "
            said += "copy" if each.source == "measured" else each.label
            x = foot if each.source == "cache" else foot**0.25 * each.ridge**0.75
            corner = _corner(x, x * each.bytes_per_second, each)
            drawn.append(corner | {"text": said, "at": each.source})
    tops = sorted(
        (each for each in roofs if each.source != "cache"), key=lambda e: e.flops_per_second
    )
    highest = tops[-1].flops_per_second
    for number, each in enumerate(tops):
        said = units.flops_per_second(each.flops_per_second)
        said += " matmul" if each.source == "measured" else f" {each.label}"
        lift = 12 * number
        drawn.append(_corner(high, highest, each) | {"text": said, "at": "compute", "lift": lift})
    if len(tops) > 1:
        drawn.append(_corner(high, highest * 3, tops[-1]) | {"text": " ", "at": "room"})
    return drawn


def _corner(x: float, y: float, line: Line) -> dict[str, Any]:
    return {"intensity": x, "flops_per_second": y, "roof": line.label, "source": line.source}


def memory(rows: list[Row]) -> list[Figure]:
    """Stored bytes by format, one figure a shape and dtype; saved bytes, one a group."""
    figures = []
    stored: dict[tuple[Any, ...], dict[str, Row]] = {}
    layers = [row for row in rows if row["workload"] != PROJECTION]
    for row in layers or rows:
        if known(row["stored_bytes"]):
            key = (row["run"], row["out_features"], row["in_features"], row["dtype"])
            stored.setdefault(key, {}).setdefault(row["label"], row)
    for by_label in stored.values():
        members = list(by_label.values())
        title = _titled(f"Stored, {words.shape(members[0])}, {members[0]['dtype']}", members[0])
        figures.append(_bytes_figure("stored", title, members, "stored_bytes"))
    for members in groups(rows).values():
        have = [row for row in members if known(row["saved_bytes"]) and timed(row)]
        if have:
            title = f"Saved for backward, {', '.join(words.group_parts(have[0])[1:])}"
            figures.append(_bytes_figure("saved", title, have, "saved_bytes"))
    return figures


def _bytes_figure(kind: str, title: str, members: list[Row], name: str) -> Figure:
    least, most = (f(members, key=lambda row: row[name]) for f in (min, max))
    dense = next((row[name] for row in members if row["format"] == DENSE), None)
    if kind == "stored":
        dense = members[0]["dense_bytes"]
    said = [
        f"{printable(row['label'])} {units.nbytes(row[name])}"
        + (f" ({units.ratio(row[name] / dense)} of dense)" if dense else "")
        for row in (least, most)
    ]
    says = f"Least: {said[0]}; most: {said[1]}."
    return Figure(kind, title, says, [row["number"] for row in members])


def _titled(title: str, row: Row) -> str:
    return ", ".join(part for part in (printable(title), words.machine(row)) if part)


def _mark(value: float) -> str:
    return units.significant(value)
