"""Where each kernel of a format is the fastest of that format's kernels.

1024×1024 layers, forward and step, by tokens, density and dtype; medians of interleaved calls. A
kernel earns its row by winning somewhere, or by being the spelling that users write.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from kernels import forward, interleaved, step

import hwbench
from hwbench import plugins
from hwbench.errors import KnobError
from hwbench.formats._base import Format, Linear

SIDE = 1024
TOKENS, DENSITIES = (1, 16, 64, 256, 1024), (0.5, 0.1, 0.02)
DTYPES = (torch.float32, torch.bfloat16)


def winners(
    name: str, rounds: int, every_tokens: list[int], densities: list[float]
) -> dict[str, list[tuple[float, str]]]:
    """By kernel, the cases that it wins, each with the runner-up's time over its own."""
    offered = hwbench.get_format(name).KERNELS
    won: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for density in densities:
        try:
            made = [
                hwbench.get_format(name).from_knobs(SIDE, SIDE, density=density, kernel=kernel)
                for kernel in offered
            ]
        except KnobError:
            continue
        for dtype in DTYPES:
            for direction, call in (("forward", forward), ("step", step)):
                able = [f for f in made if f.unsupported("cpu", dtype, direction) is None]
                layers = {f.kernel: layer(f, dtype) for f in able}
                for tokens in every_tokens if len(layers) > 1 else ():
                    calls = {kernel: call(layer, tokens) for kernel, layer in layers.items()}
                    times = interleaved(calls, rounds)
                    first, second = sorted(times, key=lambda kernel: times[kernel])[:2]
                    where = f"{direction}, density {density}, {tokens} tokens, {dtype}"
                    won[first].append((times[second] / times[first], where))
    return won


def layer(described: Format, dtype: torch.dtype) -> Linear:
    """A layer as the suites time it."""
    made = described.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
    return made.trust_versions()


def main() -> None:
    """Print, for every kernel, how many cases it wins and the clearest of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", help="only these; else all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.formats or plugins.names("formats"):
        offered = hwbench.get_format(name).KERNELS
        if len(offered) == 1 or hwbench.get_format(name).for_budget(SIDE, SIDE, 0.5).unsupported(
            "cpu", torch.float32, "forward"
        ):
            continue
        won = winners(name, asked.rounds, asked.tokens, asked.densities)
        total = sum(map(len, won.values()))
        for kernel in offered:
            if kernel.startswith("triton"):  # CUDA only
                continue
            best = max(won[kernel], default=None)
            told = f"; clearest {best[0]:.2f} times before the next: {best[1]}" if best else ""
            print(f"{name:15s} {kernel:13s} {len(won[kernel]):3d} of {total}{told}", flush=True)


if __name__ == "__main__":
    main()
