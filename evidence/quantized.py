"""What codes, dictionaries, ARMOR and narrow layers are worth on trained layers, claim by claim.

Every claim compares projections of the linear layers of all-MiniLM-L6-v2 that see the calibration
sentences. The output error ‖(W − Ŵ)X‖ / ‖WX‖, of float32 layers and in float64, is taken on these
rows (fitted) and on the held-out sentences (held out); the latter is what is claimed. Means are
geometric. Bytes are shares of the dense layer's where a value takes ``--item-bytes``.

* ``gptq``: int4 in groups of 128 by GPTQ against the nearest codes.
* ``low_rank``: rank 32 beside int4 against int4 alone, and what more bits or smaller groups bring.
* ``dictionary``: against low rank, both by outputs, at equal values and at equal bytes, where a bit
  for each atom of an output counts with the dictionary.
* ``armor``: blocks of 16 by outputs against the 2:4 matrix of SparseGPT that they start from.
* ``narrow``: as many directions of the inputs as low rank has ranks, with Q counted.

Lines of ``--out`` are kept: a call that was broken off goes on where it stopped. Lines of other
code are measured again. ``--speed`` times the kernels of codes instead, and ``--speed onnxruntime``
int8 with dynamic activations beside onnxruntime (``onnx_int8.py``); either takes a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _kept
import torch
from torch import Tensor

import hwbench
from hwbench import environment
from hwbench.formats import _pruned
from hwbench.formats._base import Format
from hwbench.formats._gram import Seen
from hwbench.workloads import _packaged, _trained

SHAPES = ((384, 384), (1536, 384), (384, 1536))
NONE, ACTIVATIONS, GRAM, SPARSEGPT = "none", "activations", "gram", "sparsegpt"


class Setting(NamedTuple):
    """A format with its knobs, and what its projection sees."""

    format: str
    knobs: dict[str, Any]
    sees: str = ACTIVATIONS


def _coded(kind: str, group: int, rounding: str, **more: Any) -> Setting:
    name = "quantized_low_rank" if more else "quantized"
    knobs = {"type": kind, "group": group, "rounding": rounding, "kernel": "dequantise", **more}
    return Setting(name, knobs)


SETTINGS = {
    "int4": _coded("int4", 128, "nearest"),
    "int4 gptq": _coded("int4", 128, "gptq"),
    "int4 groups of 32": _coded("int4", 32, "nearest"),
    "int4 groups of 16": _coded("int4", 16, "nearest"),
    "int5": _coded("int5", 128, "nearest"),
    "int6": _coded("int6", 128, "nearest"),
    "int6 gptq": _coded("int6", 128, "gptq"),
    "int4 + rank 32": _coded("int4", 128, "nearest", rank=32),
    "int4 gptq + rank 32": _coded("int4", 128, "gptq", rank=32),
    "2:4 SparseGPT": Setting("semi_structured", {}, SPARSEGPT),
    "2:4 by outputs": Setting("semi_structured", {}, GRAM),
    "armor": Setting("armor", {"block": 16}, GRAM),
    **{
        f"{name} {share}": Setting(name, {"density": share, **more}, GRAM)
        for share in (0.8, 0.5)
        for name, more in (("low_rank", {}), ("dictionary", {}), ("narrow", {"rotate": True}))
    },
    **{
        f"{name} {share} of the bytes": Setting(name, {"stored": share, **more}, GRAM)
        for share in (0.8, 0.5)
        for name, more in (("low_rank", {}), ("dictionary", {"index_dtype": "bits"}))
    },
}  # fmt: skip


class Pair(NamedTuple):
    """One setting over another: what the mean and the worst layer are asked to be, at most."""

    ours: str
    theirs: str
    mean: float = math.inf
    worst: float = math.inf


CLAIMS = {
    "gptq": [Pair("int4 gptq", "int4", 0.75, 0.95)],
    "low_rank": [
        Pair("int4 + rank 32", "int4", 0.85),
        Pair("int4 gptq + rank 32", "int4 gptq", 0.85),
        Pair("int4 groups of 32", "int4"),
        Pair("int4 groups of 16", "int4"),
        Pair("int5", "int4"),
        Pair("int6", "int4"),
        Pair("int6 gptq", "int4 gptq"),
    ],
    "dictionary": [
        Pair("dictionary 0.8", "low_rank 0.8", 0.85, 1.0),
        Pair("dictionary 0.5", "low_rank 0.5", 0.92, 1.0),
        Pair("dictionary 0.8 of the bytes", "low_rank 0.8 of the bytes", 0.92),
        Pair("dictionary 0.5 of the bytes", "low_rank 0.5 of the bytes", 0.97),
    ],
    "armor": [
        Pair("armor", "2:4 SparseGPT", 0.95, 1.0),
        Pair("armor", "2:4 by outputs"),
        Pair("2:4 by outputs", "2:4 SparseGPT"),
    ],
    "narrow": [
        Pair("low_rank 0.8", "narrow 0.8", 1.0, 1.0),
        Pair("low_rank 0.5", "narrow 0.5", 1.0, 1.0),
    ],
}  # fmt: skip


class Row(NamedTuple):
    """One layer in one setting: its output errors, and its bytes over those of dense."""

    layer: str
    setting: str
    item_bytes: int
    fitted: float
    held: float
    stored: float


class Layer(NamedTuple):
    """A layer, what its projections see, and XᵀX of both sets of rows."""

    name: str
    weight: Tensor  # (out, in), float64
    seen: Seen
    fitted: Tensor  # (in, in), float64
    held: Tensor  # (in, in), float64


def chosen(count: int) -> list[str]:
    """About so many layers, of each shape its share, spread over depth and kinds of layer."""
    sides = list(_trained.sides().values())
    return [
        name
        for shape in SHAPES
        for name in _packaged.chosen(*shape, max(1, round(count * sides.count(shape) / len(sides))))
    ]


def layers(names: Iterable[str]) -> Iterator[Layer]:
    """The layers of these names."""
    told, held = (_packaged._seen(part) for part in ("calibration", "held_out"))  # noqa: SLF001
    for name in names:
        module = name.removesuffix(_packaged.WEIGHT)
        wide = [part[module].double() for part in (told, held)]
        moments = [rows.T @ rows / len(rows) for rows in wide]
        yield Layer(name, _trained.linears()[name].double(), Seen(told[module]), *moments)


def error(dense: Tensor, weight: Tensor, moments: Tensor) -> float:
    """‖(W − Ŵ)X‖ / ‖WX‖ by XᵀX."""
    parts = [float((each @ moments * each).sum()) for each in (dense - weight, weight)]
    return math.sqrt(max(0.0, parts[0]) / parts[1])


def projected(described: Format, layer: Layer, sees: str) -> Tensor:
    """The dense matrix of a projection, float64."""
    weight = layer.weight
    if sees == SPARSEGPT:
        return _pruned.pruned(weight, layer.seen.inverse, layer.seen.upper, n_of_m=(2, 4))
    narrow = weight.float()
    if sees == GRAM:
        made = described.project_outputs(weight, layer.seen)
    else:
        made = described.project(narrow, activations=layer.seen.rows.float())
    return made.to_dense().detach().double()


def compared(name: str, layer: Layer, item_bytes: int) -> Row:
    """One layer in the setting of that name."""
    setting, sides = SETTINGS[name], layer.weight.shape
    kind = hwbench.get_format(setting.format)
    described = kind.from_knobs(*sides, item_bytes=item_bytes, **setting.knobs)
    dense = projected(described, layer, setting.sees)
    errors = [error(dense, layer.weight, moments) for moments in (layer.fitted, layer.held)]
    share = described.stored_bytes(item_bytes) / (layer.weight.numel() * item_bytes)
    return Row(layer.name, name, item_bytes, *errors, share)


def measured(wanted: list[str], names: list[str], item_bytes: int, out: Path) -> list[Row]:
    """The rows of all layers and settings; what ``out`` holds already is not measured again."""
    settings: dict[str, Any] = {}  # a row has all of them
    rows = [Row(**each) for each in _kept.rows(out, __file__, settings)]
    known = {(row.layer, row.setting, row.item_bytes) for row in rows}
    missing = {
        name: [s for s in wanted if (name, s, item_bytes) not in known] for name in names
    }  # fmt: skip
    every = len(names) * len(wanted)
    print(_kept.told(out, every - sum(map(len, missing.values())), every), flush=True)
    for layer in layers(name for name, some in missing.items() if some):
        for setting in missing[layer.name]:
            with torch.no_grad():
                rows.append(compared(setting, layer, item_bytes))
            _kept.keep(out, __file__, settings, [rows[-1]._asdict()])
    return [r for r in rows if r.layer in names and r.item_bytes == item_bytes]


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    held = list(values)
    return math.exp(math.fsum(map(math.log, held)) / len(held))


def table(pairs: Iterable[Pair], rows: Iterable[Row]) -> str:
    """A line for each pair: means over the layers that both have, and the worst of them."""
    by: dict[str, dict[str, Row]] = {}
    for row in rows:
        by.setdefault(row.setting, {})[row.layer] = row
    lines = [
        "| this over that | layers | held out | asked | worst layer | asked | fitted | bytes |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for pair in pairs:
        ours, theirs = by[pair.ours], by[pair.theirs]
        held = {name: ours[name].held / theirs[name].held for name in ours if name in theirs}
        fitted = mean(ours[name].fitted / theirs[name].fitted for name in held)
        worst, average = max(held, key=lambda name: held[name]), mean(held.values())
        bytes_ = [mean(some[name].stored for name in held) for some in (ours, theirs)]
        where = worst.removeprefix("encoder.layer.").removesuffix(_packaged.WEIGHT)
        lines.append(
            f"| {pair.ours} / {pair.theirs} | {len(held)} | {average:.3f} "
            f"| {asked(average, pair.mean)} | {where}: {held[worst]:.3f} "
            f"| {asked(held[worst], pair.worst)} | {fitted:.3f} "
            f"| {bytes_[0]:.3f} / {bytes_[1]:.3f} |"
        )
    return "\n".join(lines)


def asked(found: float, limit: float) -> str:
    """What is asked of a ratio, and whether it is so."""
    if math.isinf(limit):
        return ""
    return f"{limit:g}, {'met' if found <= limit else 'missed'}"


def errors(rows: Iterable[Row], wanted: Iterable[str]) -> str:
    """A line for each setting: its mean errors and bytes."""
    held = list(rows)
    lines = ["| setting | held out | fitted | bytes |", "|---|--:|--:|--:|"]
    for name in wanted:
        some = [row for row in held if row.setting == name]
        cells = (mean(getattr(row, of) for row in some) for of in ("held", "fitted", "stored"))
        lines.append(f"| {name} | {' | '.join(f'{cell:.4f}' for cell in cells)} |")
    return "\n".join(lines)


def of_claim(name: str) -> list[str]:
    """The settings that a claim compares, each once."""
    return list(dict.fromkeys(itertools.chain.from_iterable(pair[:2] for pair in CLAIMS[name])))


# --- how quick the kernels of codes are -----------------------------------------------------------

SIDES = ((1024, 1024), (4096, 1024))
TOKENS = (1, 16, 64, 256, 1024)
WITHIN, SLACK = 1.05, 2.5e-6  # of a kernel over its bare spelling, or seconds above it
DYNAMIC = ("linear_dynamic", "linear_dynamic_7bit", "onednn", "int_mm")
"""Of int8 by int8; the first that runs here is the default."""

WEIGHT_ONLY = {"int8pack": "int8", "int4pack": "int4"}
SPELT = {"int8pack": "_weight_int8pack_mm", "int4pack": "_weight_int4pack_mm_for_cpu"}
KERNELS, RIVAL = "kernels", "onnxruntime"  # what --speed times
Call = Callable[[], object]


def timed(rounds: int) -> None:
    """Print medians of interleaved calls as ratios: kernels of codes, dense, bare spellings."""
    import kernels  # the script beside this one; the folder is no package

    print(f"{environment.cpu_facts()['name']}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}")  # fmt: skip
    loses: dict[str, list[int]] = {}
    dynamic = dynamic_here()
    for sides, tokens in itertools.product(SIDES, TOKENS):
        turns = max(15, rounds * 64 // max(64, tokens))
        title = f"{sides[0]}x{sides[1]}, {tokens} tokens"
        print(f"\n{title}")
        x = torch.randn(tokens, sides[1], generator=torch.Generator().manual_seed(0))
        made = {name: kernels.layer("quantized", sides, kernel=name) for name in dynamic}
        found = kernels.interleaved(_dynamic(kernels, made, sides, x), turns)
        _say_dynamic(found, dynamic, sides, tokens)
        in16 = {
            name: kernels.layer("quantized", sides, torch.bfloat16, kernel=name)
            for name in WEIGHT_ONLY
        }
        dense = kernels.layer("dense", sides, torch.bfloat16)
        calls = {"dense": forward(dense, x.bfloat16())}
        for name, layer in in16.items():
            calls |= {
                name: forward(layer, x.bfloat16()),
                f"{name}, bare": bare(layer, x.bfloat16()),
            }
        found |= kernels.interleaved(calls, turns)
        for name, kind in WEIGHT_ONLY.items():
            ratio = found[name] / found["dense"]
            limit = 0.5 if tokens == 1 else math.inf
            print(f"  {kind} {name} / dense bfloat16 = {ratio:.3f}  {asked(ratio, limit)}")
            if ratio > 1:
                loses.setdefault(f"{kind}, {sides[0]}x{sides[1]}", []).append(tokens)
        _say_bare(found, (*dynamic, *WEIGHT_ONLY))
    for name, where in loses.items():
        print(f"{name}: weight-only loses to dense bfloat16 at {', '.join(map(str, where))} tokens")


def dynamic_here() -> list[str]:
    """The kernels of int8 with dynamic activations that run here, the default first."""
    reasons = {
        name: hwbench.get_format("quantized")
        .from_knobs(*SIDES[0], kernel=name)
        .unsupported("cpu", torch.float32, "forward")
        for name in DYNAMIC
    }
    for reason in filter(None, reasons.values()):
        print(f"not measured: {reason}")
    return [name for name, reason in reasons.items() if reason is None]


def forward(made: Any, x: Tensor) -> Call:
    """One call of a layer, without autograd."""

    def call() -> object:
        with torch.no_grad():
            return made(x)

    return call


def _dynamic(
    kernels: Any, made: dict[str, Any], sides: tuple[int, int], x: Tensor
) -> dict[str, Call]:
    """Float32: int8 with dynamic activations in each kernel, dense, packed."""
    dense, packed = (
        kernels.layer("dense", sides),
        kernels.layer("packed_dense", sides, kernel="onednn"),
    )
    calls = {"F.linear": forward(dense, x), "packed_dense onednn": forward(packed, x)}
    for name, layer in made.items():
        calls |= {name: forward(layer, x), f"{name}, bare": bare(layer, x)}
    return calls


def _say_dynamic(
    found: dict[str, float], dynamic: list[str], sides: tuple[int, int], tokens: int
) -> None:
    """The default kernel over the faster dense product, and the others beside it."""
    best = min(("F.linear", "packed_dense onednn"), key=lambda name: found[name])
    for name in dynamic:
        limits = {"F.linear": math.inf, best: math.inf}
        if name == dynamic[0] and tokens > 1:
            limits[best] = 0.45
        elif name == dynamic[0]:
            limits["F.linear"] = 0.5 if sides == SIDES[0] else 0.25
        for other, limit in limits.items():
            ratio = found[name] / found[other]
            print(f"  int8 dynamic {name} / {other} = {ratio:.3f}  {asked(ratio, limit)}")


def _say_bare(found: dict[str, float], names: Iterable[str]) -> None:
    """Each kernel over the operators that it is made of, called by themselves."""
    for name in names:
        ours, theirs = found[name], found[f"{name}, bare"]
        within = ours <= WITHIN * theirs or ours - theirs <= SLACK
        ratio, more = ours / theirs, (ours - theirs) * 1e6
        verdict = "met" if within else "missed"
        print(
            f"  {name} / its bare spelling = {ratio:.3f}, {more:+.1f} us  "
            f"{WITHIN:g} or {SLACK * 1e6:g} us, {verdict}"
        )


def bare(made: Any, x: Tensor) -> Call:
    """The operators of a kernel on what it packs, as who has the pieces would spell them.

    There is no layer around them, no autograd, and no look whether the weight has changed.
    """
    product = _bare(made, x)

    def call() -> object:
        with torch.no_grad():
            return product()

    return call


def _bare(made: Any, x: Tensor) -> Call:
    kernel, scale = made.kernel, made.scale[:, 0].float()
    if kernel.name in WEIGHT_ONLY:
        widening, parts = getattr(torch, SPELT[kernel.name]), kernel.packed(made)
        return lambda: widening(x, *parts)
    if kernel.name.startswith("linear_dynamic"):
        _, packed = kernel.packed(made.codes, made.scale)
        operator, seven_bits = torch.ops.quantized.linear_dynamic, kernel.seven_bits
        product = lambda x, packed: operator(x, packed, seven_bits)  # noqa: E731
        return (
            (lambda: product(x, packed)) if len(x) == 1 else (lambda: _divided(product, x, packed))
        )
    if kernel.name == "int_mm":
        turned = made.codes.t()

        def by_int_mm() -> Tensor:
            codes, each = _rounded(x)
            return torch.mul(torch._int_mm(codes, turned), each).mul_(scale)  # noqa: SLF001

        return by_int_mm
    packed, scales, zeros = kernel.packed(made.codes, made.scale)

    def by_onednn() -> Tensor:
        codes, each = _rounded(x)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes.view(torch.uint8).bitwise_xor_(128), 1.0, 128, packed, scales, zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y.mul_(each)

    return by_onednn


def _divided(product: Any, x: Tensor, packed: Any) -> Tensor:
    largest = x.abs().amax(1, keepdim=True)
    y: Tensor = product(x / largest, packed)
    return y.mul_(largest)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(1, keepdim=True) / 127
    return (x / scale).round_().to(torch.int8), scale


def main() -> None:
    """Measure what is missing, and print two tables for each claim; or time the kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", nargs="*", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--layers", type=int, default=36, help="about so many of the 36")
    parser.add_argument("--item-bytes", type=int, choices=(2, 4), default=2)
    parser.add_argument("--out", type=Path, default=Path("quantized.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--speed", nargs="?", const=KERNELS, choices=(KERNELS, RIVAL), help="time these instead"
    )
    parser.add_argument("--rounds", type=int, default=60, help="of --speed")
    parser.add_argument(
        "--seconds",
        type=float,
        default=13.0,
        help="of --speed onnxruntime, for each count of tokens",
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.speed == RIVAL:
        import onnx_int8  # the script beside this one; the folder is no package

        onnx_int8.compared(given.seconds)
        return
    if given.speed:
        timed(given.rounds)
        return
    if reason := _packaged.missing():
        parser.error(reason)
    names = chosen(given.layers)
    for claim in given.claims:
        wanted = of_claim(claim)
        rows = measured(wanted, names, given.item_bytes, given.out)
        print(f"\n{claim}: {len(names)} layers\n")
        print(table(CLAIMS[claim], rows))
        print()
        print(errors(rows, wanted))


if __name__ == "__main__":
    main()
