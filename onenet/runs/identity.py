"""A run's id: a hash of everything that can change its result, and of nothing else.

The id depends on absolute values, not on the names of groups or presets. A key without effect in a
configuration counts as null, and nulls are left out. To add a key without changing old ids, enter
the value that leaves results unchanged in NEUTRAL (config/upgrade.py).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from onenet.config.absolute import RELEASED
from onenet.config.schema import Config
from onenet.config.upgrade import NEUTRAL
from onenet.detectors import DETECTOR_KEYS, detector_of
from onenet.system import own
from onenet.system.files import digest
from onenet.system.own import TARGET
from onenet.system.printable import printable

Sign = Callable[[Mapping], dict | None]  # of a user's own part
Content = Callable[[str, str], str]  # of a key and its file

RECIPE = 2  # raise it when the code changes results; this changes all ids

VERBATIM_KEYS = (
    *("detector", "model", "heads", "seed", "lr", "steps", "batch", "precision", "sync_bn"),
    *("size", "loss", "head", "augment"),
)


def identifying_values(config: Config, read_files: bool = True) -> dict:
    """Returns the values that can change the result of a run's training or default evaluation.

    `read_files=False`: files count by their path, not by their content, for comparing
    configurations whose files may be out of reach.
    """
    sign = own.signature if read_files else dict
    content = digest if read_files else _path
    values = asdict(config)
    weights = config.cost_weights()
    focal = weights.cls and config.cost.cls_form == "focal"
    multistep = config.optim.decay == "multistep"
    identity = {key: values[key] for key in VERBATIM_KEYS}
    identity |= {
        "recipe": RECIPE,
        "cost": {
            "weights": {term: weight or None for term, weight in asdict(weights).items()},
            "cls_form": config.cost.cls_form if weights.cls else None,
            "alpha": config.cost.alpha if focal else None,
            "gamma": config.cost.gamma if focal else None,
            "l1_format": config.cost.l1_format if weights.l1 else None,
            "terms": {name: sign(term) for name, term in config.cost.terms.items()},
        },
        "assigner": _named_part(values["assigner"], sign)
        | {"conflict": config.assigner.conflict if config.assigner.name == "min_cost" else None},
        "neck": _named_part(values["neck"], sign),
        "backbone": values["backbone"] | {"weights": _weights(config.backbone.weights, content)},
        "optim": {
            "weight_decay": config.optim.weight_decay,
            "warmup": config.optim.warmup,
            "clip": config.optim.clip,
            "decay": config.optim.decay,
            "milestones": list(config.optim.milestones) if multistep else None,
            "tail": None if multistep else config.optim.tail,
            "lr_factors": dict(config.optim.lr_factors),
        },
        "data": _data(config, values["data"], sign, content),
    }
    if own_model := config.own_parts()["model"]:
        identity |= {"detector": None, "model": sign(own_model)}
    reads = detector_of(config.detector, config.model).reads
    identity |= dict.fromkeys(DETECTOR_KEYS.difference(reads))
    leaves = flatten(identity).items()
    return {key: v for key, v in leaves if v is not None and NEUTRAL.get(key, ...) != v}


def run_id(config: Config) -> str:
    """Returns ten hexadecimal digits of a hash of `identifying_values`."""
    text = json.dumps(identifying_values(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def slug(config: Config) -> str:
    """Returns the readable start of a run folder's name, a function of `identifying_values`."""
    weights = config.cost_weights()
    uses_location = any((weights.l1, weights.iou, weights.giou, weights.center))
    costs = {(True, True): "loc_cls", (True, False): "loc_only", (False, True): "cls_only"}
    data = config.data.shapes.kind
    if config.data.name != "shapes":
        data = _own_name(config.data.own) or printable(Path(config.data.root or "").name)
    location = "predefined" if weights.center else "predicted"
    labels = {
        "cost": costs[uses_location, bool(weights.cls)],
        "location": location,
        "heads": f"h{config.heads}",
    }
    reads = detector_of(config.detector, config.model).reads
    parts = [label for key, label in labels.items() if key in reads]
    detector = _own_name(config.own_parts()["model"]) or config.detector
    prefix = [] if detector == "onenet" else [detector]
    return "-".join([*prefix, *parts, config.backbone.name, data[:20], f"s{config.seed}"])


def _own_name(part: dict | None) -> str:
    return part[TARGET].rpartition(".")[2] if part else ""


def _named_part(part: dict, sign: Sign) -> dict:
    """Returns the values of a part that is chosen by name. For a user's own part, the name is only
    a label and is left out."""
    if part["own"] is None:
        return part
    return part | {"name": None, "own": sign(part["own"])}


def _data(config: Config, data: dict, sign: Sign, content: Content) -> dict:
    """Replaces the paths of files by digests of their content; keeps the parameters of `shapes`."""
    identity = {"name": data["name"], "limit": data["limit"]}
    if config.data.own is not None:
        return identity | {"name": None, "crowd": data["crowd"], "own": sign(data["own"])}
    if config.data.name == "shapes":
        has_parts = config.data.shapes.kind == "parts"
        return identity | {
            "seed": data["seed"],
            "shapes": data["shapes"]
            | ({} if has_parts else dict.fromkeys(("body_scale", "part_side"))),
        }
    return identity | {
        "on_bad_image": data["on_bad_image"],
        "crowd": data["crowd"],
        "train": content("data.train.annotations", config.data.train.annotations or ""),
        "val": content("data.val.annotations", config.data.val.annotations or ""),
    }


def _weights(weights: str, content: Content) -> str:
    file = weights.removeprefix(RELEASED)
    if not Path(file).is_file():
        return weights
    return weights.removesuffix(file) + content("backbone.weights", file)


def _path(_key: str, file: str) -> str:
    return file


def flatten(node: dict, prefix: str = "") -> dict[str, object]:
    """Returns the leaves of nested dictionaries by dotted key."""
    leaves: dict[str, object] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
