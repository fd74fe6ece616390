"""Products compiled by the user's compiler: right at every size, built whole, refused in words."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _formats import CLASSES, assert_near, assert_right, assert_sentence, normal, random_layer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hwbench.errors import UsageError
from hwbench.formats import _block_matmul, _native
from hwbench.formats._base import FORWARD, STEP, Format
from hwbench.formats._two_stage import TwoStage
from hwbench.records import Status
from hwbench.store import read_run

OFFERED = [
    cls
    for cls in CLASSES.values()
    if any(isinstance(kernel, _native.Native) for kernel in cls.IMPLEMENTATIONS)
]
REFUSED = _native.refusal("cpu", torch.float32)
HERE = pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))
SHAPES = ((1, 1), (7, 5), (33, 17), (16, 48), (70, 100))
TOKENS = (0, 1, 2, 15, 16, 17, 40, 130)
EACH = pytest.mark.parametrize("cls", OFFERED, ids=lambda cls: cls.name())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def described(cls: type[Format], shape: tuple[int, int], **knobs: Any) -> Format:
    return cls.from_knobs(*shape, kernel=_native.Native.name, **knobs)


def settings(cls: type[Format]) -> Iterator[Format]:
    """A few of every shape: two densities, both orders of outputs, both dtypes of an index."""
    for shape in SHAPES:
        for density in (0.2, 1.0):
            try:
                f = described(cls, shape, density=density)
            except UsageError:
                continue  # it cannot be that small
            yield f
            for knob, values in {"order": ("strided",), "index_dtype": ("int64",)}.items():
                if knob in f.knobs():
                    yield from (dataclasses.replace(f, **{knob: value}) for value in values)


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_the_formats_that_gather_or_have_two_stages_offer_it() -> None:
    offered = {cls.name() for cls in OFFERED}
    assert offered == {"coo", "csr", "condensed", "low_rank_sparse", "btt", "monarch"}
    assert all(cls.KERNELS[0] != _native.Native.name for cls in OFFERED)


# --- right --------------------------------------------------------------------------------------


@HERE
@EACH
@DTYPES
def test_every_number_of_tokens_at_odd_sizes(
    cls: type[Format], dtype: torch.dtype, threads: int
) -> None:
    tried = 0
    for f in settings(cls):
        layer = random_layer(f, dtype)
        dense = layer.to_dense().detach().double()
        for tokens in TOKENS:
            x = normal(tokens, f.in_features).to(dtype)
            with torch.no_grad():
                y = layer(x)
            assert y.is_contiguous()
            assert_near(y, x.double() @ dense.mT, dtype, f"{f}, {tokens} tokens")
            tried += 1
    assert tried > 5 * len(TOKENS)


def at_the_end(values: Tensor) -> Tensor:
    """A copy that ends where the memory of the process ends: what reads on is killed."""
    size = values.numel() * values.element_size()
    readable = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, readable + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + readable), mmap.PAGESIZE, 0) == 0
    actual = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=readable - size)
    return actual.view(values.dtype).view(values.shape).copy_(values)


@HERE
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it maps memory as Linux does")
@EACH
@DTYPES
def test_nothing_beyond_an_operand_is_read(cls: type[Format], dtype: torch.dtype) -> None:
    layer = random_layer(described(cls, (33, 18), density=0.9), dtype)  # btt pads no 18
    for tokens in (1, 3, 17):
        x = normal(tokens, 18).to(dtype)
        with torch.no_grad():
            assert_near(layer(at_the_end(x)), layer(x), dtype)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        tensor.data = at_the_end(tensor.detach())
    with torch.no_grad():
        assert_near(layer(x), x.double() @ layer.to_dense().double().mT, dtype)


@HERE
def test_the_threads_are_those_of_torch_for_every_size(threads: int) -> None:
    for tokens, outputs in itertools.product((0, 1, 2, 40, 1000), (1, 2, 64)):
        vectors, width, parts, actual = _native._blocks(_native.library(), tokens, outputs)
        assert actual == threads
        assert 1 <= parts <= outputs
        assert width == max(1, vectors * _native.library().lanes)


def laid_out(x: Tensor) -> Iterator[Tensor]:
    """The same values, in memory in other ways."""
    yield x.t().contiguous().t()
    yield torch.cat([x, x], dim=1)[:, : x.shape[1]]
    yield x.repeat_interleave(2, dim=1)[:, ::2]


@HERE
@EACH
@DTYPES
def test_inputs_and_gradients_may_lie_in_memory_in_any_way(
    cls: type[Format], dtype: torch.dtype
) -> None:
    layer = random_layer(described(cls, (40, 24), density=0.5), dtype)
    x, dy = normal(50, 24).to(dtype), normal(50, 40, seed=3).to(dtype)
    for laid, dlaid in zip(laid_out(x), laid_out(dy), strict=True):
        assert torch.equal(laid, x)
        assert not laid.is_contiguous()
        assert_right(layer, laid, dlaid, STEP)
        assert_right(layer, laid, dlaid, FORWARD)
    spread = x[:1, :1].expand_as(x)
    assert_right(layer, spread, dy[:1, :1].expand_as(dy), STEP)
    assert_right(layer, x[:1].expand_as(x), dy, FORWARD)


@HERE
@EACH
def test_only_what_is_asked_for_is_differentiated(cls: type[Format]) -> None:
    layer = random_layer(described(cls, (40, 24), density=0.5))
    leaves = [normal(35, 24).requires_grad_(), *layer.parameters()]
    dy = normal(35, 40, seed=3)
    everything = torch.autograd.grad(layer(leaves[0]), leaves, dy)
    for expected_ in list(itertools.product([False, True], repeat=len(leaves)))[1:]:
        for leaf, need in zip(leaves, expected_, strict=True):
            leaf.requires_grad_(need)
        by = list(itertools.compress(leaves, expected_))
        ours = torch.autograd.grad(layer(leaves[0]), by, dy)
        for actual, expected in zip(ours, itertools.compress(everything, expected_), strict=True):
            assert_near(actual, expected, torch.float32)


@HERE
@pytest.mark.parametrize("name", ["coo", "csr", "low_rank_sparse"])
@DTYPES
def test_rows_without_entries_are_zero_or_stay(name: str, dtype: torch.dtype) -> None:
    f = dataclasses.replace(described(CLASSES[name], (40, 24), density=0.5), nonzeros=3)
    layer = random_layer(f, dtype)
    for tokens in (1, 20):
        x, dy = normal(tokens, 24).to(dtype), normal(tokens, 40, seed=3).to(dtype)
        assert_right(layer, x, dy, STEP)
    if name != "low_rank_sparse":
        assert int((layer(normal(20, 24).to(dtype)) != 0).any(0).sum()) <= 3


@HERE
@EACH
def test_the_gradient_of_entries_is_computed_in_both_ways(cls: type[Format]) -> None:
    f = described(cls, (40, 24), density=0.5)
    ways = ("dense", "sampled") if "gradient" in f.knobs() else (None,)
    for way in ways:
        g = f if way is None else dataclasses.replace(f, gradient=way)
        for tokens in (1, 20):
            assert_right(random_layer(g), normal(tokens, 24), normal(tokens, 40, seed=3), STEP)


@HERE
def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    """One entry a row, so that y is one product: the nearest, ties to even; NaN and ∞ stay."""
    special = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 3.0e38]).to(torch.bfloat16)
    nans = torch.tensor([0x7FC0, 0x7FFF, -1, 0x7F81], dtype=torch.int16).view(torch.bfloat16)
    x = torch.cat([nans, special, (normal(1018) * 1e3).to(torch.bfloat16)])[:, None]
    for value in (1.0, 1.5, 1.0078125, 3.4):  # of 1.5 many products lie half way
        weight = torch.tensor([value]).to(torch.bfloat16)
        ends, column = torch.tensor([0, 1]), torch.tensor([0])
        for some in (x, x[:1], x[11:12]):
            y = _native.entries(some, weight, ends, column)
            assert torch.equal(y.isnan(), some.isnan())
            exact = (some.float() * weight.float()).to(torch.bfloat16)
            assert torch.equal(y.nan_to_num(7.0), exact.nan_to_num(7.0))


@HERE
@pytest.mark.parametrize("change", ["data", "step"])
@EACH
def test_nothing_is_kept_of_a_weight(cls: type[Format], change: str) -> None:
    layer = random_layer(described(cls, (40, 24), density=0.5)).trust_versions()
    x = normal(20, 24)
    for number in range(3):
        for parameter in layer.parameters():
            target = parameter.data if change == "data" else parameter
            with torch.no_grad():
                target.add_(normal(*parameter.shape, seed=number))
        with torch.no_grad():
            assert_near(layer(x), x.double() @ layer.to_dense().double().mT, torch.float32)


@HERE
@DTYPES
def test_what_lies_between_two_products_is_kept_as_it_is(dtype: torch.dtype, threads: int) -> None:
    for f in (f for cls in OFFERED if issubclass(cls, TwoStage) for f in settings(cls)):
        layer: Any = random_layer(f, dtype)
        first, _ = layer.factors()  # (k, l, t, p)
        for tokens in TOKENS:
            x = layer.padded(normal(tokens, f.in_features).to(dtype))
            factors = (x, layer.first.detach(), layer.second.detach(), layer.strided)
            y, z = _native.two_stage_kept(*factors)
            assert torch.equal(y, _native.two_stage(*factors))
            groups = x.double().unflatten(1, (first.shape[0], -1))
            made = torch.einsum("bkp,kltp->lbkt", groups, first.detach().double())
            assert_near(z, made.flatten(2), dtype, f"{f}, {tokens} tokens")


@HERE
@pytest.mark.parametrize("cls", [c for c in OFFERED if issubclass(c, TwoStage)])
def test_a_step_keeps_what_lies_between_unless_it_is_large(
    cls: type[Format], monkeypatch: pytest.MonkeyPatch
) -> None:
    f = described(cls, (40, 24), density=0.5)
    layer, x, dy = random_layer(f), normal(50, 24), normal(50, 40, seed=3)
    made, kept, executed = 2 * 50 * f.products()[0], [], []
    expected = [x.requires_grad_(), *layer.parameters()]
    for limit in (2**20, 100):
        for name in ("WHOLE_VALUES", "RUN_VALUES"):
            monkeypatch.setattr(_block_matmul, name, limit)
        y = layer(x)
        saved = [t for t in y.grad_fn.saved_tensors if t is not None]  # type: ignore[union-attr]
        kept.append(len(saved))
        executed.append(f.flops(50, STEP))
        for actual, right in zip(
            torch.autograd.grad(y, expected, dy),
            torch.autograd.grad(x @ layer.to_dense().mT, expected, dy),
            strict=True,
        ):
            assert_near(actual, right, torch.float32)
    assert kept == [4, 3]
    assert executed == [3 * f.flops(50, FORWARD), 3 * f.flops(50, FORWARD) + made]


class Seen(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@HERE
@EACH
def test_a_profile_shows_the_operator_that_the_kernel_names(cls: type[Format]) -> None:
    f = described(cls, (40, 24), density=0.5)
    layer, x = random_layer(f), normal(20, 24)
    for direction in (FORWARD, STEP):
        with Seen() as seen, torch.set_grad_enabled(direction == STEP):
            layer(x)
        assert any(re.match(f.implementation.operators, name) for name in seen.names), direction


@HERE
@EACH
def test_it_can_be_traced_without_being_run(cls: type[Format]) -> None:
    layer = random_layer(described(cls, (40, 24), density=0.5)).requires_grad_(False)
    graph = torch.export.export(layer, (normal(20, 24),)).graph
    assert any("hwbench.native" in str(node.target) for node in graph.nodes)


# --- refused in words ---------------------------------------------------------------------------


@EACH
def test_other_devices_and_dtypes_are_refused(cls: type[Format]) -> None:
    f = described(cls, (48, 64), density=0.25)
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float16), ("cpu", torch.float64)):
        assert_sentence(f.unsupported(device, dtype, FORWARD))


@HERE
@EACH
def test_what_it_does_not_multiply_is_not_computed(cls: type[Format]) -> None:
    layer = random_layer(described(cls, (40, 24), density=0.5)).double()
    with pytest.raises(UsageError, match="float32 and bfloat16 only"):
        layer(normal(20, 24).double())


@pytest.fixture
def built_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _native._built.cache_clear()
    yield tmp_path / "cache/hwbench/cpp"
    _native._built.cache_clear()


class Compiler:
    """What the compiler is asked, and what it answers; it writes a file if it succeeds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stderr: str = "", code: int = 0) -> None:
        self.calls: list[list[str]] = []
        self.folders: list[Path] = []
        self.stderr, self.code, self.found = stderr, code, "/usr/bin/env"
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(shutil, "which", self.which)
        self.searched: list[tuple[str, str]] = []

    def which(self, name: str, path: str) -> str | None:
        self.searched.append((name, path))
        return self.found or None

    def run(self, command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        self.folders.append(Path(how["cwd"]))
        assert list(Path(how["cwd"]).iterdir()) == []
        Path(command[command.index("-o") + 1]).write_text("part")
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


def test_no_compiler_is_said(built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Compiler(monkeypatch).found = ""
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    reason = _native.refusal("cpu", torch.float32)
    assert_sentence(reason)
    assert "no C++ compiler" in str(reason)
    with pytest.raises(UsageError, match="no C\\+\\+ compiler"):
        _native.library()
    assert not built_anew.exists()


WITHOUT = """
schema = 1
name = "native"
[plan]
replicates = 1
budget_seconds = 0.005
[[cases]]
workload = "linear"
direction = "forward"
shape = [48, 64]
tokens = 4
dtype = "float32"
format = [
  { name = "dense" },
  { name = "csr", density = [0.5, 0.25], kernel = "native" },
  { name = "btt", density = 0.5, kernel = "native" },
]
[[cases]]
workload = "projection"
shape = [48, 64]
format = [{ name = "csr", density = [0.5, 0.25] }]
"""


@pytest.mark.heavy
@pytest.mark.usefixtures("workers")
def test_a_run_without_a_compiler_times_what_it_can_and_says_why_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hwbench: Callable[..., tuple[int, str, str]]
) -> None:
    reason = _native.NotBuiltError("there is no C++ compiler; install g++.")
    monkeypatch.setattr(_native, "_built", lambda: reason)
    (tmp_path / "native.toml").write_text(WITHOUT)
    arguments = (
        "run",
        "--suite",
        str(tmp_path / "native.toml"),
        "--device",
        "cpu",
        "--threads",
        "1",
    )
    code, out, err = hwbench(*arguments, "--out", str(tmp_path / "runs"))
    assert code == 0, err
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    statuses = {r.case: r.status for r in read_run(path).results if r.case.startswith("linear")}
    assert {case for case, s in statuses.items() if s is Status.UNSUPPORTED} == {
        case for case in statuses if "kernel=native" in case
    }
    assert len(statuses) == 4
    assert (out + err).count("there is no C++ compiler") == 1


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    built_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "In file included from x:\nlanes.h:3:1: error: no such header.\nmore\nlanes.h: error: 2\n"
    )
    Compiler(monkeypatch, words, code=1)
    reason = str(_native.refusal("cpu", torch.float32))
    assert_sentence(reason)
    assert reason.endswith("failed: lanes.h:3:1: error: no such header.")
    assert list(built_anew.iterdir()) == []


