"""What cannot work: values outside their bounds, combinations that contradict each other."""

import math
import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from onenet.config.schema import MODELS, NAMES, Config
from onenet.detectors import DETECTORS, detector_of
from onenet.system.own import TARGET


def _names_weights(weights: str) -> bool:
    """A bare architecture would be whatever timm holds for its best weights at the time."""
    named = re.fullmatch(r"none|\w+\.\w+|run:[0-9a-f]{10}", weights)
    return bool(named) or Path(weights).expanduser().is_file()


def _without_effect(config: Config) -> list[str]:
    """What the detector cannot be asked. Taken silently, a row would be another's copy."""
    reads, found = detector_of(config.detector, config.model).reads, []
    asked = {
        "heads": (config.heads, 1),
        "location": (config.location, "predicted"),
        "cost": (config.cost.name, "loc_cls"),
    }
    for key, (value, neutral) in asked.items():
        if key not in reads and value != neutral:
            found.append(
                f"{key}={value} has no meaning for detector={config.detector}: leave it out."
            )
    model = MODELS.get(config.detector)
    if not isinstance(config.model, model or dict):
        keys = ", ".join(f"model.{field.name}" for field in fields(model)) if model else "none"
        found.append(f"model={config.model}: set its keys. {config.detector} has {keys}.")
    grid = "neck" in reads
    if config.eval.peaks and not grid:
        found.append(
            f"eval.peaks=true needs a grid, which {config.detector} has not: leave it out."
        )
    if config.data.crowd == "ignore" and not grid:
        found.append(f"data.crowd=ignore needs a grid, {config.detector} has none: drop, or keep.")
    return found


def problems(config: Config) -> list[str]:
    """What cannot work, a line each with the key and the way out."""
    return [
        *out_of_range(config),
        *_heads_and_rate(config),
        *_names(config),
        *_without_effect(config),
        *_matching(config),
        *_processes(config),
        *_data_and_weights(config),
    ]


def out_of_range(values: Any, prefix: str = "") -> list[str]:
    """What is not finite, or outside the bounds and choices of the schema. `values`: a dataclass of
    it."""
    found = []
    for field in fields(values):
        name, value = prefix + field.name, getattr(values, field.name)
        if is_dataclass(value):
            found += out_of_range(value, f"{name}.")
        elif not _finite(value):
            found.append(f"{name}={value}: must be finite.")
        elif value is not None and field.metadata:
            found += _problem(name, value, **field.metadata)
    return found


def _finite(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, list | dict):
        return all(map(_finite, parts))
    return not isinstance(value, float) or math.isfinite(value)


def _problem(
    name: str, value: Any, choices: tuple[str, ...], least: float | None, most: float | None
) -> list[str]:
    if choices and value not in choices:
        return [f"{name}={value}: choose one of {', '.join(choices)}."]
    if least is not None and most is not None and not least <= value <= most:
        return [f"{name}={value}: must be in {least:g}..{most:g}."]
    if least is not None and value < least:
        return [f"{name}={value}: must be at least {least:g}."]
    return []


def _names(config: Config) -> list[str]:
    """That what chooses code is there, or the user's own."""
    found = []
    for group, names in NAMES.items():
        part = getattr(config, group)
        if part.own is None and part.name not in names:
            listed = ", ".join(names)
            found.append(f"{group}.name={part.name}: choose one of {listed}, or set {group}.own.")
    for name, part in config.own_parts().items():
        if part is not None and TARGET not in part:
            found.append(f"{name}={part}: it needs {TARGET}: module.name.")
    if config.detector not in DETECTORS and not config.own_parts()["model"]:
        listed = ", ".join(DETECTORS)
        found.append(f"detector={config.detector}: choose one of {listed}, or set model.{TARGET}.")
    return found


def _heads_and_rate(config: Config) -> list[str]:
    found = []
    if config.infer_heads > config.heads >= 1:
        found.append(
            f"infer_heads={config.infer_heads} is more than heads={config.heads}: "
            "inference uses heads that were trained. Raise heads or lower infer_heads."
        )
    if config.lr_scale != "auto" and not (
        isinstance(config.lr_scale, int | float) and config.lr_scale > 0
    ):
        found.append(f"lr_scale={config.lr_scale}: auto, or a factor above 0.")
    return found


def _matching(config: Config) -> list[str]:
    found = []
    if not any(asdict(config.cost_weights()).values()) and not config.cost.terms:
        found.append(
            f"cost={config.cost.name} has no term left with location={config.location}: "
            "set one of cost.weights, or the other location."
        )
    if config.assigner.name == "min_cost" and config.assigner.conflict is None:
        found.append("assigner.conflict=null: choose keep, next_best or drop.")
    return found


def _processes(config: Config) -> list[str]:
    found = []
    pieces = (config.processes or 1) * config.accumulate
    if config.batch < pieces:
        found.append(
            f"batch={config.batch} is less than processes × accumulate = {pieces}: "
            "every piece needs an image."
        )
    if config.sync_bn and config.device == "cpu":
        found.append("sync_bn=true needs CUDA: leave it out, or device=cuda.")
    return found


def _data_and_weights(config: Config) -> list[str]:
    found = []
    if config.data.name == "coco" and not config.data.root:
        found.append("data.root is not set: data=coco needs data.root=DIR, its folder.")
    if config.data.shapes.max_short < config.data.shapes.min_short:
        found.append("data.shapes.max_short is below data.shapes.min_short.")
    if not _names_weights(config.backbone.weights):
        found.append(
            f"backbone.weights={config.backbone.weights} is no file, timm tag or run: "
            "name the training, as in resnet50.tv_in1k, or run:ID, or none."
        )
    return found
