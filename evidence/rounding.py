"""What a kernel that rounds activations loses on trained layers, beside what its matrix loses.

Every linear layer of all-MiniLM-L6-v2 in int8 with dynamic activations, by each kernel that runs on
this processor, on the tokens of the held-out sentences: ‖WX − Y‖ / ‖WX‖ of the layer's outputs Y,
and of its dequantised matrix. A row is a kernel and a shape, with the median and the range over its
layers.
"""

from __future__ import annotations

from statistics import median

import torch

from hwbench.formats._base import FORWARD
from hwbench.formats.quantized import Quantized
from hwbench.workloads import _own, _packaged, _trained

SHAPES = ((384, 384), (1536, 384), (384, 1536))


def errors(described: Quantized, names: list[str]) -> tuple[list[float], list[float]]:
    """The errors of the outputs of these layers, and of their matrices, in their order."""
    of_outputs, of_matrices = [], []
    for name in names:
        weight = _trained.linears()[name]
        seen = _packaged._seen("held_out")  # noqa: SLF001 (what hwbench scores on)
        rows = seen[name.removesuffix(_packaged.WEIGHT)]
        layer, exact = described.project(weight), weight.double()
        of_outputs.append(_own.output_error(layer, exact, rows))
        lost = rows.double() @ (layer.to_dense().double() - exact).mT
        of_matrices.append(_own.apart(lost, rows.double() @ exact.mT))
    return of_outputs, of_matrices


def words(values: list[float]) -> str:
    """The median, and the range in brackets, in per cent."""
    low, middle, high = (100 * each for each in (min(values), median(values), max(values)))
    return f"{middle:.2g} % ({low:.2g}–{high:.2g})"


def main() -> None:
    """Print the table."""
    print("| kernel | shape | layers | outputs | matrix |\n|---|---|--:|--:|--:|")
    for kernel in Quantized.KERNELS:
        for out_features, in_features in SHAPES:
            described = Quantized.from_knobs(out_features, in_features, kernel=kernel)
            if described.activations != "dynamic":
                continue
            if reason := described.unsupported("cpu", torch.float32, FORWARD):
                print(f"| {kernel} | {out_features}×{in_features} | | {reason} | |")
                continue
            names = _packaged.chosen(out_features, in_features, 36)
            with torch.no_grad():
                outputs, matrices = errors(described, names)
            shape = f"{out_features}×{in_features}"
            print(f"| {kernel} | {shape} | {len(names)} | {words(outputs)} | {words(matrices)} |")


if __name__ == "__main__":
    main()
