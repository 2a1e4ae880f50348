"""Loads a trained detector: from a run's folder, or from an export in the format `safetensors`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from onenet import build
from onenet.config.compose import from_dict
from onenet.config.schema import Config
from onenet.config.upgrade import upgrade
from onenet.data.sources import open_split
from onenet.errors import UserError
from onenet.inference.detector import TrainedDetector, network_for
from onenet.runs.classes import Classes
from onenet.runs.folder import RunFolder, find_runs
from onenet.system.files import REPOSITORY, read_json
from onenet.training import checkpoint

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # of an export
COMMITTED = REPOSITORY / "analysis" / "results" / "weights"  # exports of our own runs


def load(run: str | Path, runs: str | Path | None = None, device: str = "auto") -> TrainedDetector:
    """Returns the detector of a finished run.

    `run`: the run's folder, or an export of it, or its id or name in the runs root `runs` (default:
    `runs/` beside run.py, then the committed weights). `device`: `auto`, `cpu` or `cuda`. Raises
    UserError if there is no such run, or it is not finished, or its weights do not fit.
    """
    folder = find(run, runs)
    if (folder / WEIGHTS_FILE).is_file():
        return load_export(folder, build.device(device))
    return load_run(RunFolder(folder), build.device(device))


def find(run: str | Path, runs: str | Path | None = None) -> Path:
    """Returns the folder that `load` would read. Raises UserError."""
    path = Path(run).expanduser()
    if path.is_dir():
        return path.absolute()
    roots = [Path(runs).expanduser().absolute()] if runs else [REPOSITORY / "runs", COMMITTED]
    if runs and not roots[0].is_dir():
        raise UserError(f"--runs {runs} is not a folder.")
    folders = [RunFolder(f) for root in roots for f in sorted(root.glob("[!.]*")) if f.is_dir()]
    return find_runs(roots[0], folders, [str(run)])[0].path


def load_run(folder: RunFolder, device: str = "cpu") -> TrainedDetector:
    """Loads a finished run from its checkpoint. Raises UserError."""
    if not folder.config_file.is_file():
        message = f"{folder.path} is not the folder of a run."
        if (folder.path / "model.onnx").is_file():
            message += " ONNX Runtime runs its model.onnx; `load` takes the format safetensors."
        raise UserError(message)
    config = from_dict(folder.config())
    if folder.state() != "done":
        raise UserError(
            f"{folder.path.name} is {folder.state()}, not done: repeat the command that started it."
        )
    classes = classes_of(folder, config)
    network = network_for(config, len(classes))
    with _fitting(folder.path):
        checkpoint.load_trained(folder, folder.id, network, "cpu")
    return TrainedDetector(network, config, classes, folder.id, device)


def classes_of(folder: RunFolder, config: Config) -> Classes:
    """Returns the run's classes, from its data if an earlier version of the suite made it. Raises
    UserError."""
    if classes := Classes.read(folder.classes_file):
        return classes
    return Classes.of(open_split(config.data, "val", folder.cache).annotations)


def load_export(folder: Path, device: str = "cpu") -> TrainedDetector:
    """Loads what `python -m onenet.export --format safetensors` wrote. Raises UserError."""
    values = read_json(folder / CONFIG_FILE)
    try:
        config = from_dict(upgrade(values["config"]))
        classes = Classes.from_dict(values["classes"])
        id_, heads = str(values["id"]), int(values["heads"])
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else repr(error)
        raise UserError(f"{folder / CONFIG_FILE} is not that of an export: {reason}") from error
    if any(config.own_parts().values()):
        raise UserError(
            f"{folder / CONFIG_FILE} names code to run (_target_), which an export must not do."
        )
    network = network_for(config, len(classes))
    keep_heads(network, heads)
    with _fitting(folder / WEIGHTS_FILE):
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return TrainedDetector(network, config, classes, id_, device)


@contextlib.contextmanager
def _fitting(file: Path) -> Iterator[None]:
    """Turns the errors of weights that are damaged or of another network into a UserError."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The weights in {file} cannot be used: {reason}") from error


def keep_heads(network: nn.Module, heads: int) -> None:
    """Removes the heads of a cascade that inference by head number `heads` does not need."""
    if hasattr(head := getattr(network, "head", None), "keep_first"):
        head.keep_first(heads)
