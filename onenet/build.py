"""From a configuration to the parts of a run: the one place that hands its values on."""

import torch
from torch import nn

from onenet import costs, losses
from onenet.backbones import make_backbone
from onenet.config import Config
from onenet.data.augment import Augmentation, ImageSize
from onenet.data.images import ImageSource
from onenet.data.loading import DetectionDataset
from onenet.detectors.onenet import OneNet
from onenet.identity import EvalSpec
from onenet.losses import DetectionLoss
from onenet.matchers import make_matcher
from onenet.necks import make_neck
from onenet.optim import Schedule


def device(asked: str) -> str:
    """`cpu` or `cuda` for what `device` asks for, which may be `auto`."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def precision(asked: str, device: str) -> str:
    """`float32` or `bf16` for what `precision` asks for; `auto`: bf16 where the hardware has it."""
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if has.get("amx_bf16") or has.get("avx512_bf16") else "float32"


def detector(config: Config, num_classes: int) -> nn.Module:
    """Initialised from `seed` alone."""
    torch.manual_seed(config.seed)
    backbone = make_backbone(config.backbone.name, config.backbone.weights)
    neck = make_neck(in_channels=backbone.feature_info.channels(), **vars(config.neck))
    model = OneNet(backbone, neck, num_classes, config.heads, **vars(config.head))
    return model.to(device(config.device), memory_format=torch.channels_last)


def detection_loss(config: Config) -> DetectionLoss:
    cost, loss, weights = config.cost, config.loss, config.cost_weights()
    return DetectionLoss(
        costs.MatchingCost(
            weights=costs.CostWeights(**vars(weights)),
            cls_form=cost.cls_form,
            alpha=cost.alpha,
            gamma=cost.gamma,
            l1_format=cost.l1_format,
        ),
        make_matcher(config.assigner.name, config.assigner.conflict),
        weights=losses.LossWeights(**vars(loss.weights)),
        alpha=loss.alpha,
        gamma=loss.gamma,
        l1_format=loss.l1_format,
    )


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
