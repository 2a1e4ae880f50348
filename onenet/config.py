"""The configuration: its schema, how it is composed from conf/, what is checked before a run.

Hydra composes conf/config.yaml with overrides; here that becomes a plain, typed `Config` in which
everything is an absolute value. Values have their home in conf/, not here. No torch.
"""

import difflib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onenet.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


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


@dataclass
class Neck:
    name: str = MISSING
    channels: int = MISSING


@dataclass
class Head:
    prior: float = MISSING
    box_unit: float = MISSING


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
    part_side: float = MISSING


@dataclass
class Data:
    name: str = MISSING
    seed: int = MISSING
    root: str | None = MISSING
    limit: int | None = MISSING
    on_bad_image: str = MISSING
    train: Split = MISSING
    val: Split = MISSING
    shapes: Shapes = MISSING


@dataclass
class Augment:
    flip: float = MISSING
    min_scale: float = MISSING


@dataclass
class Optim:
    base_lr: float = MISSING
    base_steps: int = MISSING
    weight_decay: float = MISSING
    warmup: int = MISSING
    clip: float | None = MISSING
    decay: str = MISSING
    milestones: list[float] = MISSING
    tail: float = MISSING


@dataclass
class Eval:
    size: EvalSize = MISSING
    area: str = MISSING
    split: str = MISSING
    batch: int = MISSING


@dataclass
class Tracker:
    name: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING


@dataclass
class Sweep:
    jobs: int | None = MISSING
    threads: int | None = MISSING


@dataclass
class Config:
    """A run. After `compose` all values are absolute: `lr` and `steps` are filled in, paths too."""

    preset: str = MISSING
    debug: str | None = None
    detector: str = MISSING
    location: str = MISSING
    heads: int = MISSING
    infer_heads: int = MISSING
    lr_scale: Any = MISSING
    schedule: float = MISSING
    seed: int = MISSING
    lr: float | None = MISSING
    steps: int | None = MISSING
    batch: int = MISSING
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
    workers: int = MISSING
    log_every: int = MISSING
    save_every: float = MISSING
    sweep: Sweep = MISSING

    def cost_weights(self) -> CostWeights:
        """The weights of the terms that `location` leaves: the box's or the grid point's."""
        w = self.cost.weights
        if self.location == "predefined":
            return CostWeights(cls=w.cls, l1=0.0, iou=0.0, giou=0.0, center=w.center)
        return CostWeights(cls=w.cls, l1=w.l1, iou=w.iou, giou=w.giou, center=0.0)


ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str]) -> Config:
    """The resolved and checked configuration of one run.

    Raises UserError (at most three lines that name the key and the fix).
    """
    for override in overrides:
        if override.startswith(("+", "~")):
            raise UserError(
                f"{override}: keys can be changed, not added or removed. "
                f"Write {override.lstrip('+~').partition('=')[0]}=VALUE."
            )
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", overrides)
            config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_explain(error)) from error
    problems = _problems(config)
    if problems:
        raise UserError("\n".join(problems[:3]))
    return _absolute(config)


