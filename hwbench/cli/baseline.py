"""``hwbench baseline``: runs that are kept, by machine, for ``hwbench check`` to compare with."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench.cli import _options, _shared

app = typer.Typer(
    no_args_is_help=True,
    help="Keep runs as baselines: promote, list, prune. They stay plain run files.",
)
_NAMED = typer.Argument(None, help="The folder of the baselines; --out names it too.")
_FOLDER = typer.Option(Path("baselines"), "--out", "-o", help="The folder of the baselines.")


@app.command("promote")
def promote(
    runs: list[Path] = typer.Argument(..., help="Run files, or folders of them."),
    folder: Path = _FOLDER,
) -> None:
    """Copy finished runs, by hand and on purpose, into the folder of their machine."""
    from hwbench.studies import baseline

    for path in _shared.run_files(runs):
        _shared.say(f"{path} is kept as {baseline.promote(path, folder)}.")


@app.command("list")
def list_(
    named: Path | None = _NAMED,
    folder: Path = _FOLDER,
    as_json: _options.PrintJson = False,
) -> None:
    """List the runs that are kept, by machine and suite."""
    from hwbench.report.rows import printable
    from hwbench.studies import baseline

    folder = named or folder
    entries = baseline.kept(folder)
    if as_json:
        rows = [
            {
                "path": str(each.path),
                "machine": each.header.machine,
                "suite": each.header.suite,
                "created": each.header.created,
                "replicates": each.header.plan.replicates,
            }
            for each in entries
        ]
        _shared.say_json(rows)
        return
    for each in entries:
        header = each.header
        about = f"{header.suite} on {header.machine}, {header.created}"
        _shared.say(f"{each.path}  {printable(about)}")
    if not entries:
        _shared.say(f"There are no baselines in {folder}.", error=True)


@app.command("prune")
def prune(
    named: Path | None = _NAMED,
    folder: Path = _FOLDER,
    keep: int = typer.Option(
        10, "--keep", min=1, max=10_000, help="Runs to keep of each machine and suite."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be deleted."),
) -> None:
    """Delete all but the last runs of each machine and suite."""
    from hwbench.studies import baseline

    for each in baseline.prune(named or folder, keep, dry_run=dry_run):
        _shared.say(f"{each.path} {'would be' if dry_run else 'is'} deleted.")
