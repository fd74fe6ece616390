"""Where each kernel of a format is the fastest of that format's kernels.

1024×1024 layers, forward and step, by tokens, density and dtype; medians of interleaved calls. A
kernel earns its row by winning somewhere, or by being the spelling that users write. ``--each``
prints every case too: its fastest kernel, and that one's time over the default's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from kernels import forward, interleaved, step

import hwbench
from hwbench import plugins
from hwbench.errors import KnobError
from hwbench.formats._base import Format, Linear

SIDE = 1024
TOKENS, DENSITIES = (1, 16, 64, 256, 1024), (0.5, 0.1, 0.02)
DTYPES, DIRECTIONS = ("float32", "bfloat16"), {"forward": forward, "step": step}


class Case(NamedTuple):
    """One case, and seconds of each kernel that runs it, the default first if it does."""

    where: str
    times: dict[str, float]

    def fastest(self) -> list[str]:
        """The kernels, the fastest first."""
        return sorted(self.times, key=lambda kernel: self.times[kernel])


def cases(name: str, options: argparse.Namespace) -> Iterator[Case]:
    """The cases of a format that more than one of the kernels asked for runs, timed."""
    kind = hwbench.get_format(name)
    offered = [k for k in kind.KERNELS if k in (options.kernels or kind.KERNELS)]
    for density in options.densities:
        try:
            formats = [kind.from_knobs(SIDE, SIDE, density=density, kernel=k) for k in offered]
        except KnobError:
            continue
        for dtype in (getattr(torch, each) for each in options.dtypes):
            for direction in options.directions:
                able = [f for f in formats if f.unsupported("cpu", dtype, direction) is None]
                layers = {f.kernel: layer(f, dtype) for f in able}
                for tokens in options.tokens if len(layers) > 1 else ():
                    call = DIRECTIONS[direction]
                    calls = {kernel: call(layer, tokens) for kernel, layer in layers.items()}
                    where = f"{direction}, density {density}, {tokens} tokens, {dtype}"
                    yield Case(where, interleaved(calls, options.rounds))


def layer(described: Format, dtype: torch.dtype) -> Linear:
    """A layer as the suites time it."""
    layer_ = described.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
    return layer_.trust_versions()


def main() -> None:
    """Print, for every kernel, how many cases it wins and the clearest of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", help="only these; else all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=[*DIRECTIONS])
    parser.add_argument("--kernels", nargs="+", help="only these; else all that run here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--each", action="store_true", help="print every case too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.formats or plugins.names("formats"):
        offered = hwbench.get_format(name).KERNELS
        if len(offered) == 1 or hwbench.get_format(name).for_budget(SIDE, SIDE, 0.5).unsupported(
            "cpu", torch.float32, "forward"
        ):
            continue
        won: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for case in cases(name, options):
            first, second = case.fastest()[:2]
            won[first].append((case.times[second] / case.times[first], case.where))
            if options.each and offered[0] in case.times:
                over = case.times[first] / case.times[offered[0]]
                words = f"{over:.3f} of {offered[0]}" if over < 1 else "the default"
                print(f"{name:15s} {case.where:52s} {first:13s} {words}", flush=True)
        total = sum(map(len, won.values()))
        for kernel in offered if total else ():
            if kernel.startswith("triton") or kernel not in (options.kernels or offered):
                continue  # CUDA only, or not asked for
            best = max(won[kernel], default=None)
            words = f"; clearest {best[0]:.2f} times before the next: {best[1]}" if best else ""
            print(f"{name:15s} {kernel:13s} {len(won[kernel]):3d} of {total}{words}", flush=True)


if __name__ == "__main__":
    main()
