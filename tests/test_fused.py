"""The Triton kernels of btt, monarch and blast: interpreted, compiled, and (marked cuda) run."""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _fused
import pytest
import torch
from _formats import (
    assert_near,
    assert_right,
    assert_sentence,
    each,
    normal,
    random_layer,
)
from torch.torch_version import TorchVersion

from hwbench import plugins, suite
from hwbench.errors import UsageError
from hwbench.formats import _sizes, _triton, _two_stage
from hwbench.formats._base import BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, STEP, Format
from hwbench.formats.blast import Blast
from hwbench.formats.btt import Btt
from hwbench.formats.monarch import Monarch
from hwbench.workloads._base import DTYPES as DTYPE_NAMES

ROOT = Path(__file__).parents[1]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
_INTERPRETS = pytest.mark.skipif(
    not _fused.interprets(),
    reason="Triton's interpreter needs triton 3.7: older ones fail in numpy 2.4",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOKENS = (1, 3, 64, 100)


def needs_interpreter(test: Any) -> Any:
    """It runs in Triton's interpreter, whose processes take seconds to start."""
    return pytest.mark.heavy(_INTERPRETS(test))


def btt(out: int, inputs: int, rank: int, **knobs: Any) -> Format:
    knobs.setdefault("kernel", "triton_fused")
    return Btt(out_features=out, in_features=inputs, rank=rank, **knobs)


def monarch(out: int, inputs: int, rank: int, *blocks: int, **knobs: Any) -> Monarch:
    knobs.update(zip(("blocks", "out_blocks"), blocks, strict=False))
    knobs.setdefault("kernel", "triton")
    return Monarch(out_features=out, in_features=inputs, rank=rank, **knobs)


def blast(out: int, inputs: int, rank: int, blocks: int, out_blocks: int) -> Format:
    knobs = {"rank": rank, "blocks": blocks, "out_blocks": out_blocks, "kernel": "triton"}
    return Blast(out_features=out, in_features=inputs, **knobs)


ONE_KERNEL = [
    btt(37, 53, 1, in_blocks=4, out_blocks=3),  # padded, both; a group is half there
    btt(37, 53, 3, in_blocks=4, out_blocks=3, order="strided"),
    btt(30, 32, 5, in_blocks=4, out_blocks=5),
    btt(100, 60, 18, in_blocks=2, out_blocks=5),  # several tiles of lanes, the last one masked
    # several tiles of entries of an input group too
    monarch(40, 75, 37, 1, 1, kernel="triton_fused"),
    # seven output groups: four and three together
    monarch(34, 45, 3, 2, 7, order="strided", kernel="triton_fused"),
    monarch(37, 160, 2, 2, 3, kernel="triton_fused"),  # x is read often
]
GROUPED = [
    monarch(37, 160, 2, 2, 3),
    btt(37, 53, 3, in_blocks=4, out_blocks=3, kernel="triton"),  # padded, both
    monarch(96, 128, 1, 2, order="strided"),
    monarch(300, 48, 20, 1),  # one output group is wider than a program
    monarch(530, 61, 17, 3, 2, order="strided"),
]
COUPLED = [
    blast(37, 53, 1, 3, 2),
    blast(64, 48, 18, 2, 4),
    blast(28, 44, 33, 5, 2),  # blocks that do not divide the sizes, or a group of four
    blast(520, 24, 20, 3, 2),  # several tiles of an output group
]
ALL = [*ONE_KERNEL, *GROUPED, *COUPLED]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with _fused.process(TRITON_INTERPRET="1") as process:
        assert process.submit(_fused.interpreted).result()
        yield process


# --- interpreted -------------------------------------------------------------------------------
# Every dtype is: bfloat16, which numpy does not have, is multiplied in float32 there, and rounded
# before and after as on a GPU.


@needs_interpreter
@each("f, dtype", [(f, DTYPES[number % len(DTYPES)]) for number, f in enumerate(ALL)])
def test_step_equals_float64(
    interpreter: ProcessPoolExecutor, f: Format, dtype: torch.dtype
) -> None:
    for tokens in TOKENS[::2]:
        programs = 256 if tokens == 3 else 1
        interpreter.submit(_fused.product, f, dtype, tokens, programs).result()


@needs_interpreter
@each("dtype", DTYPES)
@each("f", ALL)
def test_step_equals_float64_in_every_dtype(
    interpreter: ProcessPoolExecutor, f: Format, dtype: torch.dtype
) -> None:
    for tokens in TOKENS:
        programs = 256 if tokens == 3 else 1
        interpreter.submit(_fused.product, f, dtype, tokens, programs).result()


@needs_interpreter
@each("f", [btt(20, 24, 3, in_blocks=2), monarch(40, 96, 1, 2), blast(40, 24, 4, 2, 2)])
def test_many_tokens_equal_float64(interpreter: ProcessPoolExecutor, f: Format) -> None:
    interpreter.submit(_fused.product, f, torch.float16, 1030).result()


@needs_interpreter
@each("f", [ONE_KERNEL[1], GROUPED[1], COUPLED[2]])
def test_every_direction_and_layout(interpreter: ProcessPoolExecutor, f: Format) -> None:
    interpreter.submit(_fused.directions, f, torch.float32).result()


@needs_interpreter
@each("f", [ONE_KERNEL[1], GROUPED[1], COUPLED[2]])
def test_it_compiles_as_a_whole(interpreter: ProcessPoolExecutor, f: Format) -> None:
    interpreter.submit(_fused.compiled, f).result()


@needs_interpreter
@each("f", ALL)
def test_what_is_written_is_what_is_said(interpreter: ProcessPoolExecutor, f: Format) -> None:
    tokens = 40  # so many that a product in bfloat16 is written to a view
    y = f.out_features
    if f in GROUPED:  # the second product is as in ``bmm``: y is cut where it was padded
        y = f.out_blocks * _sizes.side(y, f.out_blocks)
    words = f.intermediate_width() + f.copied_width() + y
    assert interpreter.submit(_fused.written, f, tokens).result() == tokens * words


@needs_interpreter
def test_a_device_is_asked_by_small_products(interpreter: ProcessPoolExecutor) -> None:
    *right, wrong = interpreter.submit(_fused.refusals).result()
    assert right == [None, None]
    assert wrong == "A Triton kernel computes a wrong product on this device."


# --- compiled ----------------------------------------------------------------------------------


@needs_triton
@pytest.mark.processes
@pytest.mark.heavy
def test_kernels_fit_devices_that_are_not_here(tmp_path: Path) -> None:
    layers = (btt(4096, 4096, 16), monarch(4096, 4096, 256), blast(4096, 4096, 1016, 4, 4))
    arguments = [(f, torch.bfloat16, 4096, 90) for f in layers]
    arguments += [(layers[1], torch.float32, 4096, 80), (layers[2], torch.float16, 16, 120)]
    with _fused.process(TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0") as process:
        for case in arguments:
            actual = process.submit(_fused.shared_bytes, *case).result()
            assert len(actual) == 1
            assert all(0 < shared <= _fused.SHARED_BYTES for shared in actual.values()), actual


def launched(name: str) -> list[tuple[Format, torch.dtype, int, int]]:
    """What a suite launches forward on CUDA by Triton kernels: format, dtype, tokens, 9.0."""
    collected = {}
    for case in suite.build(suite.read(name), "cuda").cases:
        kind = plugins.load("formats", case.format, Format)
        if str(case.knobs.get("kernel")).startswith("triton") and case.tokens:
            f = kind.from_knobs(case.out_features, case.in_features, **case.knobs)
            collected[f, case.dtype, case.tokens] = (f, DTYPE_NAMES[case.dtype], case.tokens, 90)
    return list(collected.values())


@needs_triton
@pytest.mark.heavy
def test_every_launch_of_the_suite_llm_compiles_and_fits(tmp_path: Path) -> None:
    asked = launched("llm")
    assert {(f.name(), f.kernel) for f, *_ in asked} == {
        *(("btt", "triton"), ("btt", "triton_fused"), ("monarch", "triton"), ("blast", "triton"))
    }
    with _fused.process(TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0") as process:
        for case in asked:
            actual = process.submit(_fused.shared_bytes, *case).result()
            assert len(actual) == 1
            assert all(0 < shared <= _fused.SHARED_BYTES for shared in actual.values()), case


# --- what is said ------------------------------------------------------------------------------


def test_the_tests_ask_for_a_triton_that_interprets() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (arguments,) = [each for each in project["optional-dependencies"]["dev"] if "triton" in each]
    least = re.match(r"triton>=([\d.]+),", arguments)
    assert least is not None
    assert TorchVersion(least[1]) >= _fused.INTERPRETS


def test_the_environment_is_left_alone() -> None:
    assert "TRITON_INTERPRET" not in os.environ


@each("f", [ONE_KERNEL[0], GROUPED[0], COUPLED[0]])
def test_where_it_runs(f: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUDA" in str(f.unsupported("cpu", torch.bfloat16, FORWARD))
    assert "float32" in str(f.unsupported("cuda", torch.float64, FORWARD))
    monkeypatch.setattr(_triton, "find_spec", lambda name: None)
    assert f.unsupported("cuda", torch.bfloat16, STEP) == _triton.NO_TRITON
    assert_sentence(_triton.NO_TRITON)
    with pytest.raises(UsageError, match="Triton") as refused:
        random_layer(f, torch.float32)(normal(2, f.in_features))
    assert_sentence(refused.value)


def test_bmm_stays_the_default() -> None:
    assert all(cls.KERNELS[0] == "bmm" for cls in (Btt, Monarch))
    usual, bmm = (
        Blast(out_features=64, in_features=64, rank=8, blocks=4, **kernel).on("cuda")
        for kernel in ({}, {"kernel": "bmm"})
    )
    assert usual.cost(16, 2, STEP) == bmm.cost(16, 2, STEP)


def test_which_layers_are_one_kernel() -> None:
    assert [_two_stage.together(side) for side in (1, 64, 65, 128, 129, 256, 1024)] == [
        4, 4, 2, 2, 1, 1, 1,
    ]  # fmt: skip
    for kernel, alone in (("triton", False), ("triton_fused", True)):
        for at in (0.5, 0.25, 0.1, 0.05):
            f = Btt.from_knobs(4096, 4096, density=at, kernel=kernel)
            assert (f.intermediate_width() == f.copied_width() == 0) == alone


def test_a_group_that_no_program_holds_is_refused() -> None:
    f = Monarch.from_knobs(4096, 4096, density=0.5, kernel="triton_fused")  # groups of 1024
    refused = f.unsupported("cuda", torch.bfloat16, FORWARD)
    assert refused is not None
    assert "at most 256 features, and here a group has 1024" in refused
    assert_sentence(refused)
    too_wide = _two_stage.TritonFused().too_wide
    assert too_wide(256) is None
    wide = Monarch(out_features=257, in_features=4, rank=1, blocks=1, kernel="triton_fused")
    assert wide.unsupported("cuda", torch.bfloat16, FORWARD) == too_wide(257)
    with pytest.raises(UsageError, match="at most 256 features, and here a group has 257"):
        random_layer(wide, torch.float32)(normal(2, 4))


def test_costs_by_hand() -> None:
    """4096 × 4096, 64 by 64 blocks of rank 16, one token, two bytes a value."""
    f = btt(4096, 4096, 16)
    between, factor = 64 * 64 * 16, 64 * 4096 * 16
    assert f.stages() == (factor, factor)
    again = between + 4096 + factor  # z is written again, from x and the first factor
    expected = {
        FORWARD: 0,
        BACKWARD_INPUT: 4 * between,
        BACKWARD_WEIGHT: 4096 + 5 * between + factor + again,
        BACKWARD: 4096 + 6 * between + again,
        STEP: 4096 + 6 * between + again,
    }
    flops = {FORWARD: 4, BACKWARD_INPUT: 4, BACKWARD_WEIGHT: 8, BACKWARD: 10, STEP: 14}
    for direction, values in expected.items():
        assert f.cost(1, 2, direction).intermediate_bytes == 2 * values
        assert f.flops(1, direction) == flops[direction] * factor
    grouped = monarch(4096, 4096, 256)
    assert grouped.cost(1, 2, FORWARD).intermediate_bytes == 2 * 2 * 4096
    assert grouped.flops(1, STEP) == 6 * grouped.parameters()
    coupled = blast(4096, 4096, 1000, 4, 4)
    assert coupled.cost(1, 2, FORWARD).intermediate_bytes == 2 * 2 * 4000
    more = coupled.flops(1, STEP) - 6 * coupled.parameters()
    assert more == 2 * 16000  # the couplings, once more
    plain = Blast(out_features=4096, in_features=4096, rank=1000, blocks=4, kernel="bmm")
    assert coupled.cost(1, 2, BACKWARD_INPUT) == plain.cost(1, 2, BACKWARD_INPUT)


# --- on a GPU ----------------------------------------------------------------------------------


LARGE = [
    btt(1024, 1024, 16),
    btt(1000, 1111, 9, order="strided"),
    btt(2048, 1024, 2),
    monarch(1024, 1024, 64),
    btt(1000, 1111, 9, kernel="triton"),
    monarch(1030, 777, 24, 4, 5, order="strided"),
    monarch(1030, 777, 24, 4, 5, kernel="triton_fused"),
    blast(1024, 1024, 200, 4, 4),
    blast(1001, 777, 77, 6, 3),
]


@pytest.mark.cuda
@each("dtype", DTYPES)
@each("f", LARGE)
def test_step_equals_float64_on_cuda(f: Format, dtype: torch.dtype) -> None:
    assert f.unsupported("cuda", dtype, STEP) is None
    layer = random_layer(f, dtype, device="cuda")
    for tokens in (1, 100, 2050):
        x = normal(tokens, f.in_features, device="cuda").to(dtype)
        dy = normal(tokens, f.out_features, seed=2, device="cuda").to(dtype)
        assert_right(layer, x, dy, STEP)
        assert_right(layer, x, dy, FORWARD)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
@each("f", LARGE)
def test_it_is_captured_and_compiled_on_cuda(f: Format) -> None:
    from hwbench.devices.cuda import Cuda

    layer = random_layer(f, torch.float16, device="cuda").requires_grad_(False)
    x = normal(64, f.in_features, device="cuda").half()
    exact = copy.deepcopy(layer).double().to_dense()
    y = layer(x)
    replay = Cuda().capture(lambda: y.copy_(layer(x)))
    assert not isinstance(replay, str), replay
    x.copy_(normal(64, f.in_features, seed=7, device="cuda"))
    replay()
    assert_near(y, x.double() @ exact.mT, torch.float16)
    whole = torch.compile(layer, dynamic=False, fullgraph=True)
    assert_near(whole(x), x.double() @ exact.mT, torch.float16)
