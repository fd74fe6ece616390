"""Each format at its best: medians of interleaved calls in one process, as ratios.

1024×1024, float32, through the public ``Linear``; the output is contiguous and indices are built
outside the call.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from statistics import median

import torch

import hwbench
from hwbench import environment

SIDE = 1024
Call = Callable[[], object]


def layer(
    name: str,
    shape: tuple[int, int] = (SIDE, SIDE),
    dtype: torch.dtype = torch.float32,
    **knobs: object,
) -> hwbench.Linear:
    """A random layer of a format."""
    described = hwbench.get_format(name).from_knobs(*shape, **knobs)
    layer = described.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
    return layer.trust_versions()


def forward(layer_: hwbench.Linear, tokens: int, dtype: torch.dtype | None = None) -> Call:
    """One forward call without autograd; a layer of codes, without parameters, needs a dtype."""
    x = torch.randn(tokens, layer_.in_features, dtype=dtype or next(layer_.parameters()).dtype)

    def call() -> object:
        with torch.no_grad():
            return layer_(x)

    return call


def step(layer_: hwbench.Linear, tokens: int, dtype: torch.dtype | None = None) -> Call:
    """One forward and backward call with every gradient."""
    dtype = dtype or next(layer_.parameters()).dtype
    x = torch.randn(tokens, layer_.in_features, dtype=dtype, requires_grad=True)
    dy = torch.randn(tokens, layer_.out_features, dtype=dtype)
    tensors = [x, *layer_.parameters()]
    return lambda: torch.autograd.grad(layer_(x), tensors, dy)


def sampled(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in every round; a round visits all of them, shuffled."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for turn in range(rounds + 3):
        random.Random(turn).shuffle(order)
        for name in order:
            calls[name]()  # the first call after a change stays untimed
            begun = time.perf_counter()
            calls[name]()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def interleaved(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of each call, visited in shuffled rounds."""
    return {name: median(values) for name, values in sampled(calls, rounds).items()}


