"""Codes of few bits: what is stored, how it is chosen, and what each kernel computes."""

from __future__ import annotations

import copy
import itertools
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _formats import CLASSES, assert_near, assert_sentence, generator, normal, relative
from torch import Tensor

from hwbench.devices.cpu import Cpu
from hwbench.errors import KnobError, UnreachableError
from hwbench.formats import _gram, _quantize, _quantized_kernels
from hwbench.formats._base import BACKWARD_INPUT, FORWARD, STEP, Format
from hwbench.formats.quantized import Quantized
from hwbench.formats.quantized_low_rank import QuantizedLowRank
from hwbench.records import Case
from hwbench.workloads import _planning

TYPES = list(_quantize.TYPES)
BITS = {"bfloat16": 16, "int8": 8, "fp8": 8, "int6": 6, "int5": 5, "int4": 4, "nf4": 4}
ON_CPU = [
    kernel
    for kernel in Quantized.KERNELS
    if not Quantized.from_knobs(48, 64, kernel=kernel).unsupported("cpu", torch.float32, FORWARD)
]
"""Libraries whose sums overflow on the processor at hand are not among them."""
NARROW = ("linear_dynamic", "linear_dynamic_7bit", "onednn", "int_mm")
DYNAMIC = [kernel for kernel in NARROW if kernel in ON_CPU]


def build(out: int = 48, inputs: int = 64, **knobs: Any) -> Quantized:
    return Quantized.from_knobs(out, inputs, **knobs)


def wide(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- what is stored -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(48, 64), (37, 53), (5, 1), (16, 96)])
def test_bytes_are_those_of_codes_and_scales(kind: str, shape: tuple[int, int]) -> None:
    f = build(*shape, type=kind)
    for dtype in (torch.float32, torch.bfloat16):
        layer = f.project(normal(*shape).to(dtype))
        sizes = sum(t.numel() * t.element_size() for t in layer.stored_tensors())
        assert f.stored_bytes(dtype.itemsize) == sizes
        groups = shape[1] // f.columns
        each = {"bfloat16": 0, "int8": 1, "fp8": 1, "nf4": 1}.get(kind, 2)
        row = -(-shape[1] * BITS[kind] // 8) + groups * each * dtype.itemsize
        table = 16 * dtype.itemsize if kind == "nf4" else 0
        assert sizes == shape[0] * row + table


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("group", [16, 32, 64])
def test_no_weight_is_further_away_than_the_type_allows(kind: str, group: int) -> None:
    """Half a step of the group for the integers; what the mantissa or the table allows else."""
    weight = normal(48, 64)
    f = build(type=kind, group=group, kernel="dequantise")
    gap = (f.project(weight).to_dense() - weight).abs().unflatten(1, (-1, group))
    grouped = weight.unflatten(1, (-1, group))
    largest = grouped.abs().amax(-1, keepdim=True)
    spread = grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)
    allowed = {
        "bfloat16": grouped.abs() * 2**-8,
        "int8": largest / 127 / 2,
        "fp8": torch.maximum(grouped.abs() * 2**-4, largest / 448 * 2**-9),
        "nf4": largest * 0.1520,  # half of the widest step of the table
    }.get(kind, spread / (2 ** BITS[kind] - 1) / 2)
    assert bool((gap <= allowed * (1 + 1e-4) + 1e-7).all())
    assert gap.max() > 0


def test_more_bits_and_smaller_groups_are_nearer() -> None:
    weight = normal(64, 256)
    errors = {
        (kind, group): relative(build(64, 256, type=kind, group=group).project(weight).to_dense(),
                                weight)
        for kind in ("int8", "int6", "int5", "int4") for group in (32, 128)
    }  # fmt: skip
    for kind in ("int8", "int6", "int5", "int4"):
        assert errors[kind, 32] < errors[kind, 128]
    for more, fewer in itertools.pairwise(("int8", "int6", "int5", "int4")):
        assert errors[more, 128] < 0.7 * errors[fewer, 128]


