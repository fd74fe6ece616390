"""Every promise on every device that is present: a new one is tested without a line here."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest
import torch

from hwbench import plugins
from hwbench.devices._base import Device


@pytest.mark.parametrize("name", plugins.names("devices"))
def test_a_file_is_a_device_with_a_kind_and_a_contract(name: str) -> None:
    device = plugins.load("devices", name, Device)
    assert device.kind == name
    assert device.contract
    assert device.missing().endswith(".")


def test_the_contracts_of_our_own_devices() -> None:
    contracts = [plugins.load("devices", name, Device).contract for name in ("cpu", "cuda")]
    assert contracts == ["wall", "event"]


def _present() -> dict[str, type[Device]]:
    """The devices of this machine; those of CUDA have tests of their own."""
    collected = {}
    for name in plugins.names("devices"):
        with suppress(Exception):  # the test above fails on it, with the reason
            if name != "cuda" and (kind := plugins.load("devices", name, Device)).count():
                collected[name] = kind
    return collected


each_device = pytest.mark.parametrize(
    "make", [pytest.param(d, id=n) for n, d in _present().items()]
)


@each_device
def test_what_is_told_of_a_device_can_be_stored(make: Callable[[], Device]) -> None:
    device = make()
    result = [device.info(), device.state(), device.settings(), device.probe()]
    assert json.loads(msgspec.json.encode(result)) == result
    assert device.info()["name"]
    assert device.info() == make().info()
    assert isinstance(device.capture(lambda: None), str) or callable(device.capture(lambda: None))
    assert isinstance(device.energy_joules(), str | float)


@each_device
def test_run_calls_the_step_with_a_state(make: Callable[[], Device]) -> None:
    recorded: list[int] = []
    make().run(recorded.append, [3])
    assert recorded == [3]


@each_device
def test_marks_lie_around_what_is_timed(make: Callable[[], Device]) -> None:
    device, step = make(), lambda _: sum(range(20_000))
    device.evict_caches()
    start = device.mark()
    device.run(step, [None] * 20)
    assert device.seconds(start, device.mark()) > device.resolution_seconds > 0
    assert device.seconds(start, start) == 0


@each_device
def test_what_disturbs_is_told_in_words(make: Callable[[], Device]) -> None:
    device = make()
    before = device.probe()
    assert all(isinstance(value, float) for value in before.values())
    causes = device.disturbance(before, device.probe(), 1.0)
    assert isinstance(causes, list)
    assert all(cause.strip() for cause in causes)


@each_device
def test_memory_is_counted_in_bytes(make: Callable[[], Device]) -> None:
    device, called = make(), []
    assert device.free_bytes() > 0
    assert device.peak_bytes(lambda: called.append(torch.ones(1000).clone())) > 0
    assert len(called) == 1


@each_device
def test_data_are_drawn_on_the_device(make: Callable[[], Device]) -> None:
    where = make().torch_device
    first, again = (
        torch.randn(3, generator=torch.Generator(where).manual_seed(1), device=where)
        for _ in range(2)
    )
    assert torch.equal(first, again)
