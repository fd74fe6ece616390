"""Write docs/machines.html: one page that compares every machine of which reports/ has a run.

Of each machine it takes the newest finished run of the suite ``linear``. Run it as
``.venv/bin/python docs/make_machines.py`` after a run was added.
"""

from __future__ import annotations

from pathlib import Path

from hwbench.records import Header
from hwbench.report import html, versus
from hwbench.store import Run, read_run

HERE = Path(__file__).parent
REPORTS, PAGE = HERE.parent / "reports", HERE / "machines.html"
SUITE = "linear"
TELLING = ("family", "model", "cores")
"""What tells machines apart whose processors have one name: three generations are ``AMD EPYC``."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(chosen(REPORTS)), encoding="utf-8")


def chosen(folder: Path) -> list[Run]:
    """The newest finished run of the suite of each machine, in the order of their names.

    A run with fewer threads than the machine's others stands for it only where it is alone.

    Raises:
        SystemExit: the folder has no such run.
    """
    runs = [read_run(path) for path in sorted(folder.glob("*/*.jsonl"))]
    whole = [run for run in runs if run.complete and run.header.suite == SUITE]
    whole.sort(key=lambda run: (threads(run.header), run.header.created))
    newest = {machine(run.header): run for run in whole}
    if not newest:
        raise SystemExit(f"{folder} has no finished run of the suite {SUITE}.")
    return [newest[each] for each in sorted(newest)]


def machine(header: Header) -> tuple[str, ...]:
    """The name of a machine, and what tells it apart from others of this name, where it is known.

    Cores are those that a run may use: a virtual machine of two is another one than of eight. Other
    settings and memory are no part of it: they differ between two runs of one machine.
    """
    return header.machine, *(str(header.device_facts.get(name, "")) for name in TELLING)


def threads(header: Header) -> int:
    """The threads of a run; 0 where none are recorded, as on a GPU."""
    return int(header.environment.fingerprint.get("threads") or 0)


def page(runs: list[Run]) -> str:
    """The runs side by side, the first as the base; the report of a run that is alone."""
    return html.render(runs) if len(runs) == 1 else versus.page(runs, versus.compare(runs))


if __name__ == "__main__":
    main()