@pytest.mark.parametrize("kind", TYPES)
def test_a_group_of_equal_weights_is_kept(kind: str) -> None:
    for value in (0.0, 1.5, -0.375):
        weight = torch.full((16, 32), value)
        ours = build(16, 32, type=kind).project(weight).to_dense()
        assert relative(ours, weight) <= 1e-6


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 53, 64])
def test_packed_codes_come_back(bits: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (3, columns), generator=generator()).to(torch.uint8)
    packed = _quantize.pack(codes, bits)
    assert packed.shape == (3, -(-columns * bits // 8))
    assert torch.equal(_quantize.unpack(packed, bits, columns), codes)


def test_table_of_nf4_is_that_of_the_paper() -> None:
    """The values that QLoRA prints in its appendix."""
    printed = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    printed += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    assert _quantize.nf4_table().tolist() == pytest.approx(printed, abs=2e-6)


# --- GPTQ ---------------------------------------------------------------------------------------


def seen(samples: int, inputs: int, *, correlated: float = 0.9) -> Tensor:
    """Inputs of which most of the variance is shared."""
    shared = wide(samples, 4, seed=5) @ wide(4, inputs, seed=6)
    return correlated * shared + (1 - correlated) * wide(samples, inputs, seed=7)


def by_least_squares(f: Quantized, weight: Tensor, inputs: Tensor) -> Tensor:
    """The codes that follow where each column's error is made up for by solving for the rest."""
    gram = _gram.moments(inputs)
    left, codes = weight.clone(), []
    scale = centre = torch.empty(0)
    for j in range(f.in_features):
        if j % f.columns == 0:
            scale, centre = _quantize.scales(f.kind, left[:, j : j + f.columns], torch.float64)
        code = _quantize.encode(f.kind, left[:, j], scale, centre)
        codes.append(code)
        table = _quantize.nf4_table()
        gap = left[:, j] - (scale * _quantize.values(f.kind, code, table, torch.float64) + centre)
        after = slice(j + 1, None)
        if j + 1 < f.in_features:
            moved = torch.linalg.solve(gram[after, after], gram[after, j])
            left[:, after] += gap[:, None] * moved
    return torch.stack(codes, 1)


@pytest.mark.parametrize("kind", ["int4", "nf4", "int8"])
@pytest.mark.parametrize("group", [16, 80, 160])
def test_gptq_is_the_column_by_column_optimum(kind: str, group: int) -> None:
    """Within blocks, across them, and with groups that begin inside of one."""
    f = build(6, 160, type=kind, group=group, kernel="dequantise", rounding="gptq")
    weight, inputs = wide(6, 160), seen(400, 160)
    codes, _, _ = _quantize.gptq(f.kind, weight, group, torch.float64, _gram.Seen(inputs))
    assert torch.equal(codes, by_least_squares(f, weight, inputs))


def test_gptq_without_correlation_is_nearest() -> None:
    weight = normal(16, 64).double()
    basis = torch.linalg.qr(wide(64, 64)).Q
    near, far = (
        build(16, 64, type="int4", rounding=r).project(weight, activations=a)
        for r, a in (("nearest", None), ("gptq", basis))
    )
    assert torch.equal(near.to_dense(), far.to_dense())
    untold = build(16, 64, type="int4", rounding="gptq").project(weight)
    assert torch.equal(untold.to_dense(), near.to_dense())


@pytest.mark.parametrize("kind", ["int4", "nf4", "int5"])
def test_gptq_lowers_the_error_of_the_output_on_fresh_inputs(kind: str) -> None:
    weight = normal(64, 128)
    both = seen(1200, 128)
    told, fresh = both[:800], both[800:]
    errors = {}
    for rounding in ("nearest", "gptq"):
        f = build(64, 128, type=kind, rounding=rounding, kernel="dequantise")
        layer = f.project(weight, activations=told.float())
        gap = layer.to_dense().double() - weight.double()
        errors[rounding] = float((fresh @ gap.mT).norm())
    assert errors["gptq"] < 0.75 * errors["nearest"]


ROUNDED = [f for f in CLASSES.values() if "rounding" in f.knob_names()]


@pytest.mark.parametrize("kind", ROUNDED, ids=lambda kind: str(kind.name()))
@pytest.mark.parametrize("samples", [8, 32, 64, 128])
def test_gptq_does_not_believe_rows_that_are_too_few(kind: type[Format], samples: int) -> None:
    """Inputs that are independent can only look correlated: to make up for nothing is best."""
    weight, told, fresh = wide(48, 64), wide(samples, 64, seed=1), wide(2000, 64, seed=2)
    share = {"density": 0.75} if "kept_groups" in kind.knob_names() else {"kernel": "dequantise"}
    errors = []
    for rounding in ("nearest", "gptq"):
        f = kind.from_knobs(48, 64, rounding=rounding, **share)
        layer = f.project(weight, activations=told if rounding == "gptq" else None)
        errors.append(float((fresh @ (layer.to_dense().detach() - weight).mT).norm()))
    assert errors[1] <= 1.05 * errors[0]


def test_gptq_bears_inputs_that_are_never_used() -> None:
    inputs = seen(64, 32)
    inputs[:, [3, 30]] = 0
    f = build(8, 32, type="int4", rounding="gptq", kernel="dequantise")
    for some in (inputs, torch.zeros(5, 32)):
        dense = f.project(normal(8, 32), activations=some.float()).to_dense()
        assert dense.isfinite().all()
        assert relative(dense, normal(8, 32)) < 0.5


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1.0, 1e30])
def test_tokens_of_any_size_are_coded(size: float) -> None:
    """To half a step of the largest value, which below the normal numbers is one of these."""
    x = torch.cat([normal(3, 64) * size, torch.zeros(1, 64), normal(1, 64)])
    codes, scale = _quantize.quantised_tokens(x)
    found = codes.double() * scale.double()
    step = x.abs().amax(1, keepdim=True).double() / 127
    least = torch.finfo(torch.float32).tiny
    assert bool(((found - x.double()).abs() <= 0.501 * step.clamp_min(least)).all())
    assert not found[3].any()


