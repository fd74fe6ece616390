"""Each format beside the published layers of its kind: interleaved calls, as ratios with intervals.

A cell is the time of our public ``Linear`` over that of the published layer, forward or a step, at
so many tokens: float32, 1024×1024, with the same weights, after both have given the same y and
gradient of x. It is the median over rounds of the ratio in each, with that median's 95 % interval;
rounds of one process agree with each other more than processes do. Ours is the default kernel and,
where another one is faster, that one too. A ratio is bold where all of its interval is above 1.05.

No published code is here: the published side is our spelling of the maths, in the operations that
the publication uses. ``--code FOLDER`` runs the code itself, from the repositories that lie there
(``--list`` says which): the files are run as they are. Memory that a call frees is kept, as
hwbench's workers keep it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import kernels
import torch
from published_code import Applied, symbol_of
from published_layers import Published, published
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import hwbench
from hwbench import environment
from hwbench.analysis.stats import median_interval
from hwbench.devices import _allocator
from hwbench.errors import KnobError

SIDE, TOKENS = 1024, (1, 16, 256, 1024)
DIRECTIONS = {"forward": kernels.forward, "step": kernels.step}

LIMIT = 1.05
"""A ratio whose interval lies above this is slower."""

EQUAL = 1e-4
"""The largest relative Frobenius difference of y, and of the gradient of x."""

SAMPLE = 2e-4
"""Seconds that a sample lasts at least, of as many calls as that takes."""

FEWEST = 9
"""Rounds of a cell at least, however long they take; a median of fewer than six has no interval."""

FROM_MATHS, PUBLISHED = "from the maths", "published code"

Layers = dict[str, hwbench.Linear]
"""Ours by kernel, the default first, with the same weights."""


class Ratio(NamedTuple):
    """Our time over theirs."""

    kernel: str
    value: float
    low: float
    high: float

    @property
    def slower(self) -> bool:
        """Whether the interval excludes ``LIMIT``."""
        return self.low > LIMIT

    def __str__(self) -> str:
        text = f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"
        return f"**{text}**" if self.slower else text


class Cell(NamedTuple):
    """What was timed at one number of tokens: the default kernel and the fastest."""

    name: str
    direction: str
    tokens: int
    default: Ratio
    best: Ratio
    reason: str = ""
    """What both sides spend their time on, where that was asked for."""

    def __str__(self) -> str:
        if self.best.kernel == self.default.kernel:
            return str(self.default)
        return f"{self.default}, `{self.best.kernel}` {self.best}"


def ours(row: Published, side: int, direction: str) -> Layers:
    """A layer of each kernel that runs the direction on this CPU, the default first."""
    kind, layers = hwbench.get_format(row.format), {}
    bias = torch.randn(side, generator=torch.Generator().manual_seed(1))
    for kernel in kind.KERNELS:
        knobs = {**row.knobs, "kernel": kernel}
        try:
            described = kind.from_knobs(side, side, **knobs)
        except KnobError:
            continue  # it multiplies another setting of the format
        if described.unsupported("cpu", torch.float32, direction) is None:
            layers[kernel] = kernels.layer(row.format, (side, side), **knobs)
            if row.spelling.bias:
                layers[kernel].bias = nn.Parameter(bias.clone())
    return layers


def theirs(row: Published, layer: hwbench.Linear, code: Path | None) -> tuple[Any, str]:
    """The published side with the weights of our layer, and which of the two it is."""
    spelling, symbol, what = row.spelling, None, FROM_MATHS
    if code is not None:
        try:
            symbol = symbol_of(code, row.source, row.code)
        except ImportError as error:
            what = f"{FROM_MATHS}, as its code does not load: {error}"
    weights = tuple(weight.detach() for weight in spelling.weights(layer))
    module: Any
    if symbol is None:
        module = Applied(spelling.multiply, weights, spelling.trains)
    else:
        module, what = spelling.as_published(symbol, weights, spelling.trains), PUBLISHED
    module.out_features, module.in_features = layer.out_features, layer.in_features
    return module, what


def check(row: Published, layers: Layers, other: Any, tokens: int, direction: str) -> None:
    """Demand the same y of all, and in a step the same gradient of x.

    Raises:
        ValueError: a kernel differs from the published layer by more than ``EQUAL``.
    """
    source = torch.Generator().manual_seed(2)
    first = next(iter(layers.values()))
    x = torch.randn(tokens, first.in_features, generator=source)
    dy = torch.randn(tokens, first.out_features, generator=source)
    order = None if row.spelling.order is None else row.spelling.order(first)
    expected = _results(other, x, dy, direction, order)
    for kernel, layer in layers.items():
        results = _results(layer, x, dy, direction, None)
        for what, one, two in zip(("y", "the gradient of x"), results, expected, strict=False):
            difference = float((one - two).norm() / two.norm())
            if not difference <= EQUAL:
                raise ValueError(
                    f"{row.name}, {tokens} tokens: {what} of kernel={kernel} differs by "
                    f"{difference:.1e} from that of the published layer; at most {EQUAL:g} may."
                )


def _results(
    layer: Any, x: Tensor, dy: Tensor, direction: str, order: Tensor | None
) -> list[Tensor]:
    """y, its outputs in that order, and in a step the gradient of x."""
    if direction == "forward":
        with torch.no_grad():
            y = layer(x)
        return [y if order is None else y[:, order]]
    x = x.clone().requires_grad_()
    y = layer(x) if order is None else layer(x)[:, order]
    return [y.detach(), torch.autograd.grad(y, x, dy)[0]]


def seconds(call: kernels.Call) -> float:
    """Of one call, after another."""
    call()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def repeated(call: kernels.Call, count: int) -> kernels.Call:
    """So many calls as one."""

    def calls() -> None:
        for _ in range(count):
            call()

    return calls


def fastest(calls: dict[str, kernels.Call]) -> str:
    """The kernel whose calls are the shortest, of those that are near in a first one."""
    first = {kernel: seconds(call) for kernel, call in calls.items()}
    least = min(first.values())
    count = math.ceil(SAMPLE / least)
    near = {k: repeated(call, count) for k, call in calls.items() if first[k] < 3 * least}
    times = kernels.interleaved(near, 5) if len(near) > 1 else first
    return min(near, key=lambda kernel: times[kernel])


def ratio(kernel: str, ours: list[float], theirs: list[float]) -> Ratio:
    """The median of the ratios of all rounds, and its interval."""
    each = [one / two for one, two in zip(ours, theirs, strict=True)]
    low, high = median_interval(each) or (math.nan, math.nan)
    return Ratio(kernel, median(each), low, high)


def timed(
    calls: dict[str, kernels.Call], other: kernels.Call, rounds: int, limit: float
) -> tuple[Ratio, Ratio]:
    """Our default and our fastest kernel over the published layer, in about ``limit`` seconds."""
    default, best = next(iter(calls)), fastest(calls)
    both = {kernel: calls[kernel] for kernel in dict.fromkeys((default, best))}
    lengths = {kernel: seconds(call) for kernel, call in {**both, "": other}.items()}
    count = math.ceil(SAMPLE / min(lengths.values()))
    # A round calls each twice, and three rounds more go before those that count.
    affordable = int(limit / (2 * count * sum(lengths.values()))) - 3
    rounds = min(rounds, max(FEWEST, affordable))
    samples = {kernel: repeated(call, count) for kernel, call in {**both, "": other}.items()}
    times = kernels.sampled(samples, rounds)
    first, second = (ratio(kernel, times[kernel], times[""]) for kernel in (default, best))
    return first, min(first, second, key=lambda each: each.value)


def operators(call: kernels.Call, calls: int = 10) -> str:
    """The operators of a call by the share of its time that each takes itself, the six largest."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            call()
    events = profiled.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    counted = sum(event.count for event in events) / calls
    largest = Counter({e.key: e.self_cpu_time_total for e in events}).most_common(6)
    times = {event.key: event.count / calls for event in events}
    parts = (f"{name} {times[name]:g} × ({spent / whole:.0%})" for name, spent in largest)
    return f"{counted:g} operators a call: {', '.join(parts)}"


