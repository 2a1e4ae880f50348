"""Checkpoints: tensors and plain types only, so that they load with `weights_only=True`.

`last.pt` is the newest checkpoint; `previous.pt` is the one before, in case `last.pt` is damaged.
"""

import io
import os
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.system.files import write_atomically
from onenet.training.loop import Progress

REQUIRED_KEYS = {"id", "progress", "model", "optimizer"}


def save(
    folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer, progress: Progress
) -> None:
    """Saves everything needed to resume. Image order and augmentation follow from the step.

    Keeps the old checkpoint until the new one has been read back. Raises OSError, leaving the old
    one untouched, if the disk is full or returns other bytes than were written.
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
        raise OSError(f"{new} does not hold what was written to it: is the disk damaged?")
    if folder.checkpoint_file.is_file():
        os.replace(folder.checkpoint_file, folder.previous_checkpoint_file)
    os.replace(new, folder.checkpoint_file)


def save_weights(folder: RunFolder, run_id: str, weights: dict[str, Tensor]) -> None:
    """Saves the weights of a network that was trained elsewhere."""
    buffer = io.BytesIO()
    torch.save(
        {"id": run_id, "progress": asdict(Progress()), "model": weights, "optimizer": {}}, buffer
    )
    write_atomically(folder.checkpoint_file, buffer.getvalue())


def find(folder: RunFolder, run_id: str) -> Path | None:
    """Returns the newest usable checkpoint of the run. Skips, with a message, those that are
    damaged or of another run. Raises UserError if there is a folder in place of one."""
    for file in (folder.checkpoint_file, folder.previous_checkpoint_file):
        if file.is_dir():
            raise UserError(f"{file} is a folder, not a checkpoint: move it away.")
        if file.is_file():
            problem = _problem(file, run_id)
            if problem is None:
                return file
            print(f"skipped {file}: {problem}", flush=True)
    return None


def load(file: Path, model: nn.Module, optimizer: Optimizer | None, device: str) -> Progress:
    """Restores the model, and the optimiser if given, in place from a file that `find` returned."""
    state = torch.load(file, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def load_trained(folder: RunFolder, run_id: str, model: nn.Module, device: str) -> Progress:
    """Restores the model of a finished run. Raises UserError if it has no usable checkpoint."""
    file = find(folder, run_id)
    if file is None:
        raise UserError(
            f"{folder.checkpoint_file} is missing or unusable: "
            "this run cannot be evaluated again.\n"
            "Move its folder away, then repeat the command to train it afresh."
        )
    return load(file, model, None, device)


def part_of_run(runs_root: Path, run_id: str, part: str) -> dict[str, Tensor]:
    """Returns the weights of one part of a finished run's network. Raises UserError if there is no
    such run."""
    for path in runs_root.glob(f"*-{run_id}"):
        folder = RunFolder(path)
        if folder.state() == "done" and (file := find(folder, run_id)):
            state = torch.load(file, map_location="cpu", weights_only=True)["model"]
            prefix = f"{part}."
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    raise UserError(
        f"{part}.weights=run:{run_id}: there is no such finished run in {runs_root}. "
        "Its id is the last part of its folder's name."
    )


def _problem(file: Path, run_id: str) -> str | None:
    """Returns why a file is not a usable checkpoint of this run, or None if it is one."""
    try:
        with zipfile.ZipFile(file) as archive:
            if member := archive.testzip():  # torch does not verify checksums
                return f"{member} in it is damaged"
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise anything on a damaged file
        return f"it cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"
    if not isinstance(state, dict) or not set(state) >= REQUIRED_KEYS:
        return "it is not a checkpoint of a run"
    return None if state["id"] == run_id else f"it belongs to run {state['id']}, not {run_id}"