# --- kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "kernel"),
    [
        ({}, DYNAMIC[0]),
        ({"type": "int8"}, "int8pack"),
        ({"type": "int8", "activations": "dynamic"}, DYNAMIC[0]),
        ({"type": "int8", "group": 32}, "dequantise"),
        ({"type": "int4"}, "int4pack"),
        ({"type": "int4", "group": 16}, "dequantise"),
        ({"type": "int5"}, "dequantise"),
        ({"type": "bfloat16"}, "bfloat16_mm"),
        ({"type": "fp8"}, "dequantise"),
        ({"kernel": "int4pack"}, "int4pack"),
    ],
)
def test_the_fastest_kernel_of_a_type_is_taken(knobs: dict[str, Any], kernel: str) -> None:
    f = build(**knobs)
    assert f.kernel == kernel
    assert Quantized.from_knobs(48, 64, **f.knobs()) == f


def test_a_shape_that_a_kernel_does_not_take_has_the_dense_product() -> None:
    assert build(37, 64, type="int4").kernel == "dequantise"
    assert build(37, 53, type="int4").columns == 53


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_multiplies_by_what_it_stands_for(kind: str, dtype: torch.dtype) -> None:
    for shape, tokens in itertools.product(((48, 64), (37, 53)), (1, 7)):
        f = build(*shape, type=kind)
        if f.unsupported("cpu", dtype, FORWARD):
            continue
        layer = f.project(normal(*shape).to(dtype))
        x = normal(tokens, shape[1]).to(dtype)
        exact = copy.deepcopy(layer).double().to_dense()
        assert_near(layer(x), x.double() @ exact.mT, dtype, kind, beside=layer.tolerance(dtype))


@pytest.mark.parametrize("kernel", [*DYNAMIC, "dequantise"])
def test_each_token_has_its_own_scale(kernel: str) -> None:
    """A token ten thousand times as large as the others leaves these as exact as they were."""
    f = build(type="int8", activations="dynamic", kernel=kernel)
    layer, x = f.project(normal(48, 64)), normal(6, 64)
    x[2] *= 1e4
    exact = x.double() @ copy.deepcopy(layer).double().to_dense().mT
    y = layer(x)
    for ours, right in zip(y, exact, strict=True):
        assert 1e-4 < relative(ours, right) <= layer.tolerance(torch.float32)


@pytest.mark.parametrize(
    "kernel", [k for k in (*DYNAMIC, "dequantise") if not k.startswith("linear_dynamic")]
)
def test_integers_multiply_exactly(kernel: str) -> None:
    """Only the activations are rounded: the product of what they were rounded to is exact."""
    f = build(type="int8", activations="dynamic", kernel=kernel)
    layer, x = f.project(normal(48, 64)), normal(6, 64)
    codes, scale = _quantize.quantised_tokens(x)
    exact = (codes.double() * scale) @ copy.deepcopy(layer).double().to_dense().mT
    assert relative(layer(x), exact) <= 1e-6


