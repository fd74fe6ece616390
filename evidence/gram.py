"""What a projection by outputs is worth on layers that were trained: held-out errors of each.

Every inner linear layer of SmolLM2-135M is projected plainly and by outputs (``weighting = "none"``
and ``"gram"``), by what it sees on calibration windows of the book; the output error
‖(W − Ŵ)X‖ / ‖WX‖ is taken on windows of other chapters, in float64. The table says on how many
layers the second is lower, and names the layer where it does worst. Lines of ``--out`` are kept: a
call that was broken off goes on where it stopped. Lines of other windows, or of other code, are
measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import _kept
import torch
from torch import Tensor

import hwbench
from hwbench.checkpoints import smollm2
from hwbench.formats._base import Format
from hwbench.formats._gram import Seen
from hwbench.workloads import _prose
from hwbench.workloads._llama import Llama, encoded

FORMATS = (
    "low_rank", "low_rank_light", "block_dense", "monarch", "btt", "kronecker", "block_diagonal",
    "low_rank_sparse", "bsr", "condensed", "csr", "n_m",
)  # fmt: skip
"""In the order in which they are tried; blast and dictionary are slow, and asked for by name."""


class Row(NamedTuple):
    """One layer in one format: its output error on rows that no projection has seen."""

    layer: str
    format: str
    density: float
    none: float
    gram: float

    def ratio(self) -> float:
        """The error by outputs over the plain one."""
        return self.gram / self.none


class Layer(NamedTuple):
    """A layer, what its projections see, and XᵀX / n of the rows that are held out."""

    name: str
    weight: Tensor  # (out, in), float64
    seen: Seen
    held: Tensor  # (in, in), float64


def layers(windows: int, every: int) -> Iterator[Layer]:
    """The layers of every so-maniest block of SmolLM2, one block at a time."""
    file = smollm2.path()
    model = Llama.load(file)
    parts = [
        model.visited(_prose.windows(partial(encoded, file), part, windows))
        for part in ("calibration", "evaluation")
    ]
    seen, moments = Seen(torch.zeros(0)), torch.zeros(0)
    last: Tensor | None = None
    for (name, linear, rows), (_, _, rows_held) in zip(*parts, strict=True):
        if int(name.split(".")[2]) % every:
            continue
        if rows is not last:
            wide = rows_held.double()
            last, seen, moments = rows, Seen(rows), wide.T @ wide / len(wide)
        yield Layer(name, linear.weight.detach().double(), seen, moments)


def error(lost: Tensor, weight: Tensor, moments: Tensor) -> float:
    """‖(W − Ŵ)X‖ / ‖WX‖ by XᵀX."""
    parts = [float((each @ moments * each).sum()) for each in (lost, weight)]
    return (parts[0] / parts[1]) ** 0.5


def compared(described: Format, layer: Layer, density: float) -> Row:
    """Both projections of one layer."""
    both = (
        described.project(layer.weight),
        described.project_outputs(layer.weight, layer.seen),
    )
    none, gram = (
        error(each.to_dense().detach() - layer.weight, layer.weight, layer.held) for each in both
    )
    return Row(layer.name, described.name(), density, none, gram)


def measured(
    names: Iterable[str], density: float, windows: int, every: int, out: Path
) -> list[Row]:
    """The rows of these layers and formats; what ``out`` holds already is not measured again."""
    settings = {"windows": windows}
    stored = [Row(**each) for each in _kept.rows(out, __file__, settings)]
    known = {(row.layer, row.format, row.density): row for row in stored}
    rows, there = list[Row](), 0
    for layer in layers(windows, every):
        for name in names:
            key = (layer.name, name, density)
            there += key in known
            if key not in known:
                described = hwbench.get_format(name).from_knobs(
                    *layer.weight.shape, density=density
                )
                with torch.no_grad():
                    known[key] = compared(described, layer, density)
                _kept.keep(out, __file__, settings, [known[key]._asdict()])
            rows.append(known[key])
    print(_kept.told(out, there, len(rows)), flush=True)
    return rows


def table(rows: Iterable[Row]) -> str:
    """A line for each format and density, the most helped first."""
    kinds: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.format, row.density), []).append(row)
    lines = [
        "| format | density | layers | lower | median of gram / none | worst layer |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for (name, density), some in sorted(
        kinds.items(), key=lambda kind: median(row.ratio() for row in kind[1])
    ):
        lower = sum(row.gram < row.none for row in some)
        worst = max(some, key=Row.ratio)
        middle = median(row.ratio() for row in some)
        lines.append(
            f"| {name} | {density:g} | {len(some)} | {lower / len(some):.1%} | {middle:.3f} "
            f"| {worst.layer.removeprefix('model.layers.')}: {worst.ratio():.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="*", default=FORMATS)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--windows", type=int, default=16, help="of either part of the book")
    parser.add_argument("--every", type=int, default=1, help="2 for each second block")
    parser.add_argument("--out", type=Path, default=Path("gram.jsonl"))
    options = parser.parse_args()
    rows = measured(options.formats, options.density, options.windows, options.every, options.out)
    print(table(rows))


if __name__ == "__main__":
    main()