def compare(title: str, calls: dict[str, Call], rounds: int, *claims: tuple[str, str, str]) -> None:
    """Print the ratio of each claimed pair, beside what is asked of it."""
    times = interleaved(calls, rounds)
    for ours, theirs, claim in claims:
        ratio = times[ours] / times[theirs]
        print(
            f"{title:34s} {ours:22s} / {theirs:22s} = {ratio:7.4f}  (1/{1 / ratio:6.2f})  {claim}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["native", "blast"], help="this table alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = environment.cpu_facts()["name"]
    print(f"{name}, {options.threads} threads, torch {torch.__version__}")
    if options.only == "blast":
        _blast(options.rounds)
        return
    if options.only == "native":
        for dtype in (torch.float32, torch.bfloat16):
            _native(dtype, options.rounds)
        return
    alone = interleaved({"btt": forward(layer("btt", density=0.5), 1024)}, options.rounds)
    _gathers(options.rounds)
    _chains(options.rounds)
    for dtype in (torch.float32, torch.bfloat16):
        _packed(dtype, options.rounds)
    for name in ("monarch", "btt"):
        _against_spellings(name, options.rounds)
    _in_runs(options.rounds)
    _formed(options.rounds)
    _blast(options.rounds)
    _one_token(options.rounds)
    _libraries(options.rounds)
    for dtype in (torch.float32, torch.bfloat16):
        _native(dtype, options.rounds)
    later = interleaved({"btt": forward(layer("btt", density=0.5), 1024)}, options.rounds)
    ratio = later["btt"] / alone["btt"]
    print(f"btt, 1024 tokens, after all the others / before them = {ratio:.4f}  within 3 %")


def _gathers(rounds: int) -> None:
    """The formats that gather, against their spellings and dense."""
    compare(
        "forward, 64 tokens, density 0.1",
        {
            "csr": forward(layer("csr", density=0.1), 64),
            "csr linear": forward(layer("csr", density=0.1, kernel="linear"), 64),
            "condensed": forward(layer("condensed", density=0.1), 64),
            "condensed naive": forward(layer("condensed", density=0.1, kernel="naive"), 64),
            "dense": forward(layer("dense"), 64),
            "packed_dense mkl": forward(layer("packed_dense", kernel="mkl"), 64),
        },
        rounds,
        ("csr", "csr linear", "at most 1/8"),
        ("csr", "dense", "at most 1/4"),
        ("csr", "packed_dense mkl", ""),
        ("condensed", "condensed naive", "at most 1/60"),
    )
    compare(
        "step, 256 tokens",
        {
            "csr 0.05": step(layer("csr", density=0.05), 256),
            "csr 0.1": step(layer("csr", density=0.1), 256),
            "dense": step(layer("dense"), 256),
        },
        rounds,
        ("csr 0.05", "dense", "at most 0.25"),
        ("csr 0.1", "dense", "at most 0.40"),
    )


def _chains(rounds: int) -> None:
    """The formats that are products of factors, against their spellings and dense."""
    multiply = layer("blast", density=0.5, blocks=16, kernel="multiply_sum")
    compare(
        "forward, 256 tokens, density 0.5",
        {
            "blast 16": forward(layer("blast", density=0.5, blocks=16), 256),
            "blast 16 multiply_sum": forward(multiply, 256),
            "low_rank": forward(layer("low_rank", density=0.5), 256),
            "low_rank mkl": forward(layer("low_rank", density=0.5, kernel="mkl"), 256),
            "dense": forward(layer("dense"), 256),
            "packed_dense mkl": forward(layer("packed_dense", kernel="mkl"), 256),
        },
        rounds,
        ("blast 16", "blast 16 multiply_sum", "at most 1/5"),
        ("low_rank", "dense", ""),
        ("low_rank mkl", "dense", "at most 0.50"),
        ("low_rank mkl", "packed_dense mkl", ""),
    )


def _packed(dtype: torch.dtype, rounds: int) -> None:
    """Weights packed in advance against those that every call packs, by tokens."""
    kernels = [
        kernel
        for kernel in ("onednn", "mkl")
        if not hwbench.get_format("packed_dense")
        .from_knobs(SIDE, SIDE, kernel=kernel)
        .unsupported("cpu", dtype, "forward")
    ]
    for tokens in (1, 16, 64, 256, 1024):
        calls = {"dense": forward(layer("dense", dtype=dtype), tokens)}
        for kernel in kernels:
            packed = layer("packed_dense", dtype=dtype, kernel=kernel)
            calls[f"packed_dense {kernel}"] = forward(packed, tokens)
        for kernel in ("torch", *kernels):
            packed = layer("low_rank", dtype=dtype, density=0.5, kernel=kernel)
            calls[f"low_rank {kernel}"] = forward(packed, tokens)
        title = f"{str(dtype).removeprefix('torch.')}, {tokens} tokens"
        compare(title, calls, rounds, *((name, "dense", "") for name in calls if name != "dense"))


def _runs_here(name: str, dtype: torch.dtype = torch.float32, **knobs: object) -> bool:
    """Whether the setting steps on this CPU; the reason is printed where it does not."""
    described = hwbench.get_format(name).from_knobs(SIDE, SIDE, **knobs)
    reason = described.unsupported("cpu", dtype, "step")
    if reason:
        print(f"{name} {knobs}: not measured, {reason}")
    return reason is None


def _in_runs(rounds: int) -> None:
    """btt, whose intermediate is made in runs of tokens, against the dense layer."""
    claimed = {
        "bmm": ("at most 0.95", "at most 1.15"),
        "onednn": ("at most 0.70", "at most 0.85"),
    }
    kernels = [k for k in claimed if _runs_here("btt", density=0.5, kernel=k)]
    for tokens in (64, 256, 1024):
        for number, (what, call) in enumerate({"forward": forward, "step": step}.items()):
            calls = {f"btt {k}": call(layer("btt", density=0.5, kernel=k), tokens) for k in kernels}
            calls["dense"] = call(layer("dense"), tokens)
            claims = [
                (f"btt {k}", "dense", claimed[k][number] if tokens == 1024 else "") for k in kernels
            ]
            compare(f"btt, {what}, {tokens} tokens", calls, rounds, *claims)


def _formed(rounds: int) -> None:
    """kronecker at density 0.5, whose weight is formed in the call, against the dense layer."""
    for what, call, claim_ in (
        ("forward", forward, "at most 2.2"),
        ("step", step, "at most 2.4"),
    ):
        for tokens in (1, 16, 64, 256):
            calls = {
                "kronecker": call(layer("kronecker", density=0.5), tokens),
                "dense": call(layer("dense"), tokens),
            }
            claim = ("kronecker", "dense", claim_ if tokens == 256 else "")
            compare(f"kronecker, {what}, {tokens} tokens", calls, rounds, claim)


def _blast(rounds: int) -> None:
    """The default of blast against its other kernels, by tokens."""
    for blocks, tokens in itertools.product((4, 16), (1, 16, 64, 256, 1024)):
        calls = {
            kernel: forward(layer("blast", density=0.5, blocks=blocks, kernel=kernel), tokens)
            for kernel in _on_cpu("blast")
            if kernel != "multiply_sum" or tokens <= 64  # its terms fill the memory
        }
        default = hwbench.get_format("blast").KERNELS[0]
        claims = [(default, other, "at most 1.05") for other in calls if other != default]
        compare(f"blast of {blocks}, {tokens} tokens", calls, rounds, *claims)


def _one_token(rounds: int) -> None:
    """csr and condensed with one token, against how others write them."""
    for density in (0.01, 0.1):
        csr, x = layer("csr", density=density), torch.randn(1, SIDE)
        where = (csr.row_starts, csr.columns, csr.values.detach())
        matrix = torch.sparse_csr_tensor(*where, (SIDE, SIDE), check_invariants=False)
        calls: dict[str, Call] = {
            "csr": forward(csr, 1),
            "condensed": forward(layer("condensed", density=density), 1),
            "F.linear(x, csr)": lambda x=x, m=matrix: torch.nn.functional.linear(x, m),  # type: ignore[misc]
            "csr @ x.T": lambda x=x, m=matrix: (m @ x.t()).t(),  # type: ignore[misc]
            "dense": forward(layer("dense"), 1),
        }
        claims = [
            (ours, theirs, "at most 1.00" if theirs != "dense" else "")
            for ours in ("csr", "condensed")
            for theirs in ("F.linear(x, csr)", "csr @ x.T", "dense")
        ]
        compare(f"one token, density {density}", calls, rounds, *claims)


def _libraries(rounds: int) -> None:
    """The products by oneDNN against the dense layer, at torch's default and at its best."""
    claimed = {
        "low_rank": ("at most 0.27 on AMD", "at most 0.5"),
        "block_dense": ("at most 0.32 on AMD", "at most 0.6"),
        "monarch": ("at most 0.35 on AMD", "at most 0.6"),
        "blast": ("at most 0.45 on AMD", "at most 0.9"),
        "btt": ("", ""),
    }
    names = [n for n in claimed if _runs_here(n, density=0.5, kernel="onednn")]
    for what, call in {"forward": forward, "step": step}.items():
        calls = {"dense": call(layer("dense"), 256)}
        claims = []
        if what == "forward":
            calls["dense at its best"] = call(layer("packed_dense", kernel="onednn"), 256)
        for name in names:
            for kernel in (hwbench.get_format(name).KERNELS[0], "onednn"):
                key = f"{name} {kernel}"
                calls[key] = call(layer(name, density=0.5, kernel=kernel), 256)
                limits = claimed[name] if (kernel, what) == ("onednn", "forward") else ("", "")
                claims += [
                    (key, yardstick, limit)
                    for yardstick, limit in zip(("dense", "dense at its best"), limits, strict=True)
                    if yardstick in calls
                ]
        compare(f"by library, {what}, 256 tokens", calls, rounds, *claims)


def _native(dtype: torch.dtype, rounds: int) -> None:
    """Products compiled here against each format's default and the dense layer, by tokens.

    Where AVX-512 multiplies no more a cycle than AVX2 does (AMD's Zen 4), half of the FLOPs of a
    dense layer that uses 80 % of it take 0.40 of its time at best; there what is asked of btt holds
    against a dense layer by oneDNN alone.
    """
    claimed = {  # of the default, of the dense layer, and of that by oneDNN, in float32
        ("csr", 0.1, 256): ("at most 0.70", "", ""),
        ("btt", 0.5, 1024): ("", "at most 0.35", ""),
    }
    names = [("coo", 0.1), ("csr", 0.01), ("csr", 0.1), ("condensed", 0.1)]
    names += [("low_rank_sparse", 0.5), ("btt", 0.5), ("monarch", 0.5)]
    names = [(name, d) for name, d in names if _runs_here(name, dtype, density=d, kernel="native")]
    at_best = hwbench.get_format("packed_dense").from_knobs(SIDE, SIDE, kernel="onednn")
    what = str(dtype).removeprefix("torch.")
    for tokens, (name, density) in itertools.product((1, 16, 64, 256, 1024), names):
        limits = claimed.get((name, density, tokens), ("", "", ""))
        default = hwbench.get_format(name).KERNELS[0]
        for way, call in {"forward": forward, "step": step}.items():
            knobs = {"dtype": dtype, "density": density}
            calls = {
                f"{name} native": call(layer(name, kernel="native", **knobs), tokens),
                f"{name} {default}": call(layer(name, kernel=default, **knobs), tokens),
                "dense": call(layer("dense", dtype=dtype), tokens),
            }
            if at_best.unsupported("cpu", dtype, way) is None:
                packed = layer("packed_dense", dtype=dtype, kernel="onednn")
                calls["dense at its best"] = call(packed, tokens)
            first, *others = calls
            shown_limits = limits if (way, what) == ("forward", "float32") else ("", "", "")
            claims = [(first, o, limit) for o, limit in zip(others, shown_limits, strict=False)]
            compare(f"{what}, {density}, {way}, {tokens} tokens", calls, rounds, *claims)


def _on_cpu(name: str) -> list[str]:
    """The kernels of a format that run on the CPU."""
    kind = hwbench.get_format(name)
    formats = [kind.from_knobs(1024, 1024, density=0.5, kernel=kernel) for kernel in kind.KERNELS]
    return [f.kernel for f in formats if f.unsupported("cpu", torch.float32, "forward") is None]


def _against_spellings(name: str, rounds: int) -> None:
    """A format's default kernel against the others that it offers, by shape and tokens."""
    kernels = _on_cpu(name)
    for shape in ((1024, 1024), (4096, 1024), (1024, 4096)):
        for tokens in (64, 256):
            calls = {
                kernel: forward(layer(name, shape, density=0.5, kernel=kernel), tokens)
                for kernel in kernels
            }
            title = f"{name} {shape[0]}x{shape[1]}, {tokens} tokens"
            claims = [(kernels[0], other, "at most 1.05") for other in kernels[1:]]
            compare(title, calls, rounds, *claims)


if __name__ == "__main__":
    main()
