"""Products for CPUs in C++, compiled for the processor that is here when one is first asked for.

The sources lie in the folder ``cpp``; they include nothing of torch, so that any C++17 compiler
with OpenMP builds them in seconds. The compiler is the one that ``CXX`` names, else ``c++``,
``g++`` or ``clang++``, looked for in folders of absolute paths only; it runs in an empty folder, so
that nothing of the current one is read. The library lies in hwbench's cache under a name that tells
sources, compiler, options, processor and PyTorch. It is written whole: of two processes that
build at once each leaves the same library, and neither loads a part of one.

Sums are in float32 in every dtype, and nothing is rounded between two products. Every tensor is
read as it is, so that a layer keeps nothing beside its parameters and its pattern.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from ctypes import c_int, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwbench import environment, files
from hwbench.errors import HwbenchError, UsageError, first_line
from hwbench.formats._kernel import Kernel

SOURCES = Path(__file__).with_name("cpp")

COMPILERS = ("c++", "g++", "clang++")

LONGEST = 120
"""Seconds that a compiler may take."""

BETWEEN_BYTES = 2**17
"""Bytes of the intermediate of two products made at a time: an eighth of a second-level cache."""

ROWS_AT_ONCE = 8
"""Rows of a narrow weight that ``two_stage.cpp`` widens at a time."""

_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "hwbench_entries": (
        *(c_int, c_int, c_int, c_void_p, c_ssize_t, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_ssize_t, c_ssize_t, c_ssize_t, c_int, c_ssize_t, c_int, c_void_p),
    ),
    "hwbench_two_stage": (
        *(c_int, c_int, c_void_p, c_ssize_t, c_void_p, c_void_p, c_void_p),
        *(c_ssize_t, c_ssize_t, c_ssize_t, c_ssize_t, c_ssize_t, c_ssize_t),
        *(c_int, c_ssize_t, c_ssize_t, c_int, c_void_p, c_void_p, c_ssize_t),
    ),
    "hwbench_lanes": (),
    "hwbench_most_vectors": (),
}


class NotBuiltError(HwbenchError):
    """Why there is no library."""


# --- the library -------------------------------------------------------------------------------


class Library:
    """The compiled functions.

    Raises:
        NotBuiltError: there is no compiler, it fails, or its library cannot be kept or loaded.
    """

    def __init__(self) -> None:
        path = built()
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NotBuiltError(f"{path} cannot be loaded: {first_line(error)}.") from error
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        self.entries, self.two_stage = library.hwbench_entries, library.hwbench_two_stage
        self.lanes = int(library.hwbench_lanes())
        self.most_vectors = int(library.hwbench_most_vectors())


def built() -> Path:
    """The library, compiled if it is not in the cache.

    Raises:
        NotBuiltError: there is no compiler, it fails, or its library cannot be kept.
    """
    compiler = _compiler()
    tuned = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    options = ["-std=c++17", "-O3", tuned, "-fopenmp", "-fPIC", "-shared"]
    folder = environment.cache_folder() / "cpp"
    if not folder.is_absolute():
        raise NotBuiltError(f"the cache {folder} is no absolute path; set XDG_CACHE_HOME to one.")
    path = folder / f"{_key([*compiler, *options])}.so"
    if path.exists():
        return path
    try:
        with files.whole(path) as written:
            sources = [str(file) for file in sorted(SOURCES.glob("*.cpp"))]
            _compile([*compiler, *options, *sources, "-o", str(written)])
    except OSError as error:
        raise NotBuiltError(f"{folder} cannot be written: {error.strerror}.") from error
    return path


def _compiler() -> list[str]:
    """The compiler by its absolute path, and the options that ``CXX`` may hold."""
    folders = [
        f for f in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(f).is_absolute()
    ]
    named = [shlex.split(os.environ.get("CXX", "")), *([name] for name in COMPILERS)]
    for name, *options in filter(None, named):
        if os.sep in name and not Path(name).is_absolute():
            continue
        if path := shutil.which(name, path=os.pathsep.join(folders)):
            return [path, *options]
    raise NotBuiltError(
        "there is no C++ compiler; install g++ (on Debian: apt install g++), or name one in CXX."
    )


def _key(command: list[str]) -> str:
    """The name of a library: a hash of all that it is made from and for."""
    compiler = Path(command[0]).stat()
    parts = [*command, str(compiler.st_size), str(compiler.st_mtime_ns), torch.__version__]
    parts += [platform.machine(), str(environment.cpu_facts()), environment.instruction_sets()]
    digest = hashlib.sha256("\0".join(parts).encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _compile(command: list[str]) -> None:
    """Run the compiler in an empty folder."""
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command,
                cwd=empty,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotBuiltError(f"{command[0]} took over {LONGEST} seconds.") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), "".join(lines[-1:]))
        reason = reason or f"exit code {done.returncode}"
        raise NotBuiltError(f"{command[0]} failed: {reason.rstrip('.')}.")


@cache
def _built() -> Library | NotBuiltError:
    try:
        return Library()
    except NotBuiltError as reason:
        return reason


def library() -> Library:
    """The compiled functions, built where they are not yet.

    Raises:
        UsageError: they cannot be.
    """
    built = _built()
    if isinstance(built, NotBuiltError):
        raise UsageError(_sentence(built)) from built
    return built


def refusal(device: str, dtype: torch.dtype) -> str | None:
    """Why there is no product of such values there, or None where there is."""
    if device != "cpu":
        return "A native kernel is compiled for the CPU, and there is none for other devices."
    if dtype not in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        return f"A native kernel multiplies float32 and bfloat16 only, not {name}."
    built = _built()
    return _sentence(built) if isinstance(built, NotBuiltError) else None


def _sentence(reason: NotBuiltError) -> str:
    return f"A native kernel does not run here: {reason}"


# --- the operators -----------------------------------------------------------------------------

OPERATORS = torch.library.Library("hwbench", "FRAGMENT")
OPERATORS.define("native_entries(Tensor x, Tensor values, Tensor starts, Tensor columns) -> Tensor")
OPERATORS.define(
    "native_entries_(Tensor(a!) y, Tensor x, Tensor values, Tensor starts, Tensor columns) -> ()"
)
OPERATORS.define("native_two_stage(Tensor x, Tensor first, Tensor second, bool strided) -> Tensor")
OPERATORS.define(
    "native_two_stage_kept(Tensor x, Tensor first, Tensor second, bool strided) -> (Tensor, Tensor)"
)


def entries(x: Tensor, values: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """x Wᵀ, contiguous (tokens, rows of W), for a W of compressed rows.

    Args:
        x: (tokens, in_features), float32 or bfloat16.
        values: (nonzeros,), in the dtype of x.
        starts: (rows + 1,), the first entry of each row, and the number of entries.
        columns: (nonzeros,), in the same integer dtype.
    """
    y: Tensor = torch.ops.hwbench.native_entries(x, values, starts, columns)
    return y


def add_entries(y: Tensor, x: Tensor, values: Tensor, starts: Tensor, columns: Tensor) -> None:
    """Add x Wᵀ to a contiguous y, in place; see ``entries``."""
    torch.ops.hwbench.native_entries_(y, x, values, starts, columns)


def two_stage(x: Tensor, first: Tensor, second: Tensor, strided: bool) -> Tensor:
    """x Wᵀ: (tokens, k · p), (k, l·t, p) and (l, s, k·t) → (tokens, l · s).

    ``strided`` says that entry s of output group l is feature s · l_count + l.
    """
    y: Tensor = torch.ops.hwbench.native_two_stage(x, first, second, strided)
    return y


def two_stage_kept(
    x: Tensor, first: Tensor, second: Tensor, strided: bool
) -> tuple[Tensor, Tensor]:
    """The same, and what lies between the products: (l, tokens, k · t), in the dtype of x."""
    y, z = torch.ops.hwbench.native_two_stage_kept(x, first, second, strided)
    return y, z


def _entries(x: Tensor, values: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], starts.numel() - 1)
    _multiply_entries(y, x, values, starts, columns, add=False)
    return y


def _add_entries(y: Tensor, x: Tensor, values: Tensor, starts: Tensor, columns: Tensor) -> None:
    _multiply_entries(y, x, values, starts, columns, add=True)


def _multiply_entries(
    y: Tensor, x: Tensor, values: Tensor, starts: Tensor, columns: Tensor, *, add: bool
) -> None:
    native, x = library(), _rows(x)
    values, starts, columns = values.contiguous(), starts.contiguous(), columns.contiguous()
    (tokens, inputs), outputs = x.shape, y.shape[1]
    vectors, width, parts, threads = _blocks(native, tokens, outputs)
    scratch = x.new_empty(threads * (inputs + native.lanes) * width, dtype=torch.float32)
    native.entries(
        *(_narrow(x), columns.dtype == torch.int64, vectors, x.data_ptr(), x.stride(0)),
        *(values.data_ptr(), starts.data_ptr(), columns.data_ptr(), y.data_ptr()),
        *(tokens, inputs, outputs, add, parts, threads, scratch.data_ptr()),
    )


def _two_stage(x: Tensor, first: Tensor, second: Tensor, strided: bool) -> Tensor:
    return _multiply_two_stage(x, first, second, strided, keep=False)[0]


def _two_stage_kept(
    x: Tensor, first: Tensor, second: Tensor, strided: bool
) -> tuple[Tensor, Tensor]:
    y, intermediate = _multiply_two_stage(x, first, second, strided, keep=True)
    z = intermediate.permute(1, 2, 0, 3).flatten(2)[..., : x.shape[0]]  # (l, k·t, tokens)
    return y, z.to(x.dtype).mT


def _multiply_two_stage(
    x: Tensor, first: Tensor, second: Tensor, strided: bool, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """y, and (blocks of tokens, l, k · t, tokens of a block) float32, empty where not kept."""
    native, x, first, second = library(), _rows(x), first.contiguous(), second.contiguous()
    (in_blocks, pairs, in_side), (out_blocks, out_side, between) = first.shape, second.shape
    y = x.new_empty(x.shape[0], out_blocks * out_side)
    vectors, width, parts, threads = _blocks(native, x.shape[0], out_blocks)
    groups = -(-out_blocks // parts)
    together = groups if keep else min(groups, max(1, BETWEEN_BYTES // (4 * between * width)))
    blocks = -(-x.shape[0] // width) if keep else 0
    intermediate = x.new_empty(blocks, out_blocks, between, width, dtype=torch.float32)
    each = (in_blocks * in_side + (0 if keep else together * between) + groups * out_side) * width
    each += ROWS_AT_ONCE * max(in_side, between)
    scratch = x.new_empty(threads * each, dtype=torch.float32)
    native.two_stage(
        *(_narrow(x), vectors, x.data_ptr(), x.stride(0), first.data_ptr(), second.data_ptr()),
        *(y.data_ptr(), x.shape[0], in_blocks, in_side, out_blocks, out_side),
        *(pairs // out_blocks, strided, parts, together, threads),
        *(intermediate.data_ptr(), scratch.data_ptr(), each),  # none is kept at address 0
    )
    return y, intermediate


OPERATORS.impl("native_entries", _entries, "CPU")
OPERATORS.impl("native_entries_", _add_entries, "CPU")
OPERATORS.impl("native_two_stage", _two_stage, "CPU")
OPERATORS.impl("native_two_stage_kept", _two_stage_kept, "CPU")
OPERATORS.impl(
    "native_entries", lambda x, _, starts, __: x.new_empty(x.shape[0], starts.numel() - 1), "Meta"
)
OPERATORS.impl("native_entries_", lambda *_: None, "Meta")
OPERATORS.impl(
    "native_two_stage",
    lambda x, _, second, __: x.new_empty(x.shape[0], second.shape[0] * second.shape[1]),
    "Meta",
)
OPERATORS.impl(
    "native_two_stage_kept",
    lambda x, _, second, __: (
        x.new_empty(x.shape[0], second.shape[0] * second.shape[1]),
        x.new_empty(second.shape[0], second.shape[2], x.shape[0]).mT,
    ),
    "Meta",
)


def _narrow(x: Tensor) -> bool:
    """Whether items are bfloat16.

    Raises:
        UsageError: they are neither that nor float32.
    """
    if reason := refusal(x.device.type, x.dtype):
        raise UsageError(reason)
    return x.dtype == torch.bfloat16


def _rows(x: Tensor) -> Tensor:
    """x with features side by side; its tokens may lie a step apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _blocks(native: Library, tokens: int, outputs: int) -> tuple[int, int, int, int]:
    """Vectors and tokens of a block, parts of the outputs, and threads.

    Blocks are large where every thread has one. Where blocks cannot be shared out evenly, every
    block is computed by all threads, each a part of the outputs. They are always those of torch:
    OpenMP ends the threads that a smaller team leaves out, and torch would have to start them anew.
    """
    threads = torch.get_num_threads()
    vectors = 0 if tokens == 1 else 1
    while 0 < vectors < native.most_vectors and 2 * vectors * native.lanes * threads <= tokens:
        vectors *= 2
    width = max(1, vectors * native.lanes)
    blocks = -(-tokens // width)
    whole = blocks % threads == 0 or blocks >= 4 * threads
    parts = 1 if whole else min(threads, outputs)
    return vectors, width, parts, threads


class Native(Kernel):
    """A product in C++ that is compiled for the processor here; what is mixed into a kernel."""

    name = "native"

    def refuses(
        self, described: Any, device: str, dtype: torch.dtype, direction: str
    ) -> str | None:
        return refusal(device, dtype) or super().refuses(described, device, dtype, direction)
