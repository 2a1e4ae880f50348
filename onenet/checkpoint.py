"""Checkpoints: tensors and plain types only, so that they load with `weights_only=True`."""

import io
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from onenet.errors import UserError
from onenet.runs import write_atomically
from onenet.train import Progress


def save(path: Path, run_id: str, model: nn.Module, optimizer: Optimizer, progress: Progress):
    """Writes all that a resumed run needs. Order and augmentation are functions of the step."""
    buffer = io.BytesIO()
    state = {
        "id": run_id,
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(
    path: Path, run_id: str, model: nn.Module, optimizer: Optimizer | None, device: str
) -> Progress:
    """Restores model and, if given, optimiser, in place. Raises UserError if there is no file, or
    it belongs to another run."""
    if not path.is_file():
        raise UserError(
            f"{path} is not there, so this run cannot be evaluated again.\n"
            "Move its folder away; the same command then trains it anew."
        )
    state = torch.load(path, map_location=device, weights_only=True)
    if state["id"] != run_id:
        raise UserError(
            f"{path} belongs to run {state['id']}, not {run_id}.\n"
            "Move the folder away; the run then starts anew."
        )
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
