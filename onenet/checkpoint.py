"""Checkpoints: tensors and plain types only, so that they load with `weights_only=True`.

`last.pt` is the newest; `previous.pt`, the one before, serves if that one turns out to be damaged.
"""

import io
import os
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from onenet.errors import UserError
from onenet.runs import RunFolder, write_atomically
from onenet.train import Progress

NEEDED = {"id", "progress", "model", "optimizer"}
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


def save(
    folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer, progress: Progress
) -> None:
    """Writes all that a resumed run needs. Order and augmentation are functions of the step.

    The old checkpoint stays until the new one has been read back. Raises OSError, the old one
    untouched, where the disk is full or gives back something else.
    """
    buffer = io.BytesIO()
    state = {
        "id": run_id,
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, buffer)
    new = folder.checkpoint_file.with_name("new.pt")
    write_atomically(new, buffer.getvalue())
    if new.read_bytes() != buffer.getvalue():
        raise OSError(f"{new} does not hold what was written into it: is the disk damaged?")
    if folder.checkpoint_file.is_file():
        os.replace(folder.checkpoint_file, folder.previous_checkpoint_file)
    os.replace(new, folder.checkpoint_file)


def load(
    folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer | None, device: str
) -> Progress | None:
    """Restores model and, if given, optimiser, in place, from the newest usable checkpoint.

    None if there is none. A checkpoint that is damaged or another run's is named and passed over.
    """
    for file in (folder.checkpoint_file, folder.previous_checkpoint_file):
        if file.is_file() and (state := _read(file, run_id, device)):
            model.load_state_dict(state["model"])
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizer"])
            return Progress(**state["progress"])
    return None


def load_trained(folder: RunFolder, run_id: str, model: nn.Module, device: str) -> Progress:
    """Restores the model of a finished run. Raises UserError if that cannot be had any more."""
    progress = load(folder, run_id, model, None, device)
    if progress is None:
        raise UserError(
            f"{folder.checkpoint_file} is not there or not usable: "
            "this run cannot be evaluated again.\n"
            "Move its folder away; the same command then trains it anew."
        )
    return progress


def _read(file: Path, run_id: str, device: str) -> dict | None:
    """The content of a checkpoint of this run, else None, and a line that says what is wrong."""
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch does not look at the sums
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        state = torch.load(file, map_location=device, weights_only=True)
        if isinstance(state, dict) and set(state) >= NEEDED and state["id"] == run_id:
            return state
        problem = "it is not a checkpoint of this run"
        if isinstance(state, dict) and "id" in state:
            problem = f"it belongs to run {state['id']}, not {run_id}"
    except DAMAGE as error:
        problem = f"it cannot be read: {str(error)[:200] or type(error).__name__}"
    print(f"passed over {file}: {problem}", flush=True)
    return None
