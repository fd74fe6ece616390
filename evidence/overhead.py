"""Where the seconds of a run of the suite 'linear' go, from its own footer."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import hwbench
from hwbench.store import read_run


def main() -> None:
    """Run the suite, or read a run that is named, and print the shares."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else hwbench.run("linear", out=folder)
        run = read_run(path)
    assert run.footer is not None, "the run is not complete"
    spent = {k.removesuffix("_seconds"): v for k, v in run.footer.state.items() if "_seconds" in k}
    wall = run.footer.wall_seconds
    further = run.footer.state.get("further_replicates", 0)
    print(f"the plan's replicates took {spent.get('planned', wall):.1f} s; {further} further")
    measuring = spent["solo"] + spent["chunk"]
    print(f"wall {wall:.1f} s; worker starts {spent['start']:.1f} s; planning and the rest "
          f"{wall - measuring - spent['start']:.1f} s")  # fmt: skip
    print(f"after start-up {measuring:.1f} s, of which")
    for name in ("sampled", "warm", "solo"):
        print(f"  {name:8s} {spent[name]:7.1f} s  {100 * spent[name] / measuring:5.1f} %")


if __name__ == "__main__":
    main()
