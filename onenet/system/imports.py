"""Imports that another package would make on the way."""

import contextlib
import sys
from collections.abc import Iterator


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
