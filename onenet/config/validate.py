"""Problems of a configuration: values out of bounds, and combinations that cannot work."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from onenet.config.absolute import RELEASED
from onenet.config.schema import MODELS, NAMES, Config
from onenet.detectors import DETECTORS, detector_of
from onenet.system.own import TARGET


def problems(config: Config) -> list[str]:
    """Returns one line for each problem, with the key and the way out."""
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
    """Returns the problems of values that are not finite or not within the bounds and choices of
    the schema. `values`: one of its dataclasses."""
    problems = []
    for field in fields(values):
        name, value = prefix + field.name, getattr(values, field.name)
        if is_dataclass(value):
            problems += out_of_range(value, f"{name}.")
        elif not _is_finite(value):
            problems.append(f"{name}={value}: must be finite.")
        elif value is not None and field.metadata:
            problems += _bounds(name, value, **field.metadata)
    return problems


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _bounds(
    name: str, value: Any, choices: tuple[str, ...], least: float | None, most: float | None
) -> Iterator[str]:
    if choices and value not in choices:
        yield f"{name}={value}: choose one of {', '.join(choices)}."
    elif least is not None and most is not None and not least <= value <= most:
        yield f"{name}={value}: must be in {least:g}..{most:g}."
    elif least is not None and value < least:
        yield f"{name}={value}: must be at least {least:g}."


def _heads_and_rate(config: Config) -> Iterator[str]:
    if config.infer_heads > config.heads >= 1:
        yield (
            f"infer_heads={config.infer_heads} is more than heads={config.heads}: "
            "inference uses trained heads only. Raise heads or lower infer_heads."
        )
    if config.runs_root == "":
        yield "runs_root= is empty: give a folder, or leave it out."
    scale = config.lr_scale
    if scale != "auto" and not (isinstance(scale, int | float) and scale > 0):
        yield f"lr_scale={scale}: must be auto, or a factor above 0."


def _names(config: Config) -> Iterator[str]:
    """Problems of the names that select code, ours or the user's."""
    for group, names in NAMES.items():
        part = getattr(config, group)
        if part.own is None and part.name not in names:
            options = ", ".join(names)
            yield f"{group}.name={part.name}: choose one of {options}, or set {group}.own."
    for name, part in config.own_parts().items():
        if part is not None and TARGET not in part:
            yield f"{name}={part}: it needs {TARGET}: module.name."
    if config.detector not in DETECTORS and not config.own_parts()["model"]:
        options = ", ".join(DETECTORS)
        yield f"detector={config.detector}: choose one of {options}, or set model.{TARGET}."


def _without_effect(config: Config) -> Iterator[str]:
    """Keys that the detector ignores: accepted silently, they would make two rows the same."""
    detector, reads = config.detector, detector_of(config.detector, config.model).reads
    keys = {
        "heads": (config.heads, 1),
        "location": (config.location, "predicted"),
        "cost": (config.cost.name, "loc_cls"),
    }
    for key, (value, default) in keys.items():
        if key not in reads and value != default:
            yield f"{key}={value} has no meaning for detector={detector}: leave it out."
    model = MODELS.get(detector)
    if not isinstance(config.model, model or dict):
        names = ", ".join(f"model.{field.name}" for field in fields(model)) if model else "none"
        yield f"model={config.model}: set its keys. {detector} has {names}."
    if "neck" in reads:
        return
    if config.eval.peaks:
        yield f"eval.peaks=true needs a grid, which {detector} does not have: leave it out."
    if config.data.crowd == "ignore":
        yield f"data.crowd=ignore needs a grid, which {detector} does not have: use drop or keep."


def _matching(config: Config) -> Iterator[str]:
    if not any(asdict(config.cost_weights()).values()) and not config.cost.terms:
        yield (
            f"cost={config.cost.name} has no term for location={config.location}: "
            "set one of cost.weights, or the other location."
        )
    if config.assigner.name == "min_cost" and config.assigner.conflict is None:
        yield "assigner.conflict=null: choose keep, next_best or drop."


def _processes(config: Config) -> Iterator[str]:
    micro_batches = (config.processes or 1) * config.accumulate
    if config.batch < micro_batches:
        yield (
            f"batch={config.batch} is less than processes × accumulate = {micro_batches}: "
            "every micro-batch needs an image."
        )
    if config.sync_bn and config.device == "cpu":
        yield "sync_bn=true needs CUDA: leave it out, or set device=cuda."


def _data_and_weights(config: Config) -> Iterator[str]:
    data, weights = config.data, config.backbone.weights
    if data.name == "coco" and not data.root:
        yield "data.root is not set: data=coco needs the folder of the data set, data.root=DIR."
    if data.shapes.max_short < data.shapes.min_short:
        yield "data.shapes.max_short is below data.shapes.min_short."
    # Without its tag, an architecture would mean the weights that timm prefers at the time.
    source = re.fullmatch(r"none|\w+\.\w+|run:[0-9a-f]{10}", weights)
    if not source and not Path(weights.removeprefix(RELEASED)).expanduser().is_file():
        yield (
            f"backbone.weights={weights} is no file, timm tag or run: "
            "name the training, as in resnet50.tv_in1k, or run:ID, released:FILE, or none."
        )
