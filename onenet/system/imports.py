"""Where processes import from, and imports that another package would make on the way."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from onenet.system.files import REPOSITORY


def python_path(folder: Path = REPOSITORY) -> str:
    """PYTHONPATH for a process that imports from this folder, then from where this one does."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """Inside, `import module` raises ImportError, unless it has been imported before.

    For packages that import another one where they can, and go on without it where they cannot.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # this is how an import is refused
    try:
        yield
    finally:
        del sys.modules[module]
