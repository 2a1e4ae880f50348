"""How a run ended, as status.json says it."""

import contextlib
import time
import traceback

import torch

from onenet.errors import UserError
from onenet.runs.folder import Locked, RunFolder


def kind_of(error: BaseException) -> str:
    """What `kind` in status.json says of a run that this ended."""
    kinds = {
        FloatingPointError: "diverged",
        torch.OutOfMemoryError: "out_of_memory",
        MemoryError: "out_of_memory",
        UserError: "bad_input",
    }
    return next((kind for of, kind in kinds.items() if isinstance(error, of)), "failed")


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def refuse(folder: RunFolder, error: Exception) -> None:
    """Writes down why a run could not even begin, unless it is done or somebody else's."""
    with contextlib.suppress(Locked, OSError), folder.lock():
        if folder.state() == "done":
            folder.set_status(evaluation_error=described(error))
        else:
            folder.set_status(
                state="failed",
                kind=kind_of(error),
                exception=described(error),
                traceback=traceback.format_exc(),
                evaluation_error=None,
                ended=time.time(),
            )
