"""What the types of a configuration cannot say: ranges, choices, combinations that cannot work.

The tables below are by key.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onenet.config.schema import Config
from onenet.detectors import DETECTORS

CHOICES = {
    "detector": tuple(DETECTORS),
    "location": ("predicted", "predefined"),
    "cost.cls_form": ("focal", "cross_entropy"),
    "cost.l1_format": ("cxcywh", "xyxy"),
    "loss.l1_format": ("cxcywh", "xyxy"),
    "assigner.conflict": ("keep", "next_best", "drop", None),
    "data.on_bad_image": ("error", "skip"),
    "data.crowd": ("ignore", "drop", "keep"),
    "data.shapes.kind": ("rigid", "parts"),
    "neck.init": ("default", "xavier"),
    "optim.batch_rule": ("sqrt", "linear", "none"),
    "optim.decay": ("multistep", "linear_tail"),
    "eval.area": ("relative", "coco"),
    "eval.split": ("val", "train"),
    "eval.backend": ("faster", "pycocotools"),
    "precision": ("auto", "float32", "bf16"),
    "device": ("auto", "cpu", "cuda"),
    "sweep.launcher": ("local", "slurm"),
}
AT_LEAST = {
    "heads": 1,
    "infer_heads": 1,
    "steps": 1,
    "batch": 1,
    "seed": 0,
    "schedule": 1e-6,
    "lr": 0,
    "size.short": 32,
    "size.ratio": 1,
    "eval.size.short": 32,
    "eval.size.ratio": 1,
    "eval.batch": 1,
    "eval.looks": 0,
    "neck.channels": 1,
    "head.box_unit": 1e-6,
    "head.box_bias": 0,
    "data.seed": 0,
    "data.limit": 1,
    "data.shapes.train_images": 1,
    "data.shapes.val_images": 1,
    "data.shapes.max_objects": 1,
    "data.shapes.max_aspect": 1,
    "data.shapes.min_short": 16,
    "cost.weights.cls": 0,
    "cost.weights.l1": 0,
    "cost.weights.iou": 0,
    "cost.weights.giou": 0,
    "cost.weights.center": 0,
    "augment.size_step": 1,
    "optim.base_batch": 1,
    "optim.weight_decay": 0,
    "optim.warmup": 0,
    "optim.clip": 1e-9,
    "optim.tail": 1e-6,
    "processes": 1,
    "accumulate": 1,
    "workers": 0,
    "log_every": 1,
    "save_every": 0,
    "sweep.jobs": 1,
    "sweep.max_failures": 1,
    "sweep.threads": 1,
    "sweep.slurm.minutes": 5,  # Slurm announces their end up to 150 seconds before
    "sweep.slurm.cpus": 1,
    "sweep.slurm.gpus": 0,
    "sweep.slurm.memory_gb": 0.001,
}
AT_MOST = {
    "augment.flip": 1,
    "augment.min_scale": 1,
    "augment.crop": 1,
    "head.prior": 0.999,
    "optim.tail": 1,
}


def _value(config: Config, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _names_weights(weights: str) -> bool:
    """A bare architecture would be whatever timm holds for its best weights at the time."""
    named = re.fullmatch(r"none|\w+\.\w+|run:[0-9a-f]{10}", weights)
    return bool(named) or Path(weights).expanduser().is_file()


def _without_effect(config: Config) -> list[str]:
    """What the detector cannot be asked. Taken silently, a row would be another's copy."""
    if config.detector not in DETECTORS:
        return []
    reads, found = DETECTORS[config.detector].reads, []
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
        *_out_of_range(config),
        *_heads_and_rate(config),
        *_without_effect(config),
        *_matching(config),
        *_processes(config),
        *_data_and_weights(config),
    ]


def _out_of_range(config: Config) -> list[str]:
    """By the tables above."""
    found = []
    for key, options in CHOICES.items():
        if (value := _value(config, key)) not in options:
            listed = ", ".join(str(o) for o in options if o is not None)
            found.append(f"{key}={value}: choose one of {listed}.")
    for key, least in AT_LEAST.items():
        if (value := _value(config, key)) is not None and value < least:
            found.append(f"{key}={value}: must be at least {least:g}.")
    for key, most in AT_MOST.items():
        if not 0 <= (value := _value(config, key)) <= most:
            found.append(f"{key}={value}: must be in 0..{most:g}.")
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
    if not any(asdict(config.cost_weights()).values()):
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
    if not isinstance(config.sweep.slurm.more, dict | None):
        found.append(
            f"sweep.slurm.more={config.sweep.slurm.more}: options of sbatch and their values, "
            "'sweep.slurm.more={account: NAME, qos: NAME}'."
        )
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
