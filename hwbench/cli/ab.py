"""``hwbench ab``: two interpreters, or two revisions, measured against each other in pairs."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _options, _shared, check
from hwbench.cli._progress import progress


def ab(
    a: str = typer.Option(
        ..., "--a", metavar="PYTHON|REF", help="The baseline: an interpreter, or a git revision."
    ),
    b: str = typer.Option(
        ..., "--b", metavar="PYTHON|REF", help="What is compared with it: likewise."
    ),
    suite: _options.ASuite = "linear",
    device: _options.Device = "auto",
    replicates: int | None = typer.Option(
        None, "--replicates", "-r", min=1, max=1000, help="Pairs of fresh processes."
    ),
    install: str = typer.Option(
        "shared",
        "--install",
        help="How a revision is installed: shared (beside this interpreter's packages, without a "
        "network where its build backend is here) or fresh (with all it needs, from the index).",
    ),
    filter_: str | None = typer.Option(None, "--filter", help="Only matching cases."),
    threads: _options.Threads = None,
    seed: int = typer.Option(0, "--seed", help="Seeds all data and all orders."),
    threshold: _options.Threshold = "3%",
    metric: str = typer.Option(
        "auto", "--metric", help="auto, time, relative, memory, score or a quantity."
    ),
    out: Path = typer.Option(Path("runs"), "--out", "-o", help="Folder for the two run files."),
    junit: Path | None = typer.Option(None, "--junit", help="Write JUnit XML here."),
    markdown: Path | None = typer.Option(None, "--markdown", help="Write Markdown here."),
    json_out: Path | None = typer.Option(None, "--json-out", help="Write the verdicts here."),
    as_json: bool = typer.Option(False, "--json", help="Print the verdicts as JSON."),
) -> None:
    """Measure b against a, replicate by replicate, in a random order within each pair.

    The way to compare torch versions, libraries or a change of a kernel without drift. The same
    worker code of this hwbench runs in both; an interpreter needs torch and msgspec.

    A git revision of the repository that you stand in is unpacked and installed once, into
    hwbench/ab in the user's cache folder. Its build and its code are run. A format of it is known
    by name only if the package is installed here as well. A revision of hwbench itself runs its
    own worker, which must speak the same protocol.

    Exit codes: 0 fine; 1 b regressed; 2 a side cannot be used; 5 a case failed.
    """
    from hwbench.studies import ab as study

    share = check.fraction("--threshold", threshold)
    files.refuse_inputs([junit, markdown, json_out], [Path(suite)])
    with progress() as listener:
        comparison = study.ab(
            a, b, suite, device=device, replicates=replicates, install=install,
            threads=threads, seed=seed, filter=filter_, threshold=share, metric=metric, out=out,
            listener=listener,
        )  # fmt: skip
    aside = _shared.is_stream(junit, markdown, json_out)
    unwritten = check.write(comparison.outcome, junit=junit, markdown=markdown, json_out=json_out)
    check.tell(comparison.outcome, as_json=as_json, unwritten=unwritten, aside=aside)
