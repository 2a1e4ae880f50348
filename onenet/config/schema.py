"""The keys of a configuration and their types. Their values have their home in conf/."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING


@dataclass
class CostWeights:
    cls: float = MISSING
    l1: float = MISSING
    iou: float = MISSING
    giou: float = MISSING
    center: float = MISSING


@dataclass
class Cost:
    name: str = MISSING
    cls_form: str = MISSING
    weights: CostWeights = MISSING
    alpha: float = MISSING
    gamma: float = MISSING
    l1_format: str = MISSING


@dataclass
class Assigner:
    name: str = MISSING
    conflict: str | None = MISSING


@dataclass
class LossWeights:
    cls: float = MISSING
    l1: float = MISSING
    giou: float = MISSING


@dataclass
class Loss:
    weights: LossWeights = MISSING
    alpha: float = MISSING
    gamma: float = MISSING
    l1_format: str = MISSING


@dataclass
class Size:
    short: int = MISSING
    ratio: float = MISSING


@dataclass
class EvalSize:
    short: int | None = None
    ratio: float | None = None


@dataclass
class Backbone:
    name: str = MISSING
    weights: str = MISSING
    frozen: bool = MISSING


@dataclass
class Neck:
    name: str = MISSING
    channels: int = MISSING
    init: str = MISSING


@dataclass
class Head:
    prior: float = MISSING
    box_unit: float = MISSING
    box_bias: float = MISSING


@dataclass
class Split:
    images: str | None = MISSING
    annotations: str | None = MISSING


@dataclass
class Shapes:
    kind: str = MISSING
    train_images: int = MISSING
    val_images: int = MISSING
    min_short: int = MISSING
    max_short: int = MISSING
    max_aspect: float = MISSING
    max_objects: int = MISSING
    min_side: float = MISSING
    max_side: float = MISSING
    body_scale: float = MISSING
    part_side: float = MISSING


@dataclass
class Data:
    name: str = MISSING
    seed: int = MISSING
    root: str | None = MISSING
    limit: int | None = MISSING
    on_bad_image: str = MISSING
    crowd: str = MISSING
    train: Split = MISSING
    val: Split = MISSING
    shapes: Shapes = MISSING


@dataclass
class Augment:
    flip: float = MISSING
    min_scale: float = MISSING
    size_step: int = MISSING
    crop: float = MISSING


@dataclass
class Optim:
    base_lr: float = MISSING
    base_steps: int = MISSING
    base_batch: int = MISSING
    batch_rule: str = MISSING
    weight_decay: float = MISSING
    warmup: int = MISSING
    clip: float | None = MISSING
    decay: str = MISSING
    milestones: list[float] = MISSING
    tail: float = MISSING
    lr_factors: dict[str, float] = MISSING


@dataclass
class Eval:
    size: EvalSize = MISSING
    area: str = MISSING
    split: str = MISSING
    peaks: bool | None = MISSING
    looks: int = MISSING
    batch: int = MISSING
    backend: str = MISSING


@dataclass
class Tracker:
    name: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING


@dataclass
class Slurm:
    partition: str | None = MISSING
    minutes: int = MISSING
    cpus: int = MISSING
    gpus: int = MISSING
    memory_gb: float | None = MISSING
    more: Any = MISSING


@dataclass
class Sweep:
    launcher: str = MISSING
    jobs: int | None = MISSING
    max_failures: int | None = MISSING
    threads: int | None = MISSING
    slurm: Slurm = MISSING


@dataclass
class Config:
    """A run. After `compose` all values are absolute: `lr` and `steps` are filled in, paths too."""

    preset: str = MISSING
    reference: str | None = None
    debug: str | None = None
    detector: str = MISSING
    model: Any = MISSING
    location: str = MISSING
    heads: int = MISSING
    infer_heads: int = MISSING
    lr_scale: Any = MISSING
    schedule: float = MISSING
    seed: int = MISSING
    lr: float | None = MISSING
    steps: int | None = MISSING
    batch: int = MISSING
    precision: str = MISSING
    sync_bn: bool = MISSING
    size: Size = MISSING
    cost: Cost = MISSING
    assigner: Assigner = MISSING
    loss: Loss = MISSING
    backbone: Backbone = MISSING
    neck: Neck = MISSING
    head: Head = MISSING
    data: Data = MISSING
    augment: Augment = MISSING
    optim: Optim = MISSING
    eval: Eval = MISSING
    tracker: Tracker = MISSING
    runs_root: str | None = MISSING
    plan: bool = MISSING
    device: str = MISSING
    processes: int | None = MISSING
    accumulate: int = MISSING
    compile: bool = MISSING
    workers: int = MISSING
    log_every: int = MISSING
    save_every: float = MISSING
    sweep: Sweep = MISSING

    @property
    def root(self) -> Path:
        """The runs root; absolute after `compose`."""
        return Path(self.runs_root or "")

    def cost_weights(self) -> CostWeights:
        """The weights of the terms that `location` leaves: the box's or the grid point's."""
        w = self.cost.weights
        if self.location == "predefined":
            return CostWeights(cls=w.cls, l1=0.0, iou=0.0, giou=0.0, center=w.center)
        return CostWeights(cls=w.cls, l1=w.l1, iou=w.iou, giou=w.giou, center=0.0)
