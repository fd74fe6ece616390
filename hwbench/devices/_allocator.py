"""glibc's allocator, told to keep what is freed: a call finds the pages of the call before it.

By itself glibc gives large blocks back to the system and asks for new pages in the next call, each
with a page fault. From which size on depends on the largest block that the process has freed, so
that the time of a case depends on the cases before it. What keeps the pages is ``mallopt``, which
holds for the whole process and cannot be undone: once set, glibc adapts its limits no more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

_LIBRARY = "libc.so.6"
_KEEP = (
    (-4, 0),  # M_MMAP_MAX: no block is mapped by itself, so that none is unmapped
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD, bytes: the heap does not shrink
    (-2, 64 << 20),  # M_TOP_PAD, bytes: it grows by so many at once
)


@cache
def refusal() -> str:
    """Why freed memory cannot be kept in this process, in a sentence; "" where it can."""
    process = _opened(None)
    if process is None or not hasattr(process, "gnu_get_libc_version"):
        return "Freed memory is not kept: that is known of glibc only, and this is another libc."
    library = _opened(_LIBRARY)
    if library is None or _address(process) != _address(library):
        return (
            "Freed memory is not kept: another allocator than glibc's serves this process "
            "(LD_PRELOAD)."
        )
    return ""


def keep() -> None:
    """Keep what is freed, until this process ends.

    Raises:
        OSError: glibc refused a setting.
    """
    _set(_KEEP)


def _set(settings: Sequence[tuple[int, int]]) -> None:
    library = ctypes.CDLL(_LIBRARY)
    for option, value in settings:
        if library.mallopt(option, value) != 1:
            raise OSError(f"glibc refused mallopt({option}, {value}).")


def trim() -> None:
    """Give all freed pages back to the system."""
    ctypes.CDLL(_LIBRARY).malloc_trim(0)


def _opened(name: str | None) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _address(library: ctypes.CDLL) -> int | None:
    """Where a library has the function that torch asks for memory."""
    return ctypes.cast(library.posix_memalign, ctypes.c_void_p).value
