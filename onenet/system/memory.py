"""Settings of memory management: glibc's reuse of freed memory, and Python's cyclic collector."""

import contextlib
import ctypes
import gc
import platform
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes the process keep freed memory for later allocations. Returns whether that worked.

    By default glibc returns tensors larger than some megabytes to the system, and gets new, zeroed
    pages for them at the next step. Does nothing with other C libraries (musl, macOS, Windows).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Turns off the cyclic collector, which would scan millions of small objects repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
