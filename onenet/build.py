"""Builds the parts of a run from its configuration: the only place that passes its values on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from onenet import costs, losses
from onenet.assigners import Matcher, make_matcher
from onenet.config.absolute import RELEASED
from onenet.config.compose import to_dict
from onenet.config.schema import Config
from onenet.data.augment import Augmentation
from onenet.data.images import ImageSource
from onenet.data.loading import DetectionDataset
from onenet.data.sizes import ImageSize
from onenet.detectors import detector_of
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import make_neck
from onenet.detectors.released import backbone_weights
from onenet.errors import UserError
from onenet.losses import DetectionLoss
from onenet.runs.evaluations import EvalSpec
from onenet.system.context import RunContext
from onenet.system.distributed import ALONE, World
from onenet.system.own import TARGET, load
from onenet.training import checkpoint
from onenet.training.loop import Loss
from onenet.training.optim import Schedule, make_optimizer

WIDE_CHANNELS = 256


def device(setting: str) -> str:
    """Resolves `device` to `cpu` or `cuda`; `auto` is cuda if there is a GPU."""
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return setting


def precision(setting: str, device: str) -> str:
    """Resolves `precision` to `float32` or `bf16`; `auto` is bf16 if the hardware supports it."""
    if setting != "auto":
        return setting
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if features.get("amx_bf16") or features.get("avx512_bf16") else "float32"


def context(config: Config, world: World = ALONE) -> RunContext:
    """Returns the device, precision and processes of the run."""
    name = device(config.device)
    return RunContext(name, precision(config.precision, name), world, config.accumulate)


def memory_format(model: nn.Module, device: str) -> torch.memory_format:
    """Returns the memory format with the fastest training step.

    That is channels_last, except for wide networks on a CPU without AVX-512, where the gradient of
    the weights takes up to three times as long in it.
    """
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    is_wide = max((c.out_channels for c in convolutions), default=0) >= WIDE_CHANNELS
    if device == "cpu" and is_wide and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return torch.contiguous_format
    return torch.channels_last


def detector(config: Config, num_classes: int, device: str = "cpu") -> nn.Module:
    """Builds the detector; its initial weights depend only on `seed`."""
    torch.manual_seed(config.seed)
    kind, weights = detector_of(config.detector, config.model), config.backbone.weights
    if weights.startswith(RELEASED):
        weights = backbone_weights(Path(weights.removeprefix(RELEASED)))
    elif weights.startswith("run:"):
        weights = checkpoint.part_of_run(Path(config.runs_root), weights[4:], "backbone")
    backbone = make_backbone(config.backbone.name, weights, config.backbone.frozen)
    parts = {k: v for k, v in to_dict(config)["model"].items() if k not in (TARGET, "reads")}
    if "neck" in kind.reads:
        channels = backbone.feature_info.channels()
        parts["neck"] = neck(config, channels)
    if "head" in kind.reads:
        parts |= {"heads": config.heads, **vars(config.head)}
    try:
        model = kind.load()(backbone, num_classes, **parts)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    return model.to(device, memory_format=memory_format(model, device))


def loss(config: Config, model: nn.Module) -> Loss:
    """Returns the loss with its matching; a detector without a matching cost has its own."""
    reads = detector_of(config.detector, config.model).reads
    return detection_loss(config) if "cost" in reads else model.loss


def neck(config: Config, in_channels: Sequence[int]) -> nn.Module:
    n = config.neck
    if n.own is not None:
        return load(n.own)(in_channels, n.channels)
    return make_neck(n.name, in_channels, n.channels, n.init)


def matcher(config: Config) -> Matcher:
    a = config.assigner
    return make_matcher(a.name, a.conflict or "keep") if a.own is None else load(a.own)


def detection_loss(config: Config) -> DetectionLoss:
    loss = config.loss
    return DetectionLoss(
        matching_cost(config),
        matcher(config),
        weights=losses.LossWeights(**vars(loss.weights)),
        alpha=loss.alpha,
        gamma=loss.gamma,
        l1_format=loss.l1_format,
    )


def matching_cost(config: Config) -> costs.MatchingCost:
    cost = config.cost
    return costs.MatchingCost(
        weights=costs.CostWeights(**vars(config.cost_weights())),
        cls_form=cost.cls_form,
        alpha=cost.alpha,
        gamma=cost.gamma,
        l1_format=cost.l1_format,
        own=tuple(own_term(name, term) for name, term in cost.terms.items()),
    )


def own_term(name: str, term: dict[str, Any]) -> tuple[str, float, Callable]:
    """Returns name, weight (default 1) and function of a user's cost term."""
    arguments = {key: value for key, value in term.items() if key != "weight"}
    return name, float(term.get("weight", 1.0)), load(arguments)


def optimizer(config: Config, model: nn.Module) -> AdamW:
    o = config.optim
    return make_optimizer(model, config.lr, o.weight_decay, o.lr_factors)


def schedule(config: Config) -> Schedule:
    o = config.optim
    return Schedule(config.lr, config.steps, o.warmup, o.decay, tuple(o.milestones), o.tail)


def training_set(config: Config, source: ImageSource) -> DetectionDataset:
    size = ImageSize(config.size.short, config.size.ratio)
    augmentation = Augmentation(**vars(config.augment))
    return DetectionDataset(
        source, size, augmentation, config.seed, config.data.on_bad_image, config.data.crowd
    )


def evaluation_set(config: Config, source: ImageSource, spec: EvalSpec) -> DetectionDataset:
    size = ImageSize(spec.short, spec.ratio)
    return DetectionDataset(source, size, on_bad_image=config.data.on_bad_image)
