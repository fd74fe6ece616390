"""Every operator that the formats ask of CUDA exists there in the dtype, for each torch supported.

tests/cuda_operators.toml is the table; ``_operators`` says what is seen and what is not.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from _formats import CLASSES
from _operators import LIBRARIES, Found, Operators, on_meta, operators, pretend
from torch.torch_version import TorchVersion

from hwbench import plugins, suite
from hwbench.errors import KnobError, UnreachableError
from hwbench.formats import _versions
from hwbench.formats._base import FORWARD, STEP, Format, Linear
from hwbench.workloads._base import DTYPES

TABLE = tomllib.loads((Path(__file__).parent / "cuda_operators.toml").read_text(encoding="utf-8"))
VERSIONS = ("2.11.0", "2.12.0", "2.13.0")
SIDE, TOKENS = 1024, (1, 64)  # fewer and more than where the kernels of blocks change their layout
SMALL = 128
Case = tuple[Format, str, str]  # with dtype and direction


def suites() -> Iterator[Case]:
    """The timed cases of every shipped suite on CUDA, on a small layer."""
    for name in suite.names():
        for case in suite.build(suite.read(name), "cuda").cases:
            kind = plugins.load("formats", case.format, Format)
            if case.workload == "linear":
                with suppress(UnreachableError):  # a density that only larger layers can have
                    f = kind.from_knobs(SIDE, SIDE, **case.knobs).on("cuda")
                    yield f, case.dtype, str(case.direction)


def others() -> Iterator[Case]:
    """Every format, kernel and way of computing a gradient, whether or not a suite has it."""
    for kind in CLASSES.values():
        ways: list[dict[str, Any]] = [{"kernel": kernel} for kernel in kind.KERNELS]
        if "gradient" in kind.knob_names():
            ways += [{"kernel": "gather", "gradient": way} for way in ("dense", "sampled")]
        for way in ways:
            for density in ({"density": 0.1}, {"density": 0.5}, {}):
                with suppress(KnobError):
                    f = kind.from_knobs(SMALL, SMALL, **way, **density).on("cuda")
                    for dtype in ("float32", "bfloat16", "float16"):
                        yield from ((f, dtype, direction) for direction in (FORWARD, STEP))


def lacking(version: str) -> Found:
    """What the table says that CUDA does not have yet in that version of torch."""
    gaps = TABLE["since"]
    return {(g["operator"], g["dtype"]) for g in gaps if TorchVersion(version) < g["torch"]}


def known() -> Found:
    every = {(name, dtype) for name, dtypes in TABLE["always"].items() for dtype in dtypes}
    return every | {(g["operator"], g["dtype"]) for g in TABLE["since"]}


Asked = dict[str, dict[tuple[str, str], str]]
"""By version of torch: operator and dtype, each with a case that asks for it."""


def asked(cases: Iterator[Case]) -> Asked:
    actual: Asked = {version: {} for version in VERSIONS}
    layers: dict[tuple[Format, str], Linear] = {}
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, seen := Operators())
        for f, dtype, direction in dict.fromkeys(cases):
            if f.kernel in LIBRARIES or f.unsupported("cuda", DTYPES[dtype], direction):
                continue
            if (f, dtype) not in layers:
                layers[f, dtype] = on_meta(f, DTYPES[dtype])
            for version, tokens in itertools.product(VERSIONS, TOKENS):
                patch.setattr(_versions, "VERSION", TorchVersion(version))
                for pair in operators(layers[f, dtype], tokens, direction, seen):
                    actual[version].setdefault(pair, f"{direction} of {f} in {dtype}")
    return actual


@pytest.fixture(scope="module")
def of_suites() -> Asked:
    return asked(suites())


@pytest.fixture(scope="module")
def of_others() -> Asked:
    return asked(others())


def missing(found: Asked, version: str) -> dict[tuple[str, str], str]:
    there = known() - lacking(version)
    return {pair: case for pair, case in found[version].items() if pair not in there}


@pytest.mark.heavy
@pytest.mark.parametrize("version", VERSIONS)
def test_cuda_has_what_the_suites_ask_for(version: str, of_suites: Asked) -> None:
    assert ("aten::mm", "bfloat16") in of_suites[version]
    assert not missing(of_suites, version)


@pytest.mark.heavy
@pytest.mark.parametrize("version", VERSIONS)
def test_cuda_has_what_any_format_asks_for(version: str, of_others: Asked) -> None:
    assert not missing(of_others, version)


@pytest.mark.heavy
@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.13", reason="it may split calls otherwise")
def test_the_table_holds_nothing_that_no_format_asks_for(
    of_suites: Asked, of_others: Asked
) -> None:
    """Else it would look like knowledge, and nothing would ever hold it against anything."""
    every = {pair for each in (of_suites, of_others) for pairs in each.values() for pair in pairs}
    assert every == known()


def test_what_came_later_is_told_with_its_source() -> None:
    for gap in TABLE["since"]:
        assert "pytorch#" in gap["source"]
        assert gap["dtype"] not in TABLE["always"].get(gap["operator"], [])
        assert TorchVersion(VERSIONS[0]) < gap["torch"]  # what came before that is no exception


@pytest.mark.cuda
def test_the_table_is_right_of_this_device() -> None:
    """What is asked for by name exists, or is missing as the table says."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        entry = torch.zeros(1, dtype=torch.int64, device="cuda")
        rows = torch.ones(2, 8, dtype=dtype, device="cuda")
        name = "aten::_embedding_bag_per_sample_weights_backward"
        call = torch.ops.aten._embedding_bag_per_sample_weights_backward
        if (name, str(dtype).removeprefix("torch.")) in lacking(torch.__version__):
            with pytest.raises(NotImplementedError):
                call(rows, rows, entry, entry, entry, 0)
        else:
            assert float(call(rows, rows, entry, entry, entry, 0)) == 8
