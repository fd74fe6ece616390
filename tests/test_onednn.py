"""Products by oneDNN: a setting of the process that is in force during a call alone, and tried."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _formats import CLASSES, assert_near, assert_sentence, generator, normal
from torch.utils._python_dispatch import TorchDispatchMode

from hwbench.devices._settings import restored, settings
from hwbench.errors import UsageError
from hwbench.formats import _onednn
from hwbench.formats._base import STEP, Format, Linear

ONEDNN: Any = torch.backends.mkldnn
OFFERED = [
    cls
    for cls in CLASSES.values()
    if any(isinstance(kernel, _onednn.OneDnn) for kernel in cls.IMPLEMENTATIONS)
]
HERE = pytest.mark.skipif(
    _onednn.refusal("cpu", torch.float32) is not None,
    reason="oneDNN computes nothing in float32 here",
)


def precision() -> str:
    return str(ONEDNN.matmul.fp32_precision)


def made(cls: type[Format]) -> Linear:
    f = cls.from_knobs(48, 64, density=0.25, kernel=_onednn.OneDnn.name)
    return f.random(dtype=torch.float32, generator=generator())


class Precisions(TorchDispatchMode):
    """The setting in force at each product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm"):
            self.seen.append(precision())
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    found = settings()
    yield
    assert restored(found) == []


@pytest.fixture
def before(request: pytest.FixtureRequest) -> Iterator[str]:
    """What somebody else set."""
    found = precision()
    ONEDNN.matmul.fp32_precision = request.param
    yield request.param
    ONEDNN.matmul.fp32_precision = found


LAYERS = pytest.mark.parametrize("cls", [*OFFERED, CLASSES["low_rank"]], ids=lambda c: c.name())


def test_formats_made_of_blocks_offer_it() -> None:
    assert {cls.name() for cls in OFFERED} >= {"monarch", "btt", "blast", "block_dense"}


@HERE
@LAYERS
@pytest.mark.parametrize("before", ["none", "ieee"], indirect=True)
def test_every_product_of_a_step_is_by_onednn_and_the_setting_is_put_back(
    cls: type[Format], before: str
) -> None:
    layer, x = made(cls), normal(_onednn.FEWEST_TOKENS, 64).requires_grad_()
    with Precisions() as forward:
        y = layer(x)
    assert precision() == before
    with Precisions() as backward:
        torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
    assert precision() == before
    assert set(forward.seen) == set(backward.seen) == {"bf16"}
    assert len(backward.seen) == 2 * len(forward.seen)


@HERE
@pytest.mark.parametrize("cls", OFFERED, ids=lambda c: c.name())
def test_below_sixteen_tokens_the_product_is_the_plain_one(cls: type[Format]) -> None:
    with Precisions() as seen:
        made(cls)(normal(_onednn.FEWEST_TOKENS - 1, 64))
    assert "bf16" not in seen.seen


@HERE
def test_a_call_that_raises_puts_the_setting_back() -> None:
    before = precision()
    with pytest.raises(RuntimeError):
        _onednn.by_onednn(torch.mm, normal(2, 3), normal(2, 3))
    assert precision() == before


def test_threads_that_overlap_put_back_what_was_there() -> None:
    """The one that leaves last does, whichever entered first."""
    before, inside, leave = precision(), threading.Event(), threading.Event()

    def other() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=_onednn.by_onednn, args=(other,))

    def first() -> None:
        thread.start()
        inside.wait()

    _onednn.by_onednn(first)
    assert precision() == "bf16"
    leave.set()
    thread.join()
    assert precision() == before


# --- refused in words ---------------------------------------------------------------------------


@pytest.fixture
def asked_anew() -> Iterator[None]:
    _onednn._refusal_here.cache_clear()
    yield
    _onednn._refusal_here.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_what_rounds_to_fewer_bits_is_refused_and_never_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with AMX: the product of bfloat16 is what torch then returns."""
    exact = torch.bmm

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        narrow = exact(left.bfloat16(), right.bfloat16()).to(left.dtype)
        return narrow if precision() == "bf16" else exact(left, right)

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "bmm", rounded)
    reason = _onednn.refusal("cpu", torch.float32)
    assert_sentence(reason)
    assert "fewer bits" in str(reason)
    for cls in OFFERED:
        with pytest.raises(UsageError, match="fewer bits"):
            made(cls)(normal(40, 64))
    layer, x = made(CLASSES["low_rank"]), normal(40, 64).requires_grad_()
    with Precisions() as seen:
        layer(x).sum().backward()
    assert "bf16" not in seen.seen


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("lacking", ["is_available", "_is_mkldnn_bf16_supported"])
def test_where_torch_has_no_way_to_it_that_is_said(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = torch.backends.mkldnn if lacking == "is_available" else torch.ops.mkldnn
    monkeypatch.setattr(owner, lacking, lambda: False)
    reason = _onednn.refusal("cpu", torch.float32)
    assert_sentence(reason)
    assert "does not run here" in str(reason)
    if lacking != "is_available":  # weights that are packed in advance are multiplied all the same
        assert str(reason).startswith("torch.mm by oneDNN ")


@pytest.mark.parametrize("cls", [*OFFERED, CLASSES["low_rank"]], ids=lambda c: c.name())
def test_other_devices_and_dtypes_are_refused(cls: type[Format]) -> None:
    f = cls.from_knobs(48, 64, density=0.25, kernel=_onednn.OneDnn.name)
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.bfloat16)):
        assert_sentence(f.unsupported(device, dtype, STEP))


@pytest.mark.parametrize("cls", OFFERED, ids=lambda c: c.name())
def test_a_layer_in_another_dtype_is_the_same_map(cls: type[Format]) -> None:
    layer = made(cls).double()
    x = normal(40, 64).double()
    assert_near(layer(x), x @ layer.to_dense().mT, torch.float64)
