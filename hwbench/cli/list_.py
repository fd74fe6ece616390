"""``hwbench list``: what there is, without loading torch unless details are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from hwbench.cli import _shared
from hwbench.errors import UnknownNameError

_KINDS = ("formats", "suites", "devices", "runs")


def list_(
    kind: str = typer.Argument(..., help="formats, suites, devices or runs."),
    details: bool = typer.Option(
        False, "--details", help="Formats: knobs, kernels, where they run (asks a worker)."
    ),
    folder: Path = typer.Option(Path("runs"), "--out", "-o", help="The folder of the runs."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the formats, suites, kinds of device, or stored runs."""
    if kind not in _KINDS:
        raise UnknownNameError("list", kind, _KINDS)
    if kind == "formats" and details:
        _format_details(as_json=as_json)
        return
    rows = {"formats": _members, "devices": _members, "suites": _suites, "runs": _runs}[kind](
        kind, folder
    )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['about']}")
    if not rows:
        typer.echo(f"There are no {kind} in {folder}.", err=True)


def _members(kind: str, folder: Path) -> list[dict[str, Any]]:
    from hwbench import plugins

    del folder
    return [
        {"name": name, "about": plugins.summary(kind, name)}
        for name in plugins.names(kind)
        if name != "fake"
    ]


def _suites(kind: str, folder: Path) -> list[dict[str, Any]]:
    from hwbench import suite

    del kind, folder
    return [{"name": name, "about": suite.read(name).get("about", "")} for name in suite.names()]


def _runs(kind: str, folder: Path) -> list[dict[str, Any]]:
    from hwbench.store import read_run

    del kind
    rows = []
    for path in _shared.run_files([folder]) if folder.is_dir() else []:
        run = read_run(path)
        state = "complete" if run.complete else "unfinished"
        about = f"{run.header.suite} on {run.header.device}, {len(run.results)} results, {state}"
        rows.append({"name": str(path), "about": about})
    return rows


def _format_details(*, as_json: bool) -> None:
    import msgspec

    from hwbench import plugins, protocol
    from hwbench.transports.local import LocalWorker

    worker = LocalWorker("cpu", 1)
    try:
        request = protocol.DescribeRequest(names=plugins.names("formats"))
        reply = worker.ask(request, protocol.DescribeReply, 120)
    finally:
        worker.close()
    if as_json:
        typer.echo(msgspec.json.encode(reply.formats).decode())
        return
    for each in reply.formats:
        typer.echo(f"{each.name}: {each.summary}")
        typer.echo(f"  knobs: {', '.join(each.knobs)}; or density")
        typer.echo(f"  kernels: {', '.join(each.kernels)}")
        if each.paper:
            typer.echo(f"  paper: {each.paper}")
        runs = [where for where, reason in each.unsupported.items() if not reason]
        typer.echo(f"  runs on: {', '.join(runs) or 'nothing here'}")
        for reason in dict.fromkeys(filter(None, each.unsupported.values())):
            where = [key for key, value in each.unsupported.items() if value == reason]
            typer.echo(f"  not on {', '.join(where)}: {reason}")
        typer.echo("")
