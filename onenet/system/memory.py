"""Memory that is given back: what the C library does with it, and Python's search for cycles."""

import contextlib
import ctypes
import gc
import platform
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Has the process keep freed memory for its next allocation; False where that is unknown.

    Without it glibc returns tensors of more than some megabytes to the system and gets every page
    anew, zeroed, at the next step. Elsewhere (musl, macOS, Windows) nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Without the search for cycles, which goes through a million small lists again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
