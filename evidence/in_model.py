"""Linear layers timed alone against the same layers inside a model: how far the sum predicts it.

A decoder of SmolLM2's shape, shallower and with random weights, has every linear layer in one
format. Each round takes four times of all its layers, in a random order:

* in the model: hooks before and after each layer, while the model makes a pass;
* in turn: the layers called one after another, each with its own weights and with the input that
  the model gave it, as ``hwbench choose`` should add them up;
* hot: each layer called twice in a row, of which the second counts;
* cold: each layer called after hwbench has taken the caches, see ``Cpu.evict_caches``.

A column is the median over the rounds of that time over the time in the model. Hooks cost time too:
what an empty pair of them takes is measured and taken off. ``rest`` is the dense model's pass
without its linear layers; ``pass`` is the layers in turn plus that rest, over the measured pass.

Run it on a machine that does nothing else: ``python evidence/in_model.py --seconds 200``. The cold
layers are timed beside these seconds, and take the longer the larger the caches are.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import hwbench
from hwbench.checkpoints import smollm2
from hwbench.devices.cpu import Cpu
from hwbench.errors import KnobError
from hwbench.formats._base import FORWARD
from hwbench.workloads._llama import Llama

FORMATS = (
    *("dense", "low_rank", "low_rank_light", "block_diagonal", "block_dense", "monarch"),
    *("btt", "blast", "kronecker", "csr", "bsr"),
)
TOKENS = (1, 128)
FEWEST = 5
"""Rounds, however little time there is."""

COLD_ROUNDS = 2
CONFIG = smollm2.Config(
    vocab_size=1000, hidden_size=576, intermediate_size=1536, num_hidden_layers=8,
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048, rms_norm_eps=1e-5,
    rope_theta=1e4,
)  # fmt: skip


@dataclass
class Timed:
    """Layers of one model in the order of their calls, and the seconds of what was tried."""

    model: Llama
    ids: Tensor
    layers: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def model_in(name: str, density: float, source: torch.Generator) -> Llama | str:
    """The decoder with every linear layer in a format, or why it cannot have it."""
    model = Llama(CONFIG).eval().requires_grad_(False)
    kind = hwbench.get_format(name)
    for place, linear in list(model.linears().items()):
        share = {} if name == "dense" else {"density": density}
        try:
            described = kind.from_knobs(linear.out_features, linear.in_features, **share).on("cpu")
        except KnobError as error:
            return str(error)
        if reason := described.unsupported("cpu", torch.float32, FORWARD):
            return reason
        layer = described.random(dtype=torch.float32, generator=source)
        model.set_submodule(place, layer.trust_versions().requires_grad_(False).eval())
    return model


def prepared(model: Llama, tokens: int) -> Timed:
    """The layers of a model with what they see at so many tokens."""
    ids = torch.randint(CONFIG.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    timed = Timed(model, ids)
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs: timed.layers.append((layer, inputs[0].clone()))
        )
        for layer in linears(model)
    ]
    passed(timed)
    for hook in hooks:
        hook.remove()
    return timed


def linears(model: Llama) -> Iterator[nn.Module]:
    """Every linear layer, in whatever format."""
    return (each for each in model.modules() if isinstance(each, (hwbench.Linear, nn.Linear)))


def passed(timed: Timed) -> None:
    """One pass of the model."""
    timed.model(timed.ids, torch.ones_like(timed.ids, dtype=torch.bool))


# --- four ways to time the same layers, and the pass ----------------------------------------------


def in_model(timed: Timed, hooks_seconds: float) -> float:
    """Seconds of all linear layers inside one pass."""
    marks: list[float] = []
    hooks = []
    for layer in linears(timed.model):
        hooks.append(layer.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter())))
        hooks.append(layer.register_forward_hook(lambda *_: marks.append(time.perf_counter())))
    passed(timed)
    for hook in hooks:
        hook.remove()
    inside = sum(end - start for start, end in zip(marks[0::2], marks[1::2], strict=True))
    return inside - hooks_seconds * len(timed.layers)


def of_hooks() -> float:
    """Seconds that hooks add to the time of one call, by a layer that does nothing."""
    idle, marks = nn.Identity(), list[float]()
    x = torch.zeros(1)
    idle.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
    idle.register_forward_hook(lambda *_: marks.append(time.perf_counter()))
    for _ in range(2000):
        idle(x)
    with_hooks = [end - start for start, end in zip(marks[0::2], marks[1::2], strict=True)]
    bare = []
    for _ in range(2000):
        start = time.perf_counter()
        nn.Identity.forward(idle, x)
        bare.append(time.perf_counter() - start)
    return max(0.0, statistics.median(with_hooks) - statistics.median(bare))


def in_turn(timed: Timed) -> float:
    """Seconds of the layers one after another, as the model calls them."""
    start = time.perf_counter()
    for layer, x in timed.layers:
        layer(x)
    return time.perf_counter() - start


def hot(timed: Timed) -> float:
    """Seconds of the layers, each right after a call of its own."""
    total = 0.0
    for layer, x in timed.layers:
        layer(x)
        start = time.perf_counter()
        layer(x)
        total += time.perf_counter() - start
    return total


def cold(timed: Timed, device: Cpu) -> float:
    """Seconds of the layers, each after the caches were taken and what was written is back."""
    total = 0.0
    for layer, x in timed.layers:
        device.evict_caches()
        start = time.perf_counter()
        layer(x)
        total += time.perf_counter() - start
    return total


def whole(timed: Timed) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    passed(timed)
    return time.perf_counter() - start


def rounds(timed: Timed, seconds: float, hooks_seconds: float, device: Cpu) -> None:
    """Take all times of a model again and again, in random orders, for so long without the cold."""
    ways: dict[str, Callable[[], float]] = {
        "in model": lambda: in_model(timed, hooks_seconds),
        "in turn": lambda: in_turn(timed),
        "hot": lambda: hot(timed),
        "pass": lambda: whole(timed),
    }
    order, until = random.Random(0), time.perf_counter() + seconds
    for way in ways.values():
        way()
    done = 0
    while done < FEWEST or time.perf_counter() < until:
        for name in order.sample(list(ways), len(ways)):
            # Each begins as after a pass of the model.
            passed(timed)
            timed.seconds[name].append(ways[name]())
        if done < COLD_ROUNDS:
            begun = time.perf_counter()
            timed.seconds["cold"].append(cold(timed, device))
            until += time.perf_counter() - begun
        done += 1


def over(timed: Timed, name: str) -> float:
    """The median of a time over that in the model of the same round."""
    pairs = zip(timed.seconds[name], timed.seconds["in model"], strict=False)
    return statistics.median(one / inside for one, inside in pairs)


def main() -> None:
    """Print a row for each format and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=200.0, help="of all rounds together")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    each = options.seconds / len(FORMATS) / len(TOKENS)
    hooks_seconds, device = of_hooks(), Cpu()
    print(f"{torch.get_num_threads()} threads; a pair of hooks takes {1e6 * hooks_seconds:.2f} us")
    print(f"{'format':<16}{'tokens':>7}{'in model':>11}{'in turn':>9}{'hot':>7}{'cold':>7}"
          f"{'pass':>7}{'rounds':>8}")  # fmt: skip
    rest: dict[int, float] = {}
    apart: dict[int, list[float]] = defaultdict(list)
    source = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for name in FORMATS:
            model = model_in(name, options.density, source)
            if isinstance(model, str):
                print(f"{name:<16}not measured: {model}")
                continue
            for tokens in TOKENS:
                timed = prepared(model, tokens)
                rounds(timed, each, hooks_seconds, device)
                middle = {n: statistics.median(s) for n, s in timed.seconds.items()}
                if name == "dense":
                    rest[tokens] = middle["pass"] - middle["in model"]
                predicted = (middle["in turn"] + rest[tokens]) / middle["pass"]
                apart[tokens].append(abs(over(timed, "in turn") - 1))
                print(
                    f"{name:<16}{tokens:>7}{1e3 * middle['in model']:>8.2f} ms"
                    f"{over(timed, 'in turn'):>9.3f}{over(timed, 'hot'):>7.3f}"
                    f"{over(timed, 'cold'):>7.3f}{predicted:>7.3f}"
                    f"{len(timed.seconds['pass']):>8}",
                    flush=True,
                )
    for tokens, each_apart in apart.items():
        print(
            f"{tokens} tokens: in turn against in the model, {statistics.median(each_apart):.1%} "
            f"apart at the median and {max(each_apart):.1%} at worst of {len(each_apart)} formats"
        )


if __name__ == "__main__":
    main()
