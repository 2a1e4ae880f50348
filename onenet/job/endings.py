"""Describes how a run ended, for status.json."""

import contextlib
import time
import traceback

import torch

from onenet.errors import UserError
from onenet.runs.folder import Locked, RunFolder


def kind_of(error: BaseException) -> str:
    """Returns the `kind` in status.json of a run that ended with this error."""
    kinds = {
        FloatingPointError: "diverged",
        torch.OutOfMemoryError: "out_of_memory",
        MemoryError: "out_of_memory",
        UserError: "bad_input",
    }
    return next((kind for type_, kind in kinds.items() if isinstance(error, type_)), "failed")


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def note_failed_start(folder: RunFolder, error: Exception) -> None:
    """Writes to status.json why a run could not start, unless another process holds the folder."""
    with contextlib.suppress(Locked, OSError), folder.lock():
        if folder.state() == "done":
            folder.set_status(evaluation_error=describe(error))
        else:
            folder.set_status(
                state="failed",
                kind=kind_of(error),
                exception=describe(error),
                traceback=traceback.format_exc(),
                evaluation_error=None,
                ended=time.time(),
            )
