"""The Triton kernels without a GPU: interpreted, or compiled for a device that is absent.

Triton reads TRITON_INTERPRET once, when it is imported, and then for the whole process. So what
needs it runs in a process of its own, which gets its functions from this file.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import metadata
from typing import Any

import torch
from _formats import assert_near, assert_right, drawn, generator, observe, random_layer, relative
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwbench.formats._base import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, STEP, Format

INTERPRETS = "3.7"  # the first triton whose interpreter works with numpy 2.4
SHARED_BYTES = 99 * 1024  # of a block on devices of compute capability 8.6, 8.9 and 12.0


@contextmanager
def process(**environment: str) -> Iterator[ProcessPoolExecutor]:
    """A fresh process with these variables; what a call raises there is raised here."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, initializer=_begin, initargs=(environment,)) as p:
        yield p


def _begin(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # new memory holds NaN


# --- interpreted -------------------------------------------------------------------------------


def interprets() -> bool:
    """Whether there is a triton whose interpreter works with every numpy that hwbench takes."""
    try:
        return TorchVersion(metadata.version("triton")) >= INTERPRETS
    except metadata.PackageNotFoundError:
        return False


def interpreted() -> bool:
    from hwbench.formats import _fused

    return bool(_fused._INTERPRETED)


def product(f: Format, dtype: torch.dtype, tokens: int, programs: int = 256) -> None:
    """A step of a random layer; ``programs`` decides on its tiles."""
    from hwbench.formats import _fused

    _fused.PROGRAMS = programs  # few are wanted: tiles are large, and output groups go together
    layer = random_layer(f, dtype)
    x, dy = drawn(tokens, f.in_features, dtype=dtype), drawn(tokens, f.out_features, dtype=dtype)
    assert_right(layer, x, dy, STEP)


def directions(f: Format, dtype: torch.dtype) -> None:
    """None, and each gradient alone; x and dy that do not lie row by row, and x of more axes."""
    layer = random_layer(f, dtype)
    x, dy = drawn(6, f.in_features, dtype=dtype), drawn(6, f.out_features, seed=2, dtype=dtype)
    for direction in (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT):
        assert_right(layer, x, dy, direction)
    assert_right(layer, x.mT.contiguous().mT, dy.mT.contiguous().mT, STEP)
    assert_right(layer, x, dy[:1, :1].expand_as(dy), STEP)
    for name, parameter in layer.named_parameters():
        layer.requires_grad_(False)
        parameter.requires_grad_(True)
        exact = torch.autograd.grad(layer.to_dense() @ x.mT, parameter, dy.mT)[0]
        ours = torch.autograd.grad(layer(x), parameter, dy)[0]
        assert relative(ours, exact) < 1e-5, name
    with torch.inference_mode():
        assert_near(layer(x), x @ layer.to_dense().mT, dtype)
    assert torch.equal(layer(x.view(2, 3, -1)), layer(x).view(2, 3, -1))


def compiled(f: Format) -> None:
    """torch.compile takes the layer whole, and computes the same."""
    layer = random_layer(f, torch.float32)
    x, dy = drawn(40, f.in_features).float(), drawn(40, f.out_features, seed=2).float()
    whole = torch.compile(layer, dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(whole(x), layer(x))
    by = list(layer.parameters())
    for ours, exact in zip(
        *(torch.autograd.grad(m(x), by, dy) for m in (whole, layer)), strict=True
    ):
        assert torch.equal(ours, exact)


class _Written(TorchDispatchMode):
    """Elements of new memory that a call asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        given = {t.untyped_storage().data_ptr() for t in leaves if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.elements += tensor.untyped_storage().nbytes() // tensor.element_size()
        return result


def written(f: Format, tokens: int) -> int:
    """How many elements the forward pass writes, y and every copy among them."""
    layer = random_layer(f, torch.bfloat16)
    x, dy = drawn(tokens, f.in_features).bfloat16(), drawn(tokens, f.out_features).bfloat16()
    torch.use_deterministic_algorithms(mode=False)  # filling new memory is no work of the kernel
    observe(mode := _Written(), layer, x, dy, FORWARD)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    return mode.elements


def refusals() -> list[str | None]:
    """What the small products say of kernels that are right; of "cuda" the CPU takes the place."""
    from hwbench.formats import _fused

    to = Tensor.to
    Tensor.to = lambda self, *args: to(self, *(a for a in args if a != "cuda"))  # type: ignore[method-assign]
    try:
        right = [_fused.refusal.__wrapped__(d) for d in (torch.float32, torch.bfloat16)]
        _fused.two_stage, kept = (lambda *_: torch.ones(20, 64)), _fused.two_stage
        wrong = _fused.refusal.__wrapped__(torch.float32)
        _fused.two_stage = kept
    finally:
        Tensor.to = to  # type: ignore[method-assign]
    return [*right, wrong]


# --- compiled for a device that is absent ------------------------------------------------------


def shared_bytes(f: Format, dtype: torch.dtype, tokens: int, capability: int) -> dict[str, int]:
    """Compile what a forward call would launch; the shared memory of each kernel."""
    from hwbench.formats import _fused

    collected: dict[str, int] = {}
    names = ("_two_stage", "_enter_grouped", "_leave_coupled")
    kernels = {name: getattr(_fused, name) for name in names}
    on, _fused._on = _fused._on, lambda x: nullcontext()
    try:
        for name, kernel in kernels.items():
            setattr(_fused, name, _Compiler(kernel, capability, collected))
        layer = f.random(dtype=dtype, generator=generator())
        with torch.no_grad():
            layer(torch.zeros(tokens, f.in_features, dtype=dtype))
    finally:
        _fused._on = on
        for name, kernel in kernels.items():
            setattr(_fused, name, kernel)
    return collected


class _Compiler:
    """Takes the place of a kernel: a launch compiles it for the arguments, and nothing runs."""

    def __init__(self, kernel: Any, capability: int, found: dict[str, int]) -> None:
        self.kernel, self.capability, self.found = kernel, capability, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *args: Any, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        signature, attributes = dict.fromkeys(constants, "constexpr"), {}
        for place, (name, value) in enumerate(zip(self.kernel.arg_names, args, strict=False)):
            if isinstance(value, Tensor):
                signature[name] = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}[
                    str(value.dtype).removeprefix("torch.")
                ]
            else:
                signature[name] = "constexpr" if value == 1 else "i32"
                if value == 1:
                    constants[name] = value
            if isinstance(value, Tensor) or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        ordered = {name: signature[name] for name in self.kernel.arg_names}
        source = ASTSource(self.kernel, signature=ordered, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", self.capability, 32)
        binary = triton.compile(source, target=target, options=options)
        self.found[self.kernel.__name__] = binary.metadata.shared
