"""Where each kernel of a format is the fastest of that format's kernels.

1024×1024 layers, forward and step, by tokens, density and dtype; medians of interleaved calls. A
kernel earns its row by winning somewhere, or by being the spelling that users write. ``--each``
prints every case too: its fastest kernel, and that one's time over the default's.

A format that no density decides, such as codes of all weights, is compared in each setting that is
usual for one of its kernels, among the kernels that take it. What is left out has a line: a kernel
that cannot have a density or does not run here, and a format with one kernel.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from kernels import forward, interleaved, step

import hwbench
from hwbench import plugins
from hwbench.errors import KnobError, UnknownNameError
from hwbench.formats._base import Format, Linear
from hwbench.records import Knob

SIDE = 1024
TOKENS, DENSITIES = (1, 16, 64, 256, 1024), (0.5, 0.1, 0.02)
DTYPES, DIRECTIONS = ("float32", "bfloat16"), {"forward": forward, "step": step}

Left = dict[tuple[str, str], dict[str, None]]
"""What was left out, each once: a kernel and why, and where."""


class Case(NamedTuple):
    """One case, and seconds of each kernel that runs it, the default first if it does."""

    where: str
    times: dict[str, float]

    def fastest(self) -> list[str]:
        """The kernels, the fastest first."""
        return sorted(self.times, key=lambda kernel: self.times[kernel])


def settings(
    kind: type[Format], kernels: Sequence[str], densities: Iterable[float], left: Left
) -> dict[str, list[Format]]:
    """The kernels that are set against each other, as formats, by the words of their setting."""
    found: dict[str, list[Format]] = {}
    if kind.decided_knobs():
        for density in densities:
            words = f"density {density}"
            found[words] = _built(kind, kernels, {"density": density}, left, words)
        return found
    for knobs in _usual(kind, kernels, left):
        words = " ".join(f"{key}={value}" for key, value in knobs.items())
        # A kernel that does not take a setting of another one's has its own.
        found[words] = _built(kind, kernels, knobs, {}, words)
    return found


def _usual(kind: type[Format], kernels: Sequence[str], left: Left) -> list[dict[str, Knob]]:
    """The knobs that kernels have by themselves, each once."""
    usual: list[dict[str, Knob]] = []
    for described in _built(kind, kernels, {}, left, "any setting"):
        knobs = {key: value for key, value in described.knobs().items() if key != "kernel"}
        if knobs not in usual:
            usual.append(knobs)
    return usual


def _built(
    kind: type[Format], kernels: Sequence[str], knobs: dict[str, Knob], left: Left, words: str
) -> list[Format]:
    """The format with each of the kernels that these knobs can have."""
    formats = []
    for kernel in kernels:
        try:
            formats.append(kind.from_knobs(SIDE, SIDE, kernel=kernel, **knobs))
        except KnobError as error:
            left.setdefault((kernel, str(error)), {})[words] = None
    return formats


def cases(kind: type[Format], options: argparse.Namespace, left: Left) -> Iterator[Case]:
    """The cases of a format that more than one of the kernels asked for runs, timed."""
    offered = [k for k in kind.KERNELS if k in (options.kernels or kind.KERNELS)]
    for words, formats in settings(kind, offered, options.densities, left).items():
        for dtype, direction in product(options.dtypes, options.directions):
            able = []
            for described in formats:
                reason = described.unsupported("cpu", getattr(torch, dtype), direction)
                if reason is None:
                    able.append(described)
                else:
                    left.setdefault((described.kernel, reason), {})[f"{direction} {dtype}"] = None
            if len(able) == 1:
                where = ", ".join(filter(None, (words, direction, dtype)))
                left.setdefault((able[0].kernel, "No other kernel runs there."), {})[where] = None
            layers = {f.kernel: layer(f, getattr(torch, dtype)) for f in able if len(able) > 1}
            for tokens in options.tokens if layers else ():
                call = partial(DIRECTIONS[direction], tokens=tokens, dtype=getattr(torch, dtype))
                calls = {kernel: call(layer) for kernel, layer in layers.items()}
                parts = (direction, words, f"{tokens} tokens", dtype)
                yield Case(", ".join(filter(None, parts)), interleaved(calls, options.rounds))


def layer(described: Format, dtype: torch.dtype) -> Linear:
    """A layer as the suites time it."""
    layer_ = described.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
    return layer_.trust_versions()


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
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
    options = parser.parse_args(words)
    options.formats = options.formats or plugins.names("formats")
    try:
        kinds = [hwbench.get_format(name) for name in options.formats]
    except UnknownNameError as error:
        parser.error(str(error))
    known = {kernel for kind in kinds for kernel in kind.KERNELS}
    if unknown := set(options.kernels or ()) - known:
        parser.error(f"No format asked for has a kernel {min(unknown)}.")
    return options


def compared(name: str, options: argparse.Namespace) -> None:
    """Print how many cases each kernel of a format wins, and what was left out."""
    kind, left = hwbench.get_format(name), Left()
    won: dict[str, list[tuple[float, str]]] = defaultdict(list)
    ran = Counter[str]()
    for case in cases(kind, options, left):
        first, second = case.fastest()[:2]
        ran.update([*case.times])
        won[first].append((case.times[second] / case.times[first], case.where))
        default = kind.KERNELS[0]
        if options.each and default in case.times:
            over = case.times[first] / case.times[default]
            words = f"{over:.3f} of {default}" if over < 1 else "the default"
            print(f"{name:15s} {case.where:52s} {first:13s} {words}", flush=True)
    for kernel in (k for k in kind.KERNELS if ran[k]):
        best = max(won[kernel], default=None)
        words = f"; clearest {best[0]:.2f} times before the next: {best[1]}" if best else ""
        print(f"{name:15s} {kernel:13s} {len(won[kernel]):3d} of {ran[kernel]}{words}", flush=True)
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (kernel, reason), where in left.items():
        together["; ".join(where), reason].append(kernel)
    for (where_words, reason), kernels in together.items():
        print(f"{name:15s} left out: {', '.join(kernels)} ({where_words}): {reason}", flush=True)


def main() -> None:
    """Print, for every kernel, how many cases it wins and the clearest of them."""
    options = parsed()
    torch.set_num_threads(options.threads)
    alone = []
    for name in options.formats:
        if len(hwbench.get_format(name).KERNELS) == 1:
            alone.append(name)
        else:
            compared(name, options)
    if alone:
        print(f"left out, with one kernel: {', '.join(alone)}")


if __name__ == "__main__":
    main()