@pytest.mark.parametrize("kernel", DYNAMIC)
def test_a_token_of_zeros_gives_zeros(kernel: str) -> None:
    layer, x = build(kernel=kernel).project(normal(48, 64)), normal(4, 64)
    x[1] = 0
    y = layer(x)
    assert y.isfinite().all()
    assert float(y[1].abs().max()) == 0


def test_no_tokens_give_no_rows() -> None:
    for name in ON_CPU:
        assert build(kernel=name).project(normal(48, 64))(torch.empty(0, 64)).shape == (0, 48)


@pytest.mark.parametrize("kernel", ON_CPU)
def test_gradient_of_the_input_is_that_of_the_dequantised_weight(kernel: str) -> None:
    layer = build(kernel=kernel).project(normal(48, 64))
    x, dy = normal(5, 64).requires_grad_(), normal(5, 48, seed=2)
    (found,) = torch.autograd.grad(layer(x), x, dy)
    assert_near(found, dy.double() @ copy.deepcopy(layer).double().to_dense(), torch.float32)
    f = build(kernel=kernel)
    assert f.unsupported("cpu", torch.float32, BACKWARD_INPUT) is None
    for direction in (STEP, "backward", "backward_weight"):
        assert "no gradient" in str(f.unsupported("cpu", torch.float32, direction))


def test_what_was_packed_follows_the_codes() -> None:
    for kernel in {*DYNAMIC, "int4pack"} - {"int_mm"}:
        layer, x = build(kernel=kernel).project(normal(48, 64)), normal(5, 64)
        layer(x)
        layer.codes.copy_(layer.codes.flip(0))
        exact = copy.deepcopy(layer).double().to_dense()
        assert relative(layer(x), x.double() @ exact.mT) < 0.03, kernel


def test_the_notice_of_removal_is_told_once_by_the_page() -> None:
    """PyTorch warns of the tensors of linear_dynamic; hwbench says so, and keeps runs quiet."""
    text = sys.modules[Quantized.__module__].__doc__
    assert "will be removed" in " ".join(str(text).split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(kernel="linear_dynamic").project(normal(48, 64))(normal(3, 64))


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def _tried_anew() -> Iterator[None]:
    """What the processor at hand was found to do is forgotten, before and after."""
    _quantized_kernels._lacks_integers.cache_clear()
    yield
    _quantized_kernels._lacks_integers.cache_clear()


@pytest.mark.usefixtures("_tried_anew")
@pytest.mark.parametrize(
    ("kernel", "namespace", "names"),
    [
        ("linear_dynamic", "_quantized", ("linear_prepack", "linear_dynamic")),
        ("onednn", "_onednn", ("qlinear_prepack", "qlinear_pointwise")),
    ],
)
def test_a_processor_that_overflows_is_told(
    kernel: str, namespace: str, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = getattr(_quantized_kernels, namespace)()
    pack, multiply = (getattr(operators, name) for name in names)

    def saturating(*arguments: Any) -> Tensor:
        return multiply(*arguments) * 0.7

    saturating.op = saturating  # type: ignore[attr-defined]
    made = SimpleNamespace(**dict(zip(names, (pack, saturating), strict=True)))
    monkeypatch.setattr(_quantized_kernels, namespace, lambda: made)
    reason = build(kernel=kernel).unsupported("cpu", torch.float32, FORWARD)
    assert reason == f"{kernel} overflows on this processor: use kernel=linear_dynamic_7bit."
    assert build(activations="dynamic").kernel != kernel


@pytest.mark.parametrize("seed", range(20))
def test_no_kernel_that_is_offered_here_overflows(seed: int) -> None:
    """Weights and activations at the ends of their ranges, in long sums of one sign or both."""
    source = generator(seed)
    inputs, tokens = 64 * int(torch.randint(1, 9, (), generator=source)), 1 + seed % 3
    share = float(torch.rand((), generator=source))

    def ends(rows: int) -> Tensor:
        return torch.where(torch.rand(rows, inputs, generator=source) < share, 1.0, -1.0)

    weight, x = ends(48), ends(tokens)
    for kernel in (*DYNAMIC, "int8pack"):
        found = build(48, inputs, type="int8", kernel=kernel).project(weight)(x)
        assert relative(found, x.double() @ weight.double().mT) < 0.01, kernel


@pytest.mark.usefixtures("_tried_anew")
def test_a_torch_without_the_operator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"no operator {name}")

    for namespace in ("_quantized", "_aten", "_onednn"):
        monkeypatch.setattr(_quantized_kernels, namespace, Gone)
    for kernel in ("linear_dynamic", "onednn", "int8pack", "int4pack"):
        reason = build(kernel=kernel).unsupported("cpu", torch.float32, FORWARD)
        assert "does not run here" in str(reason)
        assert_sentence(reason)


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "nvfp4"])
def test_types_of_other_devices_are_unsupported_in_words(name: str) -> None:
    with pytest.raises(UnreachableError, match=f"type={name} .* no kernel yet") as refusal:
        build(type=name)
    assert_sentence(refusal.value)
    case = one_case(knobs={"type": name})
    assert _planning.planned(case, Cpu(0), {}).unsupported == str(refusal.value)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"type": "int3"}, "type of quantized must be one of bfloat16, int8"),
        ({"rounding": "up"}, "rounding of quantized must be nearest or gptq"),
        ({"activations": "static"}, "activations of quantized must be none or dynamic"),
        ({"kernel": "int_mm", "type": "int4"}, "multiplies int8, not int4"),
        ({"kernel": "int8pack", "activations": "dynamic"}, "has activations=none only"),
        ({"kernel": "int8pack", "group": 32}, "takes groups of 64 columns, not 32"),
        ({"kernel": "int4pack", "group": 16}, "takes groups of 32 or 64 or 128 or 256 columns"),
        ({"type": "int4", "group": 48}, "works on groups of 48 columns"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message) as refusal:
        build(**knobs)
    assert not isinstance(refusal.value, UnreachableError)
    assert_sentence(refusal.value)


