"""The keys of a configuration with their types, bounds and choices. Their values are in conf/."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING


def key(
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    default: Any = MISSING,
) -> Any:
    """Returns a field with the choices or bounds of its value. Both bounds are inclusive."""
    return field(default=default, metadata={"choices": choices, "least": least, "most": most})


@dataclass
class CostWeightsConfig:
    cls: float = key(least=0)
    l1: float = key(least=0)
    iou: float = key(least=0)
    giou: float = key(least=0)
    center: float = key(least=0)


@dataclass
class CostConfig:
    name: str = MISSING
    terms: dict[str, Any] = field(default_factory=dict)  # the user's own, see onenet/README.md
    cls_form: str = key(choices=("focal", "cross_entropy"))
    weights: CostWeightsConfig = MISSING
    alpha: float = key(least=0, most=1)
    gamma: float = key(least=0)
    l1_format: str = key(choices=("cxcywh", "xyxy"))


@dataclass
class AssignerConfig:
    name: str = MISSING
    conflict: str | None = key(choices=("keep", "next_best", "drop"))
    own: dict[str, Any] | None = None


@dataclass
class LossWeightsConfig:
    cls: float = key(least=0)
    l1: float = key(least=0)
    giou: float = key(least=0)


@dataclass
class LossConfig:
    weights: LossWeightsConfig = MISSING
    alpha: float = key(least=0, most=1)
    gamma: float = key(least=0)
    l1_format: str = key(choices=("cxcywh", "xyxy"))


@dataclass
class SizeConfig:
    short: int = key(least=32)
    ratio: float = key(least=1)


@dataclass
class EvalSizeConfig:
    short: int | None = key(least=32, default=None)
    ratio: float | None = key(least=1, default=None)


@dataclass
class BackboneConfig:
    name: str = key(choices=("tiny", "resnet18", "resnet50", "resnet101"))
    weights: str = MISSING
    frozen: bool = MISSING


@dataclass
class NeckConfig:
    name: str = MISSING
    channels: int = key(least=1)
    init: str = key(choices=("default", "xavier"))
    own: dict[str, Any] | None = None


@dataclass
class HeadConfig:
    prior: float = key(least=1e-6, most=0.999)
    box_unit: float = key(least=1e-06)
    box_bias: float = key(least=0)


@dataclass
class SplitConfig:
    images: str | None = MISSING
    annotations: str | None = MISSING


@dataclass
class ShapesConfig:
    kind: str = key(choices=("rigid", "parts", "crowded"))
    train_images: int = key(least=1)
    val_images: int = key(least=1)
    min_short: int = key(least=16)
    max_short: int = key(least=16)
    max_aspect: float = key(least=1)
    max_objects: int = key(least=1, most=1000)
    min_side: float = key(least=0.01, most=1)
    max_side: float = key(least=0.01, most=1)
    body_scale: float = key(least=0.1, most=10)
    part_side: float = key(least=0.01, most=1)


@dataclass
class DataConfig:
    name: str = MISSING
    seed: int = key(least=0, most=2**63 - 1)
    root: str | None = MISSING
    limit: int | None = key(least=1)
    on_bad_image: str = key(choices=("error", "skip"))
    allow_outside: bool = MISSING
    crowd: str = key(choices=("ignore", "drop", "keep"))
    train: SplitConfig = MISSING
    val: SplitConfig = MISSING
    shapes: ShapesConfig = MISSING
    own: dict[str, Any] | None = None


@dataclass
class AugmentConfig:
    flip: float = key(least=0, most=1)
    min_scale: float = key(least=0, most=1)
    size_step: int = key(least=1)
    crop: float = key(least=0, most=1)


@dataclass
class OptimConfig:
    base_lr: float = key(least=0)
    base_steps: int = key(least=1)
    base_batch: int = key(least=1)
    batch_rule: str = key(choices=("sqrt", "linear", "none"))
    weight_decay: float = key(least=0)
    warmup: int = key(least=0)
    clip: float | None = key(least=1e-09)
    decay: str = key(choices=("multistep", "linear_tail"))
    milestones: list[float] = MISSING
    tail: float = key(least=1e-06, most=1)
    lr_factors: dict[str, float] = MISSING


@dataclass
class EvalConfig:
    size: EvalSizeConfig = MISSING
    area: str = key(choices=("relative", "coco"))
    split: str = key(choices=("val", "train"))
    peaks: bool | None = MISSING
    looks: int = key(least=0)
    batch: int = key(least=1)
    backend: str = key(choices=("hotcoco", "faster", "pycocotools"))


@dataclass
class TrackerConfig:
    name: str = key(choices=("wandb", "none"))
    project: str = MISSING
    entity: str | None = MISSING


@dataclass
class CenterNetConfig:
    width: int = key(least=1)
    prior: float = key(least=1e-6, most=0.999)
    min_overlap: float = key(least=0, most=1)


@dataclass
class DeformableDETRConfig:
    dim: int = key(least=1)
    attention_heads: int = key(least=1)
    points: int = key(least=1)
    encoder_layers: int = key(least=1)
    decoder_layers: int = key(least=1)
    feedforward: int = key(least=1)
    queries: int = key(least=1)
    levels: int = key(least=1)
    finest_stride: int = key(least=1)
    dropout: float = key(least=0, most=1)
    refine: bool = MISSING
    two_stage: bool = MISSING
    prior: float = key(least=1e-6, most=0.999)


@dataclass
class SparseRCNNConfig:
    dim: int = key(least=1)
    proposals: int = key(least=1)
    stages: int = key(least=1)
    attention_heads: int = key(least=1)
    feedforward: int = key(least=1)
    dynamic_dim: int = key(least=1)
    pooled: int = key(least=1)
    class_layers: int = key(least=0)
    box_layers: int = key(least=0)
    canonical: float = key(least=1)
    dropout: float = key(least=0, most=1)
    prior: float = key(least=1e-6, most=0.999)


# The choices of `name`, unless `own` names the user's part.
NAMES = {
    "assigner": ("min_cost", "hungarian"),
    "neck": ("fpn", "deconv", "deconv_dcn"),
    "data": ("shapes", "coco"),
}
# The schema of `model`, for each detector that has settings.
MODELS = {
    "centernet": CenterNetConfig,
    "deformable_detr": DeformableDETRConfig,
    "sparse_rcnn": SparseRCNNConfig,
}


@dataclass
class Config:
    """A run. After `compose`, `lr` and `steps` are set and all paths absolute."""

    preset: str = MISSING
    reference: str | None = None
    debug: str | None = None
    detector: str = MISSING
    model: Any = MISSING
    location: str = key(choices=("predicted", "predefined"))
    heads: int = key(least=1)
    infer_heads: int = key(least=1)
    lr_scale: Any = MISSING
    schedule: float = key(least=1e-06)
    seed: int = key(least=0, most=2**63 - 1)
    lr: float | None = key(least=0)
    steps: int | None = key(least=1)
    batch: int = key(least=1)
    precision: str = key(choices=("auto", "float32", "bf16"))
    sync_bn: bool = MISSING
    size: SizeConfig = MISSING
    cost: CostConfig = MISSING
    assigner: AssignerConfig = MISSING
    loss: LossConfig = MISSING
    backbone: BackboneConfig = MISSING
    neck: NeckConfig = MISSING
    head: HeadConfig = MISSING
    data: DataConfig = MISSING
    augment: AugmentConfig = MISSING
    optim: OptimConfig = MISSING
    eval: EvalConfig = MISSING
    tracker: TrackerConfig = MISSING
    runs_root: str | None = MISSING
    plan: bool = MISSING
    evaluate: str | None = key(choices=("again",))
    device: str = key(choices=("auto", "cpu", "cuda"))
    processes: int | None = key(least=1)
    accumulate: int = key(least=1)
    compile: bool = MISSING
    workers: int = key(least=0)
    log_every: int = key(least=1)
    save_every: float = key(least=0)

    @property
    def root(self) -> Path:
        """The runs root; absolute after `compose`."""
        return Path(self.runs_root or "")

    def own_parts(self) -> dict[str, dict[str, Any] | None]:
        """Returns the user's own parts by key, None where there is none."""
        return {
            **{f"cost.terms.{name}": term for name, term in self.cost.terms.items()},
            "assigner.own": self.assigner.own,
            "neck.own": self.neck.own,
            "data.own": self.data.own,
            "model": self.model if isinstance(self.model, dict) and self.model else None,
        }

    def cost_weights(self) -> CostWeightsConfig:
        """Returns the weights; those of terms that `location` does not use are 0."""
        w = self.cost.weights
        if self.location == "predefined":
            return CostWeightsConfig(cls=w.cls, l1=0.0, iou=0.0, giou=0.0, center=w.center)
        return CostWeightsConfig(cls=w.cls, l1=w.l1, iou=w.iou, giou=w.giou, center=0.0)
