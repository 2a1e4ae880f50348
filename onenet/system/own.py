"""Parts of the user's own: a cost term, an assigner, a neck, a detector or a data set, which a YAML
names by `_target_: module.name`. What stands beside it are its arguments.
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
    """What the part names, with its arguments. Raises UserError if it cannot be imported."""
    module, _, name = part[TARGET].rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # of any kind: it is the user's code
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{TARGET}={part[TARGET]} cannot be imported: {reason}") from error
    return partial(found, **{key: value for key, value in part.items() if key != TARGET})


def signature(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of it counts in a run's id: target, arguments, and a digest of its module's source.
    Raises UserError if there is no such module."""
    if part is None:
        return None
    return {**part, "source": digest(TARGET, str(_source(str(part.get(TARGET, "")))))}


def _source(target: str) -> Path:
    """The file of the target's module. Found without running it: planning must stay quick."""
    places = None
    names = target.split(".")[:-1]
    for number in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: number + 1]), places or sys.path)
        if spec is None:
            break
        places = spec.submodule_search_locations
        if number + 1 == len(names) and spec.origin and Path(spec.origin).is_file():
            return Path(spec.origin)
    raise UserError(
        f"{TARGET}={target}: there is no module {'.'.join(names) or target} to import. "
        "Install it, or put its folder into PYTHONPATH."
    )