def measure(row: Published, options: argparse.Namespace) -> list[Cell]:
    """Print the lines of one layer, and return its cells."""
    every: list[Cell] = []
    for direction in DIRECTIONS if row.spelling.trains else ("forward",):
        layers = ours(row, SIDE, direction)
        other, what = theirs(row, next(iter(layers.values())), options.code)
        cells = []
        for tokens in options.tokens:
            check(row, layers, other, tokens, direction)
            calls = {k: DIRECTIONS[direction](layer, tokens) for k, layer in layers.items()}
            rival = DIRECTIONS[direction](other, tokens)
            both = timed(calls, rival, options.rounds, options.seconds)
            cell = Cell(row.name, direction, tokens, *both)
            if options.profile and cell.best.slower:
                mine = operators(calls[cell.best.kernel])
                reason = f"\n  * ours: {mine}\n  * theirs: {operators(rival)}"
                cell = cell._replace(reason=reason)
            cells.append(cell)
        columns = [row.name, f"`{next(iter(layers))}`", what, direction, *map(str, cells)]
        print(f"| {' | '.join(columns)} |", flush=True)
        every += cells
    return every


def listed(rows: list[Published]) -> str:
    """What the published layers are, as a table."""
    lines = ["| layer | publication | code | forward |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.source.paper} | {row.source.repository} {row.source.commit}, "
        f"`{row.code}` | {row.words} |"
        for row in rows
    ]
    return "\n".join(lines)


