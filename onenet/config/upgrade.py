"""Reads configurations that earlier commits wrote with today's keys."""

import copy
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from onenet.config.schema import Config
from onenet.errors import UserError

# Keys that are newer than the first runs, with the value that behaves as before. They count in a
# run's id only with another value, which leaves old ids unchanged.
NEUTRAL: dict[str, object] = {
    "precision": "float32",
    "sync_bn": False,
    "neck.init": "default",
    "head.box_bias": 0.0,
    "augment.size_step": 1,
    "augment.crop": 0.0,
    "backbone.frozen": False,
    "data.crowd": "drop",
}
# All keys that a config.yaml may lack. The others do not count in the id, or only in configurations
# that did not exist before them.
FALLBACKS: dict[str, object] = {
    **NEUTRAL,
    "reference": None,
    "model": {},
    "cost.terms": {},
    "assigner.own": None,
    "neck.own": None,
    "data.own": None,
    "data.allow_outside": True,
    "optim.lr_factors": {},
    "optim.batch_rule": "none",
    "optim.base_batch": 8,
    "data.shapes.body_scale": 1.0,
    "eval.backend": "pycocotools",
    "eval.looks": 0,
    "eval.peaks": None,
    "evaluate": None,
    "processes": 1,
    "accumulate": 1,
    "compile": False,
}


def upgrade(config: dict) -> dict:
    """Returns the config.yaml of any earlier commit as today's code would write it.

    Drops keys that no longer exist and adds those of FALLBACKS. Raises UserError, naming the key,
    if any other key is missing.
    """
    return _upgrade_node(config, Config, "")


def _upgrade_node(values: dict, node: type, prefix: str) -> dict:
    if not isinstance(values, dict):
        raise UserError(f"The configuration has no keys under '{prefix.rstrip('.')}'.")
    types = get_type_hints(node)
    result: dict[str, object] = {}
    for name in (field.name for field in fields(node)):
        key = prefix + name
        if is_dataclass(types[name]):
            result[name] = _upgrade_node(values.get(name, {}), types[name], f"{key}.")
        elif name in values:
            result[name] = values[name]
        elif key in FALLBACKS:
            result[name] = copy.deepcopy(FALLBACKS[key])
        else:
            raise UserError(f"The configuration has no key '{key}'.")
    return result
