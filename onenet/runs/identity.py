"""What a run is: its id hashes what can change the result, and nothing else.

The id is built from absolute values, not from the names of groups or presets; a key that has no
effect in a configuration counts as null, and null does not count. So a key that is added later at a
value that leaves results alone can leave old ids alone, too: enter it in NEUTRAL
(config/upgrade.py).
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from onenet.config.schema import Config
from onenet.config.upgrade import NEUTRAL
from onenet.detectors import DETECTOR_KEYS, detector_of
from onenet.system import own
from onenet.system.files import digest
from onenet.system.own import TARGET

RECIPE = 2  # raise it when a change of the code changes results: all ids change with it

PLAIN = (
    *("detector", "model", "heads", "seed", "lr", "steps", "batch", "precision", "sync_bn"),
    *("size", "loss", "head", "augment"),
)


def identifying_values(config: Config) -> dict:
    """The values that can change what a run's training and its default evaluation give."""
    values = asdict(config)
    weights = config.cost_weights()
    focal = weights.cls and config.cost.cls_form == "focal"
    multistep = config.optim.decay == "multistep"
    kept = {key: values[key] for key in PLAIN}
    kept |= {
        "recipe": RECIPE,
        "cost": {
            "weights": {term: weight or None for term, weight in asdict(weights).items()},
            "cls_form": config.cost.cls_form if weights.cls else None,
            "alpha": config.cost.alpha if focal else None,
            "gamma": config.cost.gamma if focal else None,
            "l1_format": config.cost.l1_format if weights.l1 else None,
            "terms": {name: own.signature(term) for name, term in config.cost.terms.items()},
        },
        "assigner": _named(values["assigner"])
        | {"conflict": config.assigner.conflict if config.assigner.name == "min_cost" else None},
        "neck": _named(values["neck"]),
        "backbone": values["backbone"] | {"weights": _weights(config.backbone.weights)},
        "optim": {
            "weight_decay": config.optim.weight_decay,
            "warmup": config.optim.warmup,
            "clip": config.optim.clip,
            "decay": config.optim.decay,
            "milestones": list(config.optim.milestones) if multistep else None,
            "tail": None if multistep else config.optim.tail,
            "lr_factors": dict(config.optim.lr_factors),
        },
        "data": _data(config, values["data"]),
    }
    if own_model := config.own_parts()["model"]:
        kept |= {"detector": None, "model": own.signature(own_model)}
    reads = detector_of(config.detector, config.model).reads
    kept |= dict.fromkeys(DETECTOR_KEYS.difference(reads))
    return {key: v for key, v in flat(kept).items() if v is not None and NEUTRAL.get(key, ...) != v}


def run_id(config: Config) -> str:
    """Ten hexadecimal digits of a hash over `identity`."""
    text = json.dumps(identifying_values(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def slug(config: Config) -> str:
    """The readable front of a run folder's name; like the id, it follows from `identity` alone."""
    weights = config.cost_weights()
    located = any((weights.l1, weights.iou, weights.giou, weights.center))
    cost = {(True, True): "loc_cls", (True, False): "loc_only", (False, True): "cls_only"}
    data = config.data.shapes.kind
    if config.data.name != "shapes":
        data = _own_name(config.data.own) or Path(config.data.root or "").name
    location = "predefined" if weights.center else "predicted"
    words = {"cost": cost[located, bool(weights.cls)], "location": location}
    words["heads"] = f"h{config.heads}"
    reads = detector_of(config.detector, config.model).reads
    asked = [word for key, word in words.items() if key in reads]
    detector = _own_name(config.own_parts()["model"]) or config.detector
    front = [] if detector == "onenet" else [detector]
    return "-".join([*front, *asked, config.backbone.name, data[:20], f"s{config.seed}"])


def _own_name(part: dict | None) -> str:
    return part[TARGET].rpartition(".")[2] if part else ""


def _named(part: dict) -> dict:
    """A part whose name chooses code; that of a user's own is a label."""
    if part["own"] is None:
        return part
    return part | {"name": None, "own": own.signature(part["own"])}


def _data(config: Config, data: dict) -> dict:
    """Digests of files instead of their paths; the parameters of drawn images."""
    kept = {"name": data["name"], "limit": data["limit"]}
    if config.data.own is not None:
        return kept | {"name": None, "crowd": data["crowd"], "own": own.signature(data["own"])}
    if config.data.name == "shapes":
        rigid = config.data.shapes.kind == "rigid"
        return kept | {
            "seed": data["seed"],
            "shapes": data["shapes"]
            | (dict.fromkeys(("body_scale", "part_side")) if rigid else {}),
        }
    return kept | {
        "on_bad_image": data["on_bad_image"],
        "crowd": data["crowd"],
        "train": digest("data.train.annotations", config.data.train.annotations or ""),
        "val": digest("data.val.annotations", config.data.val.annotations or ""),
    }


def _weights(weights: str) -> str:
    return digest("backbone.weights", weights) if Path(weights).is_file() else weights


def flat(node: dict, prefix: str = "") -> dict[str, object]:
    """The leaves of nested dictionaries, each under its dotted key."""
    leaves: dict[str, object] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