def summary(cells: list[Cell]) -> str:
    """How many cells are slower, and which are so with the fastest kernel, too."""
    slow = [cell for cell in cells if cell.default.slower]
    still = [cell for cell in cells if cell.best.slower]
    counted = f"{len(slow)} with the default kernel, {len(still)} with the fastest"
    lines = [f"Slower than {LIMIT}, interval and all, of {len(cells)} cells: {counted}."]
    for cell in still:
        where = f"{cell.name}, {cell.direction}, {cell.tokens} tokens"
        lines.append(f"* {where}: {cell}{cell.reason}")
    return "\n".join(lines)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [row.name for row in published(SIDE)]
    parser.add_argument("--layer", nargs="+", metavar="NAME", choices=names, default=names)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--rounds", type=int, default=60, help="of a cell at most")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a cell, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--code", type=Path, metavar="FOLDER", help="of fetched repositories")
    parser.add_argument("--profile", action="store_true", help="what slower cells spend time on")
    parser.add_argument("--list", action="store_true", help="say what the layers are, time none")
    options = parser.parse_args(words)
    if options.rounds < FEWEST:
        parser.error(
            f"--rounds must be at least {FEWEST}: of fewer than six no median has an interval, and "
            "nothing is called slower without one."
        )
    return options


def main() -> None:
    """Print the table, and how many cells are slower."""
    options = parsed()
    rows = [row for row in published(SIDE) if row.name in options.layer]
    if options.list:
        print(listed(rows))
        return
    torch.set_num_threads(options.threads)
    if reason := _allocator.refusal():
        print(reason)
    else:
        _allocator.keep()
    print(
        f"{environment.cpu_facts()['name']}, {options.threads} threads, torch {torch.__version__}"
    )
    print(f"\n| layer | default | published side | | {' | '.join(map(str, options.tokens))} |")
    print(f"|---|---|---|---|{'---|' * len(options.tokens)}")
    cells = [cell for row in rows for cell in measure(row, options)]
    print(f"\n{summary(cells)}")


if __name__ == "__main__":
    main()
