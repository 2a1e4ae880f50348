"""Configurations of earlier commits, read with today's keys."""

import copy
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from onenet.config.schema import Config
from onenet.errors import UserError

# Keys that came after the first runs, with the value at which it is as if they were not there.
# These count in a run's id, unless they have this value: so they leave old ids alone.
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
# These do not count in the id, or only where runs without them cannot be meant.
LATER: dict[str, object] = {
    **NEUTRAL,
    "reference": None,
    "model": {},
    "cost.terms": {},
    "assigner.own": None,
    "neck.own": None,
    "data.own": None,
    "optim.lr_factors": {},
    "optim.batch_rule": "none",
    "optim.base_batch": 8,
    "data.shapes.body_scale": 1.0,
    "eval.backend": "pycocotools",
    "eval.looks": 0,
    "eval.peaks": None,
    "processes": 1,
    "accumulate": 1,
    "compile": False,
}


def upgrade(config: dict) -> dict:
    """The config.yaml of a run that any earlier commit made, as today's would be.

    Keys that are gone are dropped; those of LATER get their value there. Raises UserError, naming
    the key, where one is missing that every commit has written.
    """
    return _upgraded(config, Config, "")


def _upgraded(values: dict, node: type, prefix: str) -> dict:
    if not isinstance(values, dict):
        raise UserError(f"The configuration has no keys under '{prefix.rstrip('.')}'.")
    kinds = get_type_hints(node)
    result: dict[str, object] = {}
    for name in (field.name for field in fields(node)):
        key = prefix + name
        if is_dataclass(kinds[name]):
            result[name] = _upgraded(values.get(name, {}), kinds[name], f"{key}.")
        elif name in values:
            result[name] = values[name]
        elif key in LATER:
            result[name] = copy.deepcopy(LATER[key])
        else:
            raise UserError(f"The configuration has no key '{key}'.")
    return result