def test_a_compiler_that_never_ends_is_stopped(
    built_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    Compiler(monkeypatch)
    monkeypatch.setattr(subprocess, "run", endless)
    reason = _native.refusal("cpu", torch.float32)
    assert_sentence(reason)
    assert "120 seconds" in str(reason)
    assert list(built_anew.iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_named(
    built_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Compiler(monkeypatch)
    reason = _native.refusal("cpu", torch.float32)
    assert_sentence(reason)
    assert f"{built_anew}/" in str(reason)
    assert "cannot be loaded" in str(reason)


def test_a_cache_that_cannot_be_written_is_named(
    built_anew: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Compiler(monkeypatch)
    (tmp_path / "cache").write_text("a file")
    assert_sentence(_native.refusal("cpu", torch.float32))


@pytest.mark.usefixtures("built_anew")
def test_a_cache_in_the_current_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    reason = _native.refusal("cpu", torch.float32)
    assert_sentence(reason)
    assert "no absolute path" in str(reason)
    assert compiler.calls == []


# --- built once, from nothing of the current folder -----------------------------------------------


@pytest.mark.usefixtures("built_anew")
def test_nothing_of_the_current_folder_is_run_or_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = Compiler(monkeypatch)
    (tmp_path / "c++").write_text("#!/bin/sh\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([".", "", "bin", "/usr/bin"]))
    monkeypatch.setenv("CXX", "./c++ -O0")
    _native.built()
    assert compiler.searched == [("c++", "/usr/bin")]
    ((program, *_, out),) = compiler.calls
    assert Path(program).is_absolute()
    assert Path(out).is_absolute()
    assert compiler.folders[0] not in (tmp_path, *tmp_path.parents)
    sources = [part for part in compiler.calls[0] if part.endswith(".cpp")]
    assert len(sources) == 2
    assert all(Path(source).is_absolute() for source in sources)


@pytest.mark.usefixtures("built_anew")
def test_the_compiler_that_cxx_names_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    monkeypatch.setenv("CXX", "clang++-19 -stdlib=libc++")
    path = _native.built()
    assert compiler.searched[0][0] == "clang++-19"
    assert compiler.calls[0][1] == "-stdlib=libc++"
    assert _native.built() == path
    assert len(compiler.calls) == 1


@pytest.mark.usefixtures("built_anew")
@pytest.mark.parametrize("other", ["processor", "torch", "compiler", "options", "sources"])
def test_another_machine_or_compiler_has_a_library_of_its_own(
    other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = Compiler(monkeypatch)
    first = _native.built()
    if other == "processor":
        monkeypatch.setattr(_native.environment, "instruction_sets", lambda: "fpu")
    elif other == "torch":
        monkeypatch.setattr(torch, "__version__", "3.0")
    elif other == "compiler":
        compiler.found = "/bin/sh"
    elif other == "options":
        monkeypatch.setenv("CXX", "c++ -fno-plt")
    else:
        shutil.copytree(_native.SOURCES, tmp_path / "cpp")
        (tmp_path / "cpp/lanes.h").write_text("changed")
        monkeypatch.setattr(_native, "SOURCES", tmp_path / "cpp")
    assert _native.built() != first
    assert len(compiler.calls) == 2


def test_two_that_build_at_once_leave_one_whole_library(
    built_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are within the compiler at the same time; each writes beside, and the last one stays."""
    compiler, both, paths = Compiler(monkeypatch), threading.Barrier(2, timeout=10), []
    written = compiler.run

    def together(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        done = written(command, **how)
        assert not list(built_anew.glob("[!.]*"))
        both.wait()
        return done

    monkeypatch.setattr(subprocess, "run", together)
    builders = [threading.Thread(target=lambda: paths.append(_native.built())) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert paths[0] == paths[1]
    assert len({call[-1] for call in compiler.calls}) == 2
    assert list(built_anew.iterdir()) == [paths[0]]


def test_the_sources_are_short_and_include_nothing_of_torch() -> None:
    files = sorted(_native.SOURCES.iterdir())
    assert [file.name for file in files] == ["entries.cpp", "lanes.h", "two_stage.cpp"]
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 200
        assert all(len(line) <= 100 for line in lines)
        included = [line for line in lines if line.startswith("#include")]
        assert not any("torch" in line or "ATen" in line for line in included)