def test_reading_beyond_the_weight_is_refused() -> None:
    """The operator reads sixteen columns at a time, whether they are there or not."""
    f = build(48, 56, kernel="int8pack")
    for dtype in (torch.bfloat16, torch.float32):
        assert "would read beyond 56" in str(f.unsupported("cpu", dtype, FORWARD))
    assert build(48, 56, type="int8").kernel == "dequantise"


# --- bytes asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "item", "expected"),
    [
        (1.0, 4, ("bfloat16", 256)),
        (0.5, 4, ("bfloat16", 256)),
        (0.3, 4, ("int8", 32)),
        (0.26, 4, ("int8", 128)),
        (0.25, 4, ("int6", 32)),
        (0.15, 4, ("int4", 128)),
        (0.3, 2, ("int4", 64)),
    ],
)
def test_the_widest_type_that_fits_then_the_smallest_group(
    stored: float, item: int, expected: tuple[str, int]
) -> None:
    f = Quantized.from_knobs(64, 256, stored=stored, item_bytes=item)
    assert (f.type, f.columns) == expected
    assert f.stored_bytes(item) <= stored * 64 * 256 * item


def test_a_knob_that_is_given_is_kept() -> None:
    f = Quantized.from_knobs(64, 256, stored=0.3, kernel="linear_dynamic")
    assert (f.type, f.columns, f.kernel) == ("int8", 256, "linear_dynamic")
    f = Quantized.from_knobs(64, 256, stored=0.5, type="int4", group=128)
    assert (f.type, f.columns) == ("int4", 128)
    with pytest.raises(UnreachableError, match=r"nothing below it can be had, .* stored=0\.254"):
        Quantized.from_knobs(64, 256, stored=0.2, type="int8")


# --- beside two thin factors --------------------------------------------------------------------


def outlying(out: int, inputs: int) -> Tensor:
    """A weight with a few strong directions, as trained layers have."""
    return (wide(out, inputs) + 3 * wide(out, 4, seed=8) @ wide(4, inputs, seed=9) / 4).float()


def beside(out: int = 64, inputs: int = 96, **knobs: Any) -> QuantizedLowRank:
    return QuantizedLowRank.from_knobs(out, inputs, **knobs)


