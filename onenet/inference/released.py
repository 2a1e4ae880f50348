"""Checkpoints of the released OneNet code (PeizeSun/OneNet, built on detectron2) as runs.

A run made from one is done, of the kind `released`, and its id is the digest of the file. It has no
result until `python -m onenet.evaluate` gives it one.
"""

import hashlib
import time
from pathlib import Path

from torch import Tensor

from onenet.config.compose import compose, to_dict
from onenet.config.schema import Config
from onenet.detectors.released import fold_biases, is_folded_bias, our_name, read_state
from onenet.errors import UserError
from onenet.inference.coco_classes import COCO_CLASSES
from onenet.inference.detector import network_for
from onenet.runs.classes import Classes
from onenet.runs.folder import RunFolder
from onenet.training.checkpoint import save_weights

# AP on COCO val2017 that the released README states, by (backbone, deformable convolution).
STATED_AP = {
    ("resnet18", False): 27.7,
    ("resnet18", True): 29.9,
    ("resnet50", False): 32.7,
    ("resnet50", True): 35.7,
}
LISTED = 5  # keys in a message


def make_run(file: Path, runs_root: Path) -> RunFolder:
    """Makes the folder of a finished run from a released checkpoint, unless it is there. Raises
    UserError if the file is not one."""
    state = read_state(file)
    config, weights = convert(state, file)
    id_ = digest(file)
    deformable = config.neck.name == "deconv_dcn"
    suffix = "-dcn" if deformable else ""
    folder = RunFolder(runs_root / f"released-{config.backbone.name}{suffix}-coco-{id_}")
    if folder.state() == "done":
        return folder
    try:
        config.runs_root = str(runs_root)
        folder.freeze(to_dict(config))
        Classes([*COCO_CLASSES], [*COCO_CLASSES.values()]).write(folder.classes_file)
        save_weights(folder, id_, weights)
        stated = STATED_AP[config.backbone.name, deformable]
        folder.set_status(
            state="done", kind="released", id=id_, file=file.name, stated_ap=stated,
            ended=time.time(),
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"runs_root={runs_root} cannot be written: {error}") from error
    return folder


def digest(file: Path) -> str:
    """Returns ten hexadecimal digits of the file's SHA-256."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:10]


def convert(state: dict[str, Tensor], file: Path) -> tuple[Config, dict[str, Tensor]]:
    """Returns the configuration and our state dict. Raises UserError that lists the keys that are
    missing or too many."""
    config = configuration(state)
    network = network_for(config, len(COCO_CLASSES))
    expected = network.state_dict()
    weights, unknown = {}, []
    for key, tensor in state.items():
        name = our_name(key)
        if name in expected or is_folded_bias(name):
            weights[name] = tensor
        else:
            unknown.append(key)
    fold_biases(weights)
    missing = [name for name in expected if name not in weights]
    shapes = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    problems = [
        f"{label}: {', '.join(keys[:LISTED])}{f', … ({len(keys)})' if len(keys) > LISTED else ''}"
        for label, keys in (
            ("not in the network", unknown),
            ("missing (by our names)", missing),
            ("of another shape (by our names)", shapes),
        )
        if keys
    ]
    if problems:
        kind = f"{config.backbone.name}, {config.neck.name}"
        raise UserError(
            f"{file} is not a checkpoint of the released OneNet ({kind}).\nIts keys are "
            f"{'; '.join(problems)}"
        )
    return config, weights


def configuration(state: dict[str, Tensor]) -> Config:
    """Returns the configuration of the released network with these keys: preset=paper with its
    backbone and neck."""
    backbone = "resnet50" if any(".conv3." in key for key in state) else "resnet18"
    neck = "deconv_dcn" if any("dcn_offset" in key for key in state) else "deconv"
    overrides = (
        *("preset=paper", "reference=released", "data.root=COCO", "backbone.weights=none"),
        *(f"backbone={backbone}", f"neck={neck}", "tracker=none"),
    )
    config = compose(overrides)
    config.data.root = None
    for split in (config.data.train, config.data.val):
        split.images = split.annotations = None  # named when it is evaluated
    return config