def from_dict(values: dict) -> Config:
    """The Config that `to_dict` made these of."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))


def to_dict(config: Config) -> dict:
    return asdict(config)


def _absolute(config: Config) -> Config:
    """Fills in what follows from multipliers and from the working directory."""
    if config.lr is None:
        automatic = 1.0 if config.heads == 1 else 2.0
        scale = automatic if config.lr_scale == "auto" else float(config.lr_scale)
        config.lr = config.optim.base_lr * scale
    if config.steps is None:
        config.steps = max(1, round(config.optim.base_steps * config.schedule))
    if config.runs_root is None:
        config.runs_root = str(REPOSITORY / ("runs_debug" if config.debug else "runs"))
    config.runs_root = str(Path(config.runs_root).expanduser().absolute())
    if config.data.name == "coco":
        root = Path(config.data.root).expanduser().absolute()
        config.data.root = str(root)
        for split in (config.data.train, config.data.val):
            split.images, split.annotations = (
                str(root / split.images),
                str(root / split.annotations),
            )
    if Path(config.backbone.weights).expanduser().is_file():
        config.backbone.weights = str(Path(config.backbone.weights).expanduser().absolute())
    return config


CHOICES = {
    "detector": ("onenet",),
    "location": ("predicted", "predefined"),
    "cost.cls_form": ("focal", "cross_entropy"),
    "cost.l1_format": ("cxcywh", "xyxy"),
    "loss.l1_format": ("cxcywh", "xyxy"),
    "assigner.conflict": ("keep", "next_best", "drop", None),
    "data.on_bad_image": ("error", "skip"),
    "data.shapes.kind": ("rigid", "parts"),
    "optim.decay": ("multistep", "linear_tail"),
    "eval.area": ("relative", "coco"),
    "eval.split": ("val", "train"),
    "device": ("auto", "cpu", "cuda"),
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
    "neck.channels": 1,
    "head.box_unit": 1e-6,
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
    "optim.weight_decay": 0,
    "optim.warmup": 0,
    "optim.clip": 1e-9,
    "optim.tail": 1e-6,
    "workers": 0,
    "log_every": 1,
    "save_every": 0,
    "sweep.jobs": 1,
    "sweep.threads": 1,
}
AT_MOST = {"augment.flip": 1, "augment.min_scale": 1, "head.prior": 0.999, "optim.tail": 1}


def _value(config: Config, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _problems(config: Config) -> list[str]:
    """What cannot work, a line each with the key and the way out."""
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
    if config.infer_heads > config.heads >= 1:
        found.append(
            f"infer_heads={config.infer_heads} is more than heads={config.heads}: "
            "inference uses heads that were trained. Raise heads or lower infer_heads."
        )
    if config.lr_scale != "auto" and not (
        isinstance(config.lr_scale, int | float) and config.lr_scale > 0
    ):
        found.append(f"lr_scale={config.lr_scale}: auto, or a factor above 0.")
    if config.data.name == "coco" and not config.data.root:
        found.append("data.root is not set: data=coco needs data.root=DIR, its folder.")
    if not any(asdict(config.cost_weights()).values()):
        found.append(
            f"cost={config.cost.name} has no term left with location={config.location}: "
            "set one of cost.weights, or the other location."
        )
    if config.assigner.name == "min_cost" and config.assigner.conflict is None:
        found.append("assigner.conflict=null: choose keep, next_best or drop.")
    if config.data.shapes.max_short < config.data.shapes.min_short:
        found.append("data.shapes.max_short is below data.shapes.min_short.")
    return found


def known_keys() -> list[str]:
    """Every key that an override may set, groups included."""

    def leaves(node: dict, prefix: str):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        full = OmegaConf.to_container(hydra_compose("config"))
    return sorted({*GROUPS, *leaves(schema, ""), *leaves(full, "")})


def _explain(error: Exception) -> str:
    """Hydra's and OmegaConf's exceptions in at most three lines."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option} does not exist. Options: {', '.join(error.options)}."
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(e) for e in chain)
    key = getattr(chain[-1], "full_key", None)
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} is not set: add {missing[1]}=VALUE."
    if "not in struct" in text or "not in" in str(chain[-1]) or "Could not override" in text:
        wrong = re.search(r"Could not override '([^']+)'", text)
        wrong = wrong[1] if wrong else key or "?"
        near = difflib.get_close_matches(wrong, known_keys(), n=3, cutoff=0.5)
        leaf = [k for k in known_keys() if k.split(".")[-1] == wrong.split(".")[-1]]
        hint = ", ".join(dict.fromkeys(leaf + near)) or "see conf/config.yaml"
        return f"There is no key '{wrong}'. Did you mean: {hint}?"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    return "\n".join(dict.fromkeys(lines[:2]))