@pytest.mark.parametrize("kind", ["int8", "int5", "int4", "nf4"])
def test_factors_lower_the_error_of_the_same_codes(kind: str) -> None:
    weight = outlying(64, 96)
    alone = relative(build(64, 96, type=kind).project(weight).to_dense(), weight)
    errors = [
        relative(beside(type=kind, rank=rank).project(weight).to_dense(), weight)
        for rank in (1, 8, 32)
    ]
    assert errors[2] < errors[1] < errors[0] < alone


def test_the_first_factors_are_the_best_for_what_the_codes_lose() -> None:
    """By Eckart and Young no factors of that rank beat those of the first turn; more turns may."""
    weight = outlying(64, 96)
    gap = weight - build(64, 96, type="int4").project(weight).to_dense()
    least = float(torch.linalg.svdvals(gap.double())[8:].norm() / weight.double().norm())
    f = beside(type="int4", rank=8)
    assert relative(f.project(weight).to_dense(), weight) <= least * (1 + 1e-5)


def test_activations_weigh_what_the_factors_take_up() -> None:
    weight, inputs = outlying(64, 96), seen(800, 96)
    plain, told = (beside(rank=8).project(weight, activations=a) for a in (None, inputs.float()))
    errors = [
        float((inputs @ (layer.to_dense().detach() - weight).double().mT).norm())
        for layer in (plain, told)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_bytes_decide_the_rank() -> None:
    f = beside(128, 256, stored=0.2)
    dense = 4 * 128 * 256
    assert (f.type, f.rank) == ("int4", 5)
    assert f.stored_bytes(4) <= 0.2 * dense < f.stored_bytes(4) + 4 * (128 + 256)
    assert f.stored_bytes(4) == Quantized.from_knobs(128, 256, type="int4").stored_bytes(
        4
    ) + 5 * 4 * (128 + 256)
    with pytest.raises(UnreachableError, match="nothing below it can be had"):
        beside(128, 256, stored=0.1)
    with pytest.raises(KnobError, match="either stored bytes or rank"):
        beside(128, 256, stored=0.5, rank=3)


def test_factors_are_trained_while_codes_stay() -> None:
    layer, x = beside(rank=4).project(outlying(64, 96)), normal(9, 96)
    codes = layer.codes.clone()
    steps = torch.optim.SGD(layer.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        steps.zero_grad()
        loss = (layer(x) - 1).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        steps.step()
    assert losses[2] < losses[1] < losses[0]
    assert torch.equal(codes, layer.codes)


# --- what is measured ---------------------------------------------------------------------------


def one_case(**changes: Any) -> Case:
    made = {
        "workload": "linear",
        "format": "quantized",
        "out_features": 64,
        "in_features": 64,
        "dtype": "float32",
        "device": "cpu",
        "tokens": 8,
        "direction": "forward",
        "regime": "hot",
        "mode": "eager",
    }
    return Case(**{**made, **changes})


@pytest.mark.parametrize("direction", ["forward", "backward_input"])
def test_rounded_activations_are_measured_as_an_error(direction: str) -> None:
    case = one_case(direction=direction)
    workload, f = _planning.described(case, _planning.planned(case, Cpu(0), {}).resolved)
    subject = workload.prepare(case, f, Cpu(0), 0)
    assert subject.numerical_error is not None
    steps = 2 if f.kernel == "linear_dynamic_7bit" else 1
    assert 1e-3 < subject.numerical_error() <= subject.tolerance < 0.05 * steps


def test_costs_count_what_each_kernel_moves() -> None:
    f = Quantized.from_knobs(64, 256, kernel="dequantise", type="int4")
    cost = f.cost(3, 4, FORWARD)
    assert cost.flops == cost.dense_flops == 2 * 3 * 64 * 256
    assert cost.intermediate_bytes == 2 * 4 * 64 * 256
    assert cost.compulsory_bytes == 4 * 3 * (64 + 256) + 64 * 128 + 64 * 2 * 2 * 4
    packed = Quantized.from_knobs(64, 256, type="int4")
    assert packed.kernel == "int4pack"
    assert packed.cost(3, 2, FORWARD).intermediate_bytes == 0
    assert packed.cost(3, 4, FORWARD).intermediate_bytes == 2 * 2 * 3 * (64 + 256)
