"""Every format's projection of a matrix: how near it comes, and how long it takes.

1024×1024 at density 0.5, a Gaussian matrix and one with a power-law spectrum. Then BLAST alone:
with 16 blocks, on small Gaussian matrices over ten seeds, and against low rank of the same rank.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean

import torch

import hwbench
from hwbench import plugins
from hwbench.errors import KnobError
from hwbench.workloads.projection import gaussian, power_law

SIDE = 1024
KINDS = {"gaussian": gaussian, "power_law": power_law}


def matrix(kind: str, side: int, seed: int) -> torch.Tensor:
    """A square float32 matrix."""
    return KINDS[kind](side, side, torch.Generator().manual_seed(seed)).float()


def projected(name: str, weight: torch.Tensor, **knobs: object) -> tuple[float, float]:
    """Seconds, and the relative Frobenius error in double precision."""
    described = hwbench.get_format(name).from_knobs(*weight.shape, **knobs)
    begun = time.perf_counter()
    layer = described.project(weight)
    seconds = time.perf_counter() - begun
    exact = weight.double()
    dense = layer.to_dense().detach().double()
    return seconds, float((dense - exact).norm() / exact.norm())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    weights = {kind: matrix(kind, SIDE, 0) for kind in KINDS}
    print(f"projection of {SIDE}x{SIDE}, density 0.5: relative error and seconds")
    rows = [(name, {"density": 0.5}) for name in plugins.names("formats") if name != "dense"]
    rows.append(("blast", {"density": 0.5, "blocks": 16}))
    for name, knobs in rows:
        try:
            results = [projected(name, weight, **knobs) for weight in weights.values()]
        except KnobError as error:
            print(f"{name:18s} {error}")
            continue
        cells = "   ".join(
            f"{kind} {error:.4f} {seconds:6.2f} s"
            for kind, (seconds, error) in zip(KINDS, results, strict=True)
        )
        print(f"{name:18s} {cells}   {knobs}")
    small = [matrix("gaussian", 96, seed) for seed in range(10)]
    errors = [projected("blast", weight, blocks=4, rank=24)[1] for weight in small]
    print(f"blast, 4 blocks, rank 24, 96x96 Gaussian, ten seeds: mean error {mean(errors):.4f}")
    for kind in KINDS:
        for density in (0.5, 0.25, 0.1):
            described = hwbench.get_format("blast").from_knobs(512, 512, density=density)
            rank = described.knobs()["rank"]
            worse = []
            for seed in range(2):
                weight = matrix(kind, 512, seed)
                ours = projected("blast", weight, density=density)[1]
                worse.append(ours / projected("low_rank", weight, rank=rank)[1])
            ratios = ", ".join(f"{ratio:.4f}" for ratio in worse)
            print(f"blast / low_rank of rank {rank}, 512x512 {kind}, density {density}: {ratios}")


if __name__ == "__main__":
    main()
