"""How many rounds, sweeps and steps projections by outputs take: chosen on calibration text alone.

Layers of SmolLM2-135M are projected by what they see on the first four chapters of the book. The
output error ‖(W − Ŵ)X‖ / ‖WX‖ is taken on the fifth and sixth, which projections of ``compress_lm``
see too, and never on the chapters that it scores. A line for each format and count has the mean
over the layers of the error there and on the fitted chapters, each over that of the count in force.
Lines of ``--out`` are kept: a call that was broken off goes on where it stopped. Lines of another
processor, other threads or other code are measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

import _kept
import torch
from torch import Tensor

import hwbench
from hwbench import environment
from hwbench.checkpoints import smollm2
from hwbench.formats import _gram, _pruned
from hwbench.formats._gram import Seen
from hwbench.workloads import _prose
from hwbench.workloads._llama import Llama, encoded

WINDOWS = {"fitting": 16, "choosing": 8}
LAYERS = ("3.self_attn.o_proj", "3.self_attn.k_proj", "17.self_attn.o_proj", "17.mlp.up_proj")


class Constant(NamedTuple):
    """A constant of the code, the counts that are tried, and on which formats."""

    module: ModuleType
    name: str
    counts: tuple[int, ...]
    formats: tuple[str, ...]

    @property
    def current(self) -> int:
        """The count in force."""
        return int(getattr(self.module, self.name))


CONSTANTS = (
    Constant(_gram, "ROUNDS", (1, 2, 3, 4, 6, 8), ("monarch", "block_dense", "btt")),
    Constant(_pruned, "STEPS", (3, 5, 10, 20), ("csr", "n_m", "bsr")),
    Constant(_gram, "SWEEPS", (1, 2, 3, 4, 8), ("kronecker", "low_rank_sparse", "blast")),
)


KEY = ("layer", "constant", "format", "density", "count")
"""The fields of a row that say what it is of."""


class Layer(NamedTuple):
    """A layer, what it sees of the fitted text, and XᵀX of the text that chooses."""

    name: str
    weight: Tensor  # (out, in)
    seen: Seen
    held: Tensor  # (in, in), float64


def layers(names: Sequence[str]) -> Iterator[Layer]:
    """These layers, each with what it sees.

    Raises:
        SystemExit: the model has no layer of such a name.
    """
    if not names:
        return
    file = smollm2.path()
    model = Llama.load(file)
    known = {name.removeprefix("model.layers.") for name in model.linears()}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"SmolLM2 has no layer {unknown[0]}; one is {LAYERS[0]}.")
    last = max(int(name.split(".")[0]) for name in names)
    parts = [
        model.visited(_prose.windows(partial(encoded, file), part, count))
        for part, count in WINDOWS.items()
    ]
    for (name, linear, rows), (_, _, rows_held) in zip(*parts, strict=True):
        short = name.removeprefix("model.layers.")
        if short in names:
            wide = rows_held.double()
            yield Layer(short, linear.weight.detach(), Seen(rows), wide.T @ wide)
        if int(short.split(".")[0]) > last:
            return


def error(dense: Tensor, weight: Tensor, moments: Tensor) -> float:
    """‖(W − Ŵ)X‖ / ‖WX‖ by XᵀX."""
    exact = weight.double()
    parts = [float((each @ moments * each).sum()) for each in (exact - dense.double(), exact)]
    return (parts[0] / parts[1]) ** 0.5


def tried(layer: Layer, constant: Constant, density: float) -> Iterator[dict[str, object]]:
    """The errors of a layer at each count of a constant."""
    in_force = constant.current
    for name in constant.formats:
        described = hwbench.get_format(name).from_knobs(*layer.weight.shape, density=density)
        for count in constant.counts:
            setattr(constant.module, constant.name, count)
            begun = time.process_time()
            try:
                projected = described.project_outputs(layer.weight, layer.seen).to_dense().detach()
            finally:
                setattr(constant.module, constant.name, in_force)
            yield {
                "layer": layer.name,
                "constant": constant.name,
                "format": name,
                "density": density,
                "count": count,
                "seconds": time.process_time() - begun,
                "fitted": error(projected, layer.weight, layer.seen.gram),
                "held": error(projected, layer.weight, layer.held),
            }


def measured(
    names: Sequence[str], constants: Sequence[Constant], density: float, out: Path
) -> list[dict[str, object]]:
    """The rows of these layers and constants; what ``out`` holds already is not measured again."""
    settings: dict[str, Any] = {
        "windows": WINDOWS,
        "threads": torch.get_num_threads(),
        "processor": environment.cpu_facts()["name"],
    }
    known = {tuple(row[field] for field in KEY): row for row in _kept.rows(out, __file__, settings)}
    wanted = {
        (name, constant.name): [
            (name, constant.name, format_name, density, count)
            for format_name in constant.formats
            for count in constant.counts
        ]
        for name in names
        for constant in constants
    }
    keys = [key for some in wanted.values() for key in some]
    print(_kept.told(out, sum(key in known for key in keys), len(keys)), flush=True)
    missing = {some[0][:2] for some in wanted.values() if any(key not in known for key in some)}
    of_layers = [name for name in names if any(layer == name for layer, _ in missing)]
    for layer in layers(of_layers):
        for constant in constants:
            if (layer.name, constant.name) in missing:
                new = list(tried(layer, constant, density))
                _kept.keep(out, __file__, settings, new)
                known |= {tuple(row[field] for field in KEY): row for row in new}
    return [known[key] for key in keys]


def table(rows: list[dict[str, object]]) -> str:
    """A line for each format and count."""
    lines = [
        "| constant | format | count | held-out error | fitted error | CPU seconds |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for constant in CONSTANTS:
        for name in constant.formats:
            own = [r for r in rows if r["constant"] == constant.name and r["format"] == name]
            base = {r["layer"]: r for r in own if r["count"] == constant.current}
            for count in constant.counts:
                some = [r for r in own if r["count"] == count and r["layer"] in base]
                if not some:
                    continue
                held_ratio, fitted = (
                    fmean(float(str(r[key])) / float(str(base[r["layer"]][key])) for r in some)
                    for key in ("held", "fitted")
                )
                seconds = sum(float(str(r["seconds"])) for r in some)
                mark = " (in force)" if count == constant.current else ""
                lines.append(
                    f"| {constant.name} | {name} | {count}{mark} | {held_ratio:.4f} | {fitted:.4f} "
                    f"| {seconds:.1f} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="*", default=LAYERS)
    names = [each.name for each in CONSTANTS]
    parser.add_argument("--constants", nargs="*", choices=names, default=names)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("rounds.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    constants = [each for each in CONSTANTS if each.name in options.constants]
    with torch.no_grad():
        print(table(measured(options.layers, constants, options.density, options.out)))


if __name__ == "__main__":
    main()
