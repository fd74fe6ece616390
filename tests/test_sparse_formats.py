"""The sparse family against closed forms, golden bytes and float64; what every format promises is
in test_formats."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _formats import CLASSES, assert_right, describe, generator, normal, random_layer, relative
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from hwbench import plugins
from hwbench.devices.cpu import Cpu
from hwbench.errors import KnobError, UsageError
from hwbench.formats import _entries, _gather, _probe, _versions
from hwbench.formats._base import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    STEP,
    Format,
    Linear,
)
from hwbench.records import Case, Direction
from hwbench.workloads import _planning as planning

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-14}
ENTRIES = [("csr", k) for k in ("gather", "spmm", "linear")]
ENTRIES += [("coo", k) for k in ("gather", "spmm", "linear")]
ENTRIES += [("condensed", "gather"), ("condensed", "naive"), ("masked_dense", "torch")]
MB = 1e6


def build(name: str, out: int, inputs: int, **knobs: Any) -> Format:
    return plugins.load("formats", name, Format).from_knobs(out, inputs, **knobs)


def made(f: Format, dtype: torch.dtype = torch.float32, seed: int = 0) -> Linear:
    return f.random(dtype=dtype, generator=generator(seed))


def projection_error(f: Format, seed: int = 0) -> float:
    weight = normal(f.out_features, f.in_features, seed=seed)
    return relative(f.project(weight).to_dense(), weight)


def assert_equals_dense(layer: Linear, tokens: int, dtype: torch.dtype, limit: float) -> None:
    """Output and all gradients against a dense product in float64."""
    x, dy = normal(tokens, layer.in_features), normal(tokens, layer.out_features, seed=2)
    x, dy = x.to(dtype), dy.to(dtype)
    exact = copy.deepcopy(layer).double()
    ours, wide = x.clone().requires_grad_(), x.double().clone().requires_grad_()
    y, reference = layer(ours), wide @ exact.to_dense().mT
    assert y.is_contiguous()
    assert relative(y, reference) < limit
    mine = torch.autograd.grad(y, [ours, *layer.parameters()], dy)
    right = torch.autograd.grad(reference, [wide, *exact.parameters()], dy.double())
    for gradient, expected in zip(mine, right, strict=True):
        assert gradient.dtype == dtype
        assert relative(gradient, expected) < limit


# --- projection -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coo", "csr", "masked_dense"])
@pytest.mark.parametrize(
    ("density", "golden"),
    [(0.5, 0.2671), (0.3, 0.4655), (0.25, 0.5257), (0.1, 0.7488), (0.05, 0.8491)],
)
def test_largest_entries_of_a_gaussian(name: str, density: float, golden: float) -> None:
    tau = NormalDist().inv_cdf(1 - density / 2)
    closed = math.sqrt(1 - density - 2 * tau * NormalDist().pdf(tau))
    assert closed == pytest.approx(golden, abs=5e-5)
    assert projection_error(build(name, 768, 1024, density=density)) == pytest.approx(
        closed, abs=2e-3
    )


@pytest.mark.parametrize(
    ("name", "knobs", "golden"),
    [
        ("semi_structured", {}, 0.3636),
        ("n_m", {"n": 2, "m": 4}, 0.3636),
        ("n_m", {"n": 1, "m": 2}, 0.4259),
        ("two_four_training", {}, 0.4219),
    ],
)
def test_patterns_of_a_gaussian(name: str, knobs: dict[str, Any], golden: float) -> None:
    assert projection_error(build(name, 768, 1024, **knobs)) == pytest.approx(golden, abs=2e-3)


def test_freedom_lowers_the_error() -> None:
    """Half of a Gaussian: the freer the choice, the better; whole blocks are worst."""
    formats = ("csr", "condensed", "semi_structured", "two_four_training")
    errors = [projection_error(build(name, 256, 256, density=0.5)) for name in formats]
    errors.append(projection_error(build("bsr", 256, 256, density=0.5)))
    assert errors == sorted(errors)


def test_low_rank_with_entries_beats_low_rank_and_finds_its_own() -> None:
    f = build("low_rank_sparse", 256, 256, density=0.5)
    low_rank = build("low_rank", 256, 256, density=0.5)
    assert abs(f.parameters() - low_rank.parameters()) < 512
    assert projection_error(f) < 0.9 * projection_error(low_rank)
    hidden = made(f)
    with torch.no_grad():
        hidden.left.copy_(normal(*hidden.left.shape))
        hidden.values.mul_(10)
    member = hidden.to_dense().detach()
    assert relative(f.project(member).to_dense(), member) < 1e-3


@pytest.mark.parametrize(
    ("sizes", "divides", "fit"),
    [
        ((90,), "90", "1, 2, 3, 5, 6, 9, 10, 15, 18, 30, 45, 90"),
        ((), "both 512 and 768", "1, 2, 4, 8, 16, 32, 64, 128, 256"),
    ],
)
def test_a_knob_that_must_divide_is_told_all_that_do(
    sizes: tuple[int, ...], divides: str, fit: str
) -> None:
    f = build("bsr", 512, 768, kept_blocks=1, block_columns=48)
    f.check_divides("block_columns", 768)
    with pytest.raises(KnobError) as caught:
        f.check_divides("block_columns", *sizes)
    assert str(caught.value) == f"block_columns=48 of bsr must divide {divides}; possible: {fit}."


@pytest.mark.parametrize("name", ["csr", "condensed", "semi_structured", "bsr", "low_rank_sparse"])
def test_activations_move_the_choice_to_the_columns_that_matter(name: str) -> None:
    f = build(name, 128, 128, density=0.5)
    weight, seen = normal(128, 128), torch.ones(128)
    seen[slice(64) if name == "bsr" else slice(0, None, 2)] = 20.0  # a block sees 32 columns
    activations = normal(4096, 128, seed=2) * seen
    plain, result = (f.project(weight, activations=a).to_dense() for a in (None, activations))
    missed = [float(((weight - d.detach()) * seen).norm()) for d in (plain, result)]
    assert missed[1] < 0.9 * missed[0]


def test_ties_keep_the_first() -> None:
    ones = torch.ones(3, 8)
    assert build("csr", 3, 8, nonzeros=10).project(ones).to_dense().flatten()[:10].all()
    kept = build("n_m", 3, 8, n=1).project(ones).to_dense()
    assert torch.equal(kept, torch.tensor([1.0, 0, 0, 0]).repeat(3, 2))
    assert torch.equal(_entries.largest(torch.tensor([1.0, 3, 3, 3, 2]), 2), torch.tensor([1, 2]))


def test_what_cannot_be_projected_is_refused() -> None:
    weight = torch.full((4, 4), math.nan)
    with pytest.raises(UsageError, match="not a number"):
        build("csr", 4, 4, nonzeros=2).project(weight)
    with pytest.raises(UsageError, match=r"\(samples, 4\)"):
        build("csr", 4, 4, nonzeros=2).project(torch.ones(4, 4), activations=torch.ones(7, 5))


# --- bytes and costs --------------------------------------------------------------------------


def test_stored_bytes() -> None:
    m, n, kept = 300, 200, 6000
    for item in (2, 4):
        assert build("coo", m, n, nonzeros=kept).stored_bytes(item) == kept * (item + 16)
        for name, i in (("int32", 4), ("int64", 8)):
            csr = build("csr", m, n, nonzeros=kept, index_dtype=name)
            assert csr.stored_bytes(item) == kept * (item + i) + (m + 1) * i
            condensed = build("condensed", m, n, fan_in=20, index_dtype=name)
            assert condensed.stored_bytes(item) == m * 20 * (item + i)
            bsr = build(
                "bsr", m, n, kept_blocks=9, block_rows=30, block_columns=20, index_dtype=name
            )
            assert bsr.stored_bytes(item) == 9 * (item * 600 + i) + (m // 30 + 1) * i
        assert build("masked_dense", m, n, nonzeros=kept).stored_bytes(item) == m * n * (item + 1)
        assert build("n_m", m, n, n=3, m=8).stored_bytes(item) == m * n * 3 // 8 * (item + 1)
        assert build("two_four_training", m, n).stored_bytes(item) == m * n * item
    assert build("semi_structured", m, n).stored_bytes(2) == m * n * 2 * 9 // 16
    factors = build("low_rank_sparse", m, n, rank=5, nonzeros=kept)
    assert factors.stored_bytes(4) == 4 * (5 * (m + n) + kept) + 4 * (kept + m + 1)


@pytest.mark.parametrize(
    ("name", "density", "forward_mb", "backward_mb", "gflop", "intensity", "intensity_backward"),
    [
        ("csr", 0.1, 26.9, 45.3, 3.44, 128, 152),
        ("coo", 0.1, 47.0, 85.6, 3.44, 73, 80),
        ("bsr", 0.1, 20.1, 31.9, 3.44, 171, 215),
        ("semi_structured", 0.5, 35.7, 62.9, 17.18, 482, 546),
    ],
)
def test_roofline_rows(
    name: str,
    density: float,
    forward_mb: float,
    backward_mb: float,
    gflop: float,
    intensity: float,
    intensity_backward: float,
) -> None:
    """4096 x 4096, 1024 tokens, 16 bits, worked out by hand."""
    f = build(name, 4096, 4096, density=density)
    forward, backward = (f.cost(1024, 2, direction) for direction in (FORWARD, BACKWARD))
    assert forward.compulsory_bytes / MB == pytest.approx(forward_mb, abs=0.06)
    assert backward.compulsory_bytes / MB == pytest.approx(backward_mb, abs=0.06)
    assert forward.flops / 1e9 == pytest.approx(gflop, rel=2e-3)
    assert forward.flops / forward.compulsory_bytes == pytest.approx(intensity, abs=0.6)
    assert backward.flops / backward.compulsory_bytes == pytest.approx(intensity_backward, abs=0.6)


def test_flops_are_those_of_the_kernel() -> None:
    """torch's COO gradient and F.linear's are dense products, whatever is kept."""
    m = n = 100
    kept, tokens = 500, 16
    for name, kernel in ENTRIES[:6]:
        f = build(name, m, n, nonzeros=kept, kernel=kernel)
        dense = (name, kernel) in [("coo", "spmm"), ("coo", "linear"), ("csr", "linear")]
        gradient = 2 * tokens * (m * n if dense else kept)
        assert f.flops(tokens, FORWARD) == 2 * tokens * kept
        assert f.flops(tokens, STEP) == 4 * tokens * kept + gradient
    above = build("csr", m, n, density=_gather.DENSE_GRADIENT_DENSITY)
    assert above.flops(tokens, STEP) == 4 * tokens * above.parameters() + 2 * tokens * m * n
    masked = build("masked_dense", m, n, nonzeros=kept)
    assert masked.flops(tokens, STEP) == build("dense", m, n).flops(tokens, STEP)
    training = build("two_four_training", m, n)
    assert training.flops(tokens, STEP) == 4 * tokens * m * n


# --- budgets and knobs ------------------------------------------------------------------------


def test_budgets() -> None:
    assert build("csr", 4096, 4096, density=0.1).knobs()["nonzeros"] == 1677721
    assert build("condensed", 768, 3072, density=0.1).knobs()["fan_in"] == 307
    assert build("n_m", 8, 32, density=0.4, m=16).knobs()["n"] == 6
    f = build("low_rank_sparse", 768, 768, density=0.25)
    rank = math.floor((0.25 * 768 * 768 - math.floor(0.03 * 768 * 768)) / 1536)
    assert f.knobs()["rank"] == rank
    assert f.parameters() == 0.25 * 768 * 768  # the entries take what the rank leaves


@pytest.mark.parametrize(
    ("name", "shape", "knobs", "says"),
    [
        ("csr", (4, 4), {"density": 0.01}, "one entry has density 0.0625"),
        ("csr", (4, 4), {"nonzeros": 2, "index_dtype": "int16"}, "int32 or int64"),
        ("coo", (4, 4), {"nonzeros": 2, "kernel": "spmm", "index_dtype": "int32"}, "int64"),
        ("condensed", (4, 50), {"density": 0.01}, "fan_in 1 has density 0.02"),
        ("bsr", (64, 60), {"density": 0.5}, "1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60"),
        ("bsr", (64, 64), {"density": 0.1}, "one block of 32x32 has density 0.25"),
        ("n_m", (4, 10), {"n": 1}, "8 or 12 would fit"),
        ("n_m", (4, 12), {"density": 0.2}, "1 of 4 has density 0.25"),
        ("n_m", (4, 12), {"density": 0.5, "n": 1}, "either a density or n, not both"),
        ("semi_structured", (4, 3), {}, "4 would fit"),
        ("semi_structured", (4, 8), {"density": 0.4}, "density 0.5"),
        ("two_four_training", (6, 8), {}, "multiples of 4"),
        ("low_rank_sparse", (8, 8), {"density": 0.2}, "rank 1 and 1 entries have density 0.2656"),
        ("low_rank_sparse", (8, 8), {"density": 0.5, "rank": 1}, "or rank and nonzeros, not both"),
    ],
)
def test_refusals_say_what_would_fit(
    name: str, shape: tuple[int, int], knobs: dict[str, Any], says: str
) -> None:
    with pytest.raises(KnobError) as refusal:
        build(name, *shape, **knobs)
    assert says in str(refusal.value)


# --- products ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kernel"), ENTRIES)
def test_products(name: str, kernel: str, dtype: torch.dtype) -> None:
    """Odd sizes, few tokens and more than one run of them, a sampled and a dense gradient."""
    for (out, inputs), density in itertools.product([(33, 70), (70, 33), (5, 3)], [0.12, 0.5, 1.0]):
        f = build(name, out, inputs, kernel=kernel, density=max(density, 1 / inputs))
        if f.unsupported("cpu", dtype, STEP) is None:
            limit = DTYPES[dtype] * (1 if kernel == "gather" else 4)  # torch's sum as they go
            for tokens in (1, 3, 17):
                assert_equals_dense(made(f, dtype), tokens, dtype, limit)


@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
@pytest.mark.parametrize("density", [0.05, 0.4])
@pytest.mark.parametrize("name", ["csr", "coo", "condensed", "low_rank_sparse"])
def test_runs_of_tokens_and_blocks_of_rows(name: str, density: float, index_dtype: str) -> None:
    knobs: dict[str, Any] = {"density": density}
    if name == "low_rank_sparse":  # a density would leave the entries few
        knobs = {"rank": 2, "nonzeros": int(density * 40 * 1030)}
    f = build(name, 40, 1030, index_dtype=index_dtype, **knobs)
    tokens = 389
    assert len(_gather.spans(tokens, 1030, torch.ones(1))) > 2
    layer = made(f)
    if name == "low_rank_sparse":
        layer.left.data = normal(*layer.left.shape)
    assert_equals_dense(layer, tokens, torch.float32, 2e-6)


GATHERED = {
    "coo": {"density": 0.12},
    "csr": {"density": 0.12},
    "condensed": {"density": 0.12},
    "n_m": {"n": 1, "m": 8},
    "low_rank_sparse": {"rank": 2, "nonzeros": 300},
}


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.parametrize("name", GATHERED)
def test_either_gradient_is_right_and_counted(name: str, gradient: str) -> None:
    f = build(name, 33, 72, gradient=gradient, **GATHERED[name])
    assert_equals_dense(made(f), 9, torch.float32, 2e-6)
    auto = build(name, 33, 72, **GATHERED[name])
    assert auto.knobs()["gradient"] == "auto"
    assert auto.on("cpu").knobs()["gradient"] == "sampled"
    assert auto.on("cuda").knobs()["gradient"] == "dense"
    assert all(f.on(kind) == f for kind in ("cpu", "cuda"))
    same = auto.on("cuda" if gradient == "dense" else "cpu")
    assert same == f
    kept = 300 if name == "low_rank_sparse" else f.parameters()
    expected = 33 * 72 if gradient == "dense" else kept
    for tokens in (1, 9):
        extra = f.flops(tokens, BACKWARD_WEIGHT) - auto.flops(tokens, BACKWARD_WEIGHT)
        assert extra == 2 * tokens * (expected - kept)
    moved = f.cost(9, 2, STEP).intermediate_bytes - auto.cost(9, 2, STEP).intermediate_bytes
    assert moved == (2 * (33 * 72 + kept) if gradient == "dense" else 0)


@pytest.mark.parametrize("name", GATHERED)
def test_a_case_stores_and_counts_what_auto_came_to(name: str) -> None:
    for kind, gradient in (("cpu", "sampled"), ("cuda", "dense")):
        device = Cpu()
        device.torch_device = torch.device(kind)
        case = Case(
            workload="linear", format=name, knobs=GATHERED[name], out_features=33, in_features=72,
            tokens=9, dtype="bfloat16", device=kind, direction=Direction.STEP,
        )  # fmt: skip
        planned = planning.planned(case, device, {})
        assert planned.resolved["gradient"] == gradient
        f = build(name, 33, 72, gradient=gradient, **GATHERED[name])
        assert planned.cost == f.cost(9, 2, STEP)
        assert planning.described(case, planned.resolved)[1] == f


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", ["auto", "dense", "sampled"])
@pytest.mark.parametrize("name", GATHERED)
def test_either_gradient_is_right_on_cuda(name: str, gradient: str, dtype: torch.dtype) -> None:
    f = build(name, 33, 72, gradient=gradient, **GATHERED[name])
    layer = random_layer(f, dtype, device="cuda")
    for tokens in (1, 70):
        x = normal(tokens, 72, device="cuda").to(dtype)
        dy = normal(tokens, 33, seed=2, device="cuda").to(dtype)
        assert_right(layer, x, dy, STEP)


def test_a_gradient_is_chosen_where_entries_are_gathered() -> None:
    with pytest.raises(KnobError, match="auto or dense or sampled"):
        build("csr", 8, 8, nonzeros=3, gradient="sparse")
    with pytest.raises(KnobError, match="gradient=dense of csr is for kernel=gather"):
        build("csr", 8, 8, nonzeros=3, gradient="dense", kernel="spmm")
    library = build("csr", 8, 8, nonzeros=3, kernel="spmm")
    assert library.on("cuda") == library


@pytest.mark.parametrize("name", GATHERED)
def test_a_layer_leaves_its_gradient_to_the_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a layer does with ``auto`` is what its format says of that kind of device."""
    recorded: list[tuple[str, bool]] = []
    chosen = _gather.dense_gradient

    def note(gradient: str, device: str, *sizes: int) -> bool:
        recorded.append((device, chosen(gradient, device, *sizes)))
        return recorded[-1][1]

    monkeypatch.setattr(_gather, "dense_gradient", note)
    layer = made(build(name, 33, 72, **GATHERED[name]))
    layer(normal(2, 72))
    layer.to("meta")(normal(2, 72).to("meta"))
    assert recorded == [("cpu", False), ("meta", True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu130", "2.13.0", "2.13.1+cu130"])
def test_bfloat16_is_sampled_in_float32_before_torch_2_13(
    version: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, on the processor: the operator sees the dtypes that CUDA has."""
    monkeypatch.setattr(_versions, "VERSION", TorchVersion(version))
    seen: set[torch.dtype] = set()
    operator = torch.ops.aten._embedding_bag_per_sample_weights_backward

    def watched(*given: Any) -> Tensor:
        seen.update(t.dtype for t in given[:2])
        return operator(*(t.double() if i < 2 else t for i, t in enumerate(given))).to(given[0])

    monkeypatch.setattr(_gather, "torch", _Torch(watched))
    f = build("csr", 33, 70, density=0.12, gradient="sampled")
    pattern = made(f).pattern()
    total = _gather._Sampled(pattern, dtype)
    total.on_cpu = False
    dy, x = normal(9, 33, seed=2).to(dtype), normal(9, 70).to(dtype)
    total.add(dy.t().contiguous(), x.t().contiguous())
    gap = dtype == torch.bfloat16 and version < "2.13"
    assert seen == {torch.float32 if gap else dtype}
    exact = (dy.double().t() @ x.double())[pattern.rows.long(), pattern.columns.long()]
    assert total.result().dtype == dtype
    assert relative(total.result(), exact) < DTYPES[dtype]


class _Torch:
    """torch, with another operator in the place of the gradient of embedding_bag's weights."""

    def __init__(self, operator: Any) -> None:
        aten = SimpleNamespace(_embedding_bag_per_sample_weights_backward=operator)
        self.ops = SimpleNamespace(aten=aten)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks(dtype: torch.dtype) -> None:
    for rows, columns in ((1, 1), (10, 10), (3, 10), (30, 2)):
        knobs = {"block_rows": rows, "block_columns": columns}
        f = build("bsr", 90, 60, density=0.3, **knobs)
        assert_equals_dense(made(f, dtype), 150, dtype, 1.5 * DTYPES[dtype])
        if dtype in (torch.float32, torch.float64):
            library = build("bsr", 90, 60, density=0.3, kernel="spmm", **knobs)
            layer, x = made(library, dtype).requires_grad_(False), normal(7, 60).to(dtype)
            if library.unsupported("cpu", dtype, FORWARD) is None:
                assert relative(layer(x), x @ layer.to_dense().mT) < DTYPES[dtype]
            else:
                assert rows != columns
                with pytest.raises(RuntimeError, match="square"):
                    layer(x)


@pytest.mark.parametrize("index_dtype", ["uint8", "int32"])
def test_groups(index_dtype: str) -> None:
    for n, m in ((1, 3), (2, 4), (5, 7), (4, 4)):
        f = build("n_m", 33, 7 * 12, n=n, m=m, index_dtype=index_dtype)
        for dtype, limit in DTYPES.items():
            layer = made(f, dtype)
            per_group = (layer.to_dense() != 0).unflatten(1, (-1, m)).sum(2)
            assert per_group.max() <= n
            assert_equals_dense(layer, 9, dtype, limit)


def test_dense_gradient_is_formed_a_quarter_at_a_time() -> None:
    pattern = made(build("csr", 41, 70, density=0.5)).pattern()
    heights = [block.rows.stop - block.rows.start for block in pattern.blocks]
    assert sum(heights) == 41
    assert max(heights) <= 11
    assert max(heights) * 70 <= _gather.BLOCK_ELEMENTS
    entries = [block.entries for block in pattern.blocks]
    assert entries[0].start == 0
    assert entries[-1].stop == pattern.columns.numel()
    wide = _gather.Pattern(torch.zeros(5000, dtype=torch.int32), torch.zeros(0).int(), 4096)
    assert max(b.rows.stop - b.rows.start for b in wide.blocks) * 4096 <= _gather.BLOCK_ELEMENTS


def test_derived_orders_outlive_inference_and_follow_the_state() -> None:
    for name in ("csr", "coo", "condensed", "bsr"):
        layer, other = (made(build(name, 96, 64, density=0.5), seed=seed) for seed in (0, 1))
        with torch.inference_mode():
            layer(normal(2, 64))
            layer.to_dense()
        assert_equals_dense(layer, 4, torch.float32, 2e-6)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer.to_dense(), other.to_dense())
        assert_equals_dense(layer, 4, torch.float32, 2e-6)
        assert_equals_dense(layer.double(), 4, torch.float64, 1e-13)


@pytest.mark.parametrize("name", ["csr", "coo", "condensed", "bsr", "n_m"])
def test_initial_values_are_scaled_by_what_a_row_keeps(name: str) -> None:
    knobs = {"n": 1, "m": 4} if name == "n_m" else {"density": 0.25}
    dense = made(build(name, 256, 256, **knobs)).to_dense().detach()
    fan_in = (dense != 0).sum(1, keepdim=True)
    scaled = (dense * fan_in.sqrt())[dense != 0]
    assert scaled.abs().max() <= 1.0001
    assert scaled.std() == pytest.approx(1 / math.sqrt(3), abs=0.02)


# --- what is not supported ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_limits_of_torch_are_as_stated(dtype: torch.dtype) -> None:
    """What a kernel is said not to do, torch refuses; what it is not said, torch does."""
    for name, kernel in [*ENTRIES[:6], ("bsr", "spmm")]:
        f = build(name, 64, 64, density=0.5, kernel=kernel)
        layer, x = made(f, dtype).requires_grad_(False), normal(4, 64).to(dtype)
        if f.unsupported("cpu", dtype, FORWARD) is None:
            layer(x)
        else:
            assert dtype in (torch.bfloat16, torch.float16)
            with pytest.raises((NotImplementedError, RuntimeError)):
                layer(x)


def test_half_precision_gradients_on_cuda() -> None:
    spmm = build("csr", 64, 64, density=0.5, kernel="spmm")
    assert "cuSPARSE" in (spmm.unsupported("cuda", torch.bfloat16, STEP) or "")
    assert spmm.unsupported("cuda", torch.bfloat16, FORWARD) is None
    assert spmm.unsupported("cuda", torch.float32, STEP) is None
    gather = build("csr", 64, 64, density=0.5)
    assert gather.unsupported("cuda", torch.bfloat16, STEP) is None


def test_products_that_torch_lacks_on_cuda_are_refused_in_words() -> None:
    for kernel in ("spmm", "linear"):
        coo = build("coo", 64, 64, density=0.5, kernel=kernel)
        for dtype in (torch.bfloat16, torch.float16):
            assert "COO" in (coo.unsupported("cuda", dtype, FORWARD) or "")
            assert coo.unsupported("cpu", dtype, FORWARD) is None
        assert coo.unsupported("cuda", torch.float32, FORWARD) is None
    assert build("coo", 64, 64, density=0.5).unsupported("cuda", torch.bfloat16, STEP) is None
    knobs = {"density": 0.5, "kernel": "spmm"}
    flat = build("bsr", 64, 64, block_rows=16, block_columns=32, **knobs)
    assert "square" in (flat.unsupported("cuda", torch.bfloat16, FORWARD) or "")
    assert build("bsr", 64, 64, **knobs).unsupported("cuda", torch.bfloat16, FORWARD) is None


def test_a_gpu_is_asked_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor, in place of a GPU: what runs is taken, what fails or is wrong is told."""
    kind, float32 = type(build("csr", 64, 64, density=0.5)), torch.float32
    for direction in (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, STEP):
        assert _probe._trial(kind, "spmm", float32, direction, "cpu") is None
    failed = _probe._trial(kind, "spmm", torch.bfloat16, FORWARD, "cpu") or ""
    assert failed.startswith("kernel=spmm of csr does not run here: ")
    monkeypatch.setitem(_probe.LIMITS, float32, 1e-12)
    wrong = _probe._trial.__wrapped__(kind, "spmm", float32, FORWARD, "cpu") or ""
    assert wrong.startswith("kernel=spmm of csr is wrong here: its relative error is ")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setattr(_probe, "_trial", lambda *asked: f"{asked[1]} on {asked[4]}.")
    spmm = build("csr", 64, 64, density=0.5, kernel="spmm")
    assert spmm.unsupported("cuda", float32, STEP) == "spmm on cuda."
    assert spmm.unsupported("cpu", float32, STEP) is None


def test_the_dense_gradient_is_formed_in_few_blocks_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_gather, "WIDE_ELEMENTS", 4096 * 4096)
    pattern = _gather.Pattern(torch.zeros(4097, dtype=torch.int32), torch.zeros(0).int(), 4096)
    assert len(pattern.blocks) == 64
    monkeypatch.setattr(Tensor, "is_cpu", False)
    pattern = _gather.Pattern(pattern.starts, pattern.columns, 4096)
    assert len(pattern.blocks) == 4


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "blast"])
def test_columns_of_which_nothing_is_seen_count_alike(name: str) -> None:
    """Every format weighs columns in one way; blast, which searches long, by the same call."""
    f = describe(CLASSES[name], CLASSES[name].KERNELS[0], (64, 64))
    weight = normal(64, 64)
    unseen = f.project(weight, activations=torch.zeros(9, 64)).to_dense()
    assert torch.equal(unseen, f.project(weight).to_dense())


@pytest.mark.parametrize("name", ["low_rank", "btt", "csr", "bsr", "low_rank_sparse"])
def test_activations_of_another_width_are_refused_in_words(name: str) -> None:
    f = describe(CLASSES[name], CLASSES[name].KERNELS[0], (64, 64))
    with pytest.raises(UsageError, match=r"must have the shape \(samples, 64\), not \(9, 63\)"):
        f.project(normal(64, 64), activations=torch.zeros(9, 63))


# --- one token ----------------------------------------------------------------------------------

ONE_TOKEN = [
    CLASSES[name].from_knobs(48, 64, kernel="gather", density=0.25)
    for name in ("csr", "coo", "condensed", "n_m", "low_rank_sparse")
]


class Called(TorchDispatchMode):
    """The names of the operators of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")
@pytest.mark.parametrize("f", ONE_TOKEN, ids=lambda f: f.name())
def test_one_token_is_a_product_with_a_vector_forward_and_backward(f: Format) -> None:
    for tokens, dtype, vector in (
        (1, torch.float32, True),
        (1, torch.float64, True),
        (1, torch.bfloat16, False),
        (2, torch.float32, False),
    ):
        layer = random_layer(f, dtype)
        x, dy = (normal(tokens, n, seed=n).to(dtype) for n in (64, 48))
        assert_right(layer, x, dy, STEP)
        with Called() as forward:
            y = layer(x.requires_grad_())
        with Called() as backward:
            torch.autograd.grad(y, x, dy)
        for called in (forward, backward):
            assert ("mv" in called.names) == vector
            assert any("embedding_bag" in name for name in called.names) != vector


def test_without_mkl_one_token_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    layer = random_layer(ONE_TOKEN[0])
    with Called() as called:
        layer(normal(1, 64))
    assert "mv" not in called.names
    assert_right(layer, normal(1, 64), normal(1, 48), STEP)


def doubled_in_place(layer: Linear) -> None:
    layer.values.mul_(2)


def doubled_through_data(layer: Linear) -> None:
    layer.values.data = layer.values.data * 2


def doubled_as_another_parameter(layer: Linear) -> None:
    layer.values = torch.nn.Parameter(layer.values * 2)


def doubled_by_a_load(layer: Linear) -> None:
    layer.load_state_dict({**layer.state_dict(), "values": layer.values * 2})


def doubled_by_a_swap(layer: Linear) -> None:
    torch.utils.swap_tensors(layer.values, torch.nn.Parameter(layer.values * 2))


DOUBLED = [
    doubled_in_place,
    doubled_through_data,
    doubled_as_another_parameter,
    doubled_by_a_load,
    doubled_by_a_swap,
]


@pytest.mark.parametrize("doubled", DOUBLED, ids=lambda each: each.__name__)
@pytest.mark.parametrize("f", ONE_TOKEN, ids=lambda f: f.name())
@pytest.mark.parametrize("trusting", [False, True])
def test_one_token_sees_every_change_of_the_values(
    f: Format, doubled: Callable[[Linear], None], trusting: bool
) -> None:
    layer, x = random_layer(f), normal(1, 64)
    if trusting:
        layer.trust_versions()
    with torch.no_grad():
        if f.name() == "low_rank_sparse":
            layer.left.zero_()
        y = layer(x)
        doubled(layer)
        torch.testing.assert_close(layer(x), 2 * y)
    assert_right(layer, normal(1, 64, seed=1), normal(1, 48, seed=2), STEP)


@torch.no_grad()
def test_one_token_sees_values_at_the_same_place_with_other_strides() -> None:
    layer, x = random_layer(ONE_TOKEN[0]), normal(1, 64)
    count = layer.values.numel()
    bank = normal(count, 2)
    for values in (bank[:, 0], bank.flatten()[:count], bank[0, 0].expand(count)):
        layer.values.data = values
        torch.testing.assert_close(layer(x), x @ layer.to_dense().t())
