"""The import path of child processes, and blocking optional imports of other packages."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from onenet.system.files import REPOSITORY


def python_path(folder: Path = REPOSITORY) -> str:
    """Returns a PYTHONPATH that starts with this folder, then has that of this process."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def block_import(module: str) -> Iterator[None]:
    """Makes `import module` raise ImportError inside the block, unless it was imported before.

    For packages that import another one if it is installed, and work without it otherwise.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # None makes the import fail
    try:
        yield
    finally:
        del sys.modules[module]
