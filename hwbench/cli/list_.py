"""``hwbench list``: what there is, without loading torch unless details are asked for."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hwbench.channels import visible
from hwbench.cli import _options, _shared
from hwbench.errors import UnknownNameError, UsageError, shortened

if TYPE_CHECKING:
    from hwbench.protocol import FormatDetails

_KINDS = {
    "formats": "weight formats, each in a line; by name or with --details all that is known of one",
    "suites": "the questions that come with hwbench, for run --suite NAME",
    "devices": "kinds of device, for run --device NAME",
    "runs": "stored runs in a folder, --out; by default in runs/",
}


def list_(
    kind: str | None = typer.Argument(None, help="formats, suites, devices or runs."),
    names: list[str] | None = typer.Argument(
        None, help="Formats: these, with their details. Runs: their folder."
    ),
    details: bool = typer.Option(
        False, "--details", help="Formats: knobs, kernels, where they run (asks a worker)."
    ),
    folder: Path = typer.Option(Path("runs"), "--out", "-o", help="The folder of the runs."),
    as_json: _options.PrintJson = False,
) -> None:
    """List the formats, suites, kinds of device, or stored runs; alone, say what can be listed."""
    if kind is None:
        _kinds(as_json=as_json)
        return
    if kind not in _KINDS:
        raise UnknownNameError("list", kind, _KINDS)
    if names and kind not in ("formats", "runs"):
        raise UsageError(f"hwbench list {kind} takes no names; only formats are listed by name.")
    if names and kind == "runs":
        if len(names) > 1:
            raise UsageError("hwbench list runs takes one folder.")
        folder = Path(names[0])
    if kind == "formats" and (details or names):
        _format_details(names or [], as_json=as_json)
        return
    rows = {"formats": _members, "devices": _members, "suites": _suites, "runs": _runs}[kind](
        kind, folder
    )
    if as_json:
        _shared.say_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        _shared.say(f"{row['name']:<{width}}  {row['about']}")
    if not rows:
        _shared.say(f"There are no {kind} in {folder}.", error=True)


def _kinds(*, as_json: bool) -> None:
    """Prints the names of the lists."""
    if as_json:
        rows = [{"name": name, "about": about} for name, about in _KINDS.items()]
        _shared.say_json(rows)
        return
    for name, about in _KINDS.items():
        _shared.say(f"hwbench list {name:<8}  {about}")


def _members(kind: str, folder: Path) -> list[dict[str, Any]]:
    from hwbench import plugins

    del folder
    return [{"name": name, "about": plugins.summary(kind, name)} for name in plugins.names(kind)]


def _suites(kind: str, folder: Path) -> list[dict[str, Any]]:
    from hwbench import suite
    from hwbench.measure import run as runner

    del kind, folder
    rows = []
    for name in [*suite.names(), *suite.model_names()]:
        document = suite.read(name)
        count = runner.case_count(document, "cpu")
        rows.append(
            {"name": name, "about": f"{document.get('about', '')} ({count} cases)", "cases": count}
        )
    return rows


def _runs(kind: str, folder: Path) -> list[dict[str, Any]]:
    from hwbench.store import read_run

    del kind
    rows = []
    for path in _shared.run_files([folder]) if folder.is_dir() else []:
        run = read_run(path)
        state = "complete" if run.complete else "unfinished"
        date = run.header.created[:16].replace("T", " ")
        what = shortened(f"{run.header.suite} on {run.header.machine}")
        about = f"{date}  {what}, {len(run.results)} results, {state}"
        rows.append({"name": shortened(str(path), len(str(path))), "about": about})
    return rows


def _format_details(names: list[str], *, as_json: bool) -> None:
    """The details of the formats that are named, else of all."""
    import msgspec

    from hwbench import plugins, protocol
    from hwbench.measure.transports.local import LocalWorker

    for name in names:
        plugins.check("formats", name)
    worker = LocalWorker("cpu", 1)
    try:
        request = protocol.DescribeRequest(names=names or plugins.names("formats"))
        reply = worker.ask(request, protocol.DescribeReply, 120)
    finally:
        worker.close()
    if as_json:
        _shared.say_json(msgspec.to_builtins(reply.formats))
        return
    _show(reply.formats, whole=bool(names))


def _show(formats: list[FormatDetails], *, whole: bool) -> None:
    """Each format as a heading and a line a fact, wrapped to the terminal.

    ``whole`` adds what its docstring says.
    """
    from rich.text import Text

    out = _shared.console()
    for each in formats:
        out.print(Text(visible(each.name), style="bold"))
        for label, values in _facts(each, whole=whole).items():
            for number, value in enumerate(values):
                head = "" if number else label
                lines = textwrap.wrap(
                    visible(value), max(out.width - 11, 40), break_on_hyphens=False
                )
                for line in lines:
                    out.print(Text.assemble((f"  {head:<9}", "dim"), line))
                    head = ""
        out.print()


def _facts(each: FormatDetails, *, whole: bool) -> dict[str, list[str]]:
    if not each.kernels:  # it cannot be loaded; its description has the reason
        return {"what": [each.summary], "not on": [each.description]}
    first, *others = each.kernels
    runs, refused = where_it_runs(each.by_kernel)
    described = each.description.replace("``", "").split("\n\n") if whole else []
    return {
        "what": [each.summary, *filter(None, described)],
        "knobs": [_knobs(each)],
        "kernels": [", ".join([f"{first} (default)" if others else first, *others])],
        "default": [_why_default(each)] if others else [],
        "runs on": runs,
        "not on": [f"{place}: {reason}" for place, reason in refused],
        "paper": [each.paper] if each.paper else [],
    }


def _why_default(each: FormatDetails) -> str:
    """The advantage of the default kernel on this CPU, or why it does not run here.

    It is chosen by where kernels run; which is the fastest here, a run measures.
    """
    if "kernel" in each.defaults and each.defaults["kernel"] is None:
        return "it follows from the other knobs"
    first, *others = each.kernels
    runs = {
        kernel: {place for place, reason in of_kernel.items() if place[:4] == "cpu " and not reason}
        for kernel, of_kernel in each.by_kernel.items()
    }
    if not runs[first]:
        return f"{first}, which does not run on this CPU"
    if missed := sorted(set().union(*runs.values()) - runs[first]):
        return f"{first}; on this CPU it does not run as {', '.join(missed)}, which others do"
    if fewer := [kernel for kernel in others if runs[kernel] < runs[first]]:
        return f"{first}; on this CPU it runs in more dtypes or directions than {', '.join(fewer)}"
    return f"{first}; on this CPU all kernels run in the same dtypes and directions"


def _knobs(each: FormatDetails) -> str:
    """Name the knobs that must be given (or a share of dense), then those with a default."""
    required = " and ".join(knob for knob in each.knobs if knob not in each.defaults)
    free = [
        f"{knob}=auto" if value is None else f"{knob}={value}"
        for knob, value in each.defaults.items()
        if knob != "kernel"
    ]
    parts = [f"{required}, or density or stored"] if required else []
    parts += [", ".join(free)] if free else []
    return "; ".join(parts) or "none"


Places = dict[str, list[str]]
"""Kernel by kernel, some of "device dtype direction"."""


def where_it_runs(reasons: dict[str, dict[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """The places where a format runs, in few words; and each reason with the places it blocks.

    Args:
        reasons: for each kernel, "device dtype direction" to a reason, or to "" where it runs.
    """
    by_reason: dict[str, Places] = {}
    for kernel, of_kernel in reasons.items():
        for place, reason in of_kernel.items():
            by_reason.setdefault(reason, {}).setdefault(kernel, []).append(place)
    every = {kernel: list(of_kernel) for kernel, of_kernel in reasons.items()}
    runs = _summary(by_reason.pop("", {}), every, "{} only")
    return runs or ["nothing on this machine"], [
        ("; ".join(_summary(places, every, "{}")), reason)
        for reason, places in _merged(by_reason).items()
    ]


def _merged(by_reason: dict[str, Places]) -> dict[str, Places]:
    """Merges reasons that differ only in the dtype they name."""
    alike: dict[str, list[str]] = {}
    for reason, of_reason in by_reason.items():
        dtypes = {place.split()[1] for of_kernel in of_reason.values() for place in of_kernel}
        alone = dtypes.pop() if len(dtypes) == 1 else "-"
        alike.setdefault(re.sub(rf"\b{alone}\b", "\0", reason), []).append(reason)
    merged: dict[str, Places] = {}
    for pattern, same in alike.items():
        places: Places = {}
        for reason in same:
            for kernel, more in by_reason[reason].items():
                places[kernel] = places.get(kernel, []) + more
        every = [place for of_kernel in places.values() for place in of_kernel]
        named = " or ".join(dict.fromkeys(place.split()[1] for place in every))
        merged[pattern.replace("\0", named)] = places
    return merged


def _summary(places: Places, every: Places, direction: str) -> list[str]:
    """The places in words; kernels with the same places share a clause, unnamed if all do."""
    alike: dict[str, list[str]] = {}
    for kernel, of_kernel in places.items():
        alike.setdefault(_place(of_kernel, every[kernel], direction), []).append(kernel)
    return [
        words if len(kernels) == len(every) else f"{', '.join(kernels)}: {words}"
        for words, kernels in alike.items()
    ]


def _place(places: list[str], every: list[str], direction: str) -> str:
    """Places such as "cpu float32 step" in words, without repetition."""
    directions = list(dict.fromkeys(place.split()[2] for place in every))
    by_device: dict[str, dict[str, list[str]]] = {}  # device: directions, in words: dtypes
    for device, dtype in dict.fromkeys(tuple(place.split()[:2]) for place in every):
        there = [d for d in directions if f"{device} {dtype} {d}" in places]
        if there:
            words = "" if there == directions else " " + direction.format(" and ".join(there))
            by_device.setdefault(device, {}).setdefault(words, []).append(dtype)
    by_words: dict[str, list[str]] = {}
    for device, by_directions in by_device.items():
        description = ", ".join(
            f"{' '.join(dtypes)}{words}" for words, dtypes in by_directions.items()
        )
        by_words.setdefault(description, []).append(device)
    return "; ".join(f"{' and '.join(devices)} {words}" for words, devices in by_words.items())
