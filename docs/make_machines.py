"""Write docs/machines.html: one page that compares every machine of which reports/ has a run.

Of each machine it takes the newest finished run of the suite ``linear``. Run it as
``.venv/bin/python docs/make_machines.py`` after a run was added.
"""

from __future__ import annotations

from pathlib import Path

from hwbench.report import html, versus
from hwbench.store import Run, read_run

HERE = Path(__file__).parent
REPORTS, PAGE = HERE.parent / "reports", HERE / "machines.html"
SUITE = "linear"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(chosen(REPORTS)), encoding="utf-8")


def chosen(folder: Path) -> list[Run]:
    """The newest finished run of the suite of each machine, in the order of their names.

    Raises:
        SystemExit: the folder has no such run.
    """
    runs = [read_run(path) for path in sorted(folder.glob("*/*.jsonl"))]
    whole = [run for run in runs if run.complete and run.header.suite == SUITE]
    newest = {run.header.machine: run for run in sorted(whole, key=lambda run: run.header.created)}
    if not newest:
        raise SystemExit(f"{folder} has no finished run of the suite {SUITE}.")
    return [newest[machine] for machine in sorted(newest)]


def page(runs: list[Run]) -> str:
    """The runs side by side, the first as the base; the report of a run that is alone."""
    return html.render(runs) if len(runs) == 1 else versus.page(runs, versus.compare(runs))


if __name__ == "__main__":
    main()
