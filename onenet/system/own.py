"""User-defined parts: a cost term, an assigner, a neck, a detector or a data set.

A YAML names one by `_target_: module.name`; the keys beside `_target_` are its arguments.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from onenet.errors import UserError
from onenet.system.files import digest

TARGET = "_target_"


def load(part: Mapping[str, Any]) -> Callable:
    """Imports the part's target and binds its arguments. Raises UserError if the import fails."""
    module, _, name = part[TARGET].rpartition(".")
    try:
        target = getattr(import_module(module), name)
    except Exception as error:  # user code can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{TARGET}={part[TARGET]} cannot be imported: {reason}") from error
    return partial(target, **{key: value for key, value in part.items() if key != TARGET})


def signature(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns what enters a run's id: target, arguments, and a digest of the module's source.
    Raises UserError if there is no such module."""
    if part is None:
        return None
    return {**part, "source": digest(TARGET, str(_source(str(part.get(TARGET, "")))))}


def _source(target: str) -> Path:
    """Finds the source file of the target's module without importing it: planning must be fast."""
    locations = None
    names = target.split(".")[:-1]
    for number in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: number + 1]), locations or sys.path)
        if spec is None:
            break
        locations = spec.submodule_search_locations
        if number + 1 == len(names) and spec.origin and Path(spec.origin).is_file():
            return Path(spec.origin)
    raise UserError(
        f"{TARGET}={target}: there is no module {'.'.join(names) or target}. "
        "Install it, or add its folder to PYTHONPATH."
    )
