"""Times a training step of OneNet ResNet-18 (neck=deconv) at 512×512 against a plain step, and the
part of it that matching and losses take.

Each variant runs in its own process, as the settings of the allocator are per process. The
processes alternate.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from analysis.speed import plain
from analysis.speed.scenes import STRIDE, scene
from analysis.speed.timing import Timing, row
from onenet import build
from onenet.assigners import make_matcher
from onenet.costs import MatchingCost
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import make_neck
from onenet.detectors.onenet import OneNet
from onenet.losses import DetectionLoss
from onenet.structures import HeadOutput, Target
from onenet.system.memory import keep_freed_memory
from onenet.training.optim import make_optimizer

SIDE, CLASSES, OBJECTS, ROUNDS = 512, 80, 7, 5
LEARNED = ("class_logits", "boxes_xyxy")  # of a head's output


@dataclass(frozen=True)
class Variant:
    """A training step: the suite's, or with `plain` one with contiguous memory format, the default
    allocator and torchvision's losses."""

    batch: int
    precision: str = "float32"
    plain: bool = False


def rows() -> list[Timing]:
    fast = build.precision("auto", "cpu")
    precisions = list(dict.fromkeys([fast, "float32"]))
    variants = [Variant(8, precision) for precision in precisions]
    (*ours, plain_step), _ = _fastest_steps(*variants, Variant(8, plain=True))
    lines = []
    for precision, step in zip(precisions, ours, strict=True):
        key = "train_step" if precision == fast else "train_step_float32"
        lines.append(row(key, plain_step, step, precision=precision))
    for precision in reversed(precisions):
        (step,), (losses,) = _fastest_steps(Variant(2, precision))
        key = "step_share" if precision == "float32" else f"step_share_{precision}"
        lines.append(row(key, losses, step))
    return lines


def _fastest_steps(*variants: Variant) -> tuple[list[float], list[float]]:
    """Times the fastest step of each variant, in milliseconds: the whole steps, and their matching
    and losses."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in variants]
        rounds = [
            [each.submit(_step, v).result() for each, v in zip(processes, variants, strict=True)]
            for _ in range(ROUNDS + 1)
        ]
    whole, losses = 1e3 * np.min(rounds[1:], axis=0).T
    return whole.tolist(), losses.tolist()


def _step(variant: Variant) -> tuple[float, float]:
    """Does a step in the variant's own process. Returns what the function from `_steps` returns."""
    return _prepare(variant)()


@cache
def _prepare(variant: Variant) -> Callable[[], tuple[float, float]]:
    torch.set_num_threads(1)
    if not variant.plain:
        keep_freed_memory()
    return _steps(variant)


def _steps(variant: Variant) -> Callable[[], tuple[float, float]]:
    """Returns a function that does a training step and returns its seconds, and the seconds of
    matching and losses in it, including their backward pass."""
    torch.manual_seed(0)
    backbone = make_backbone("resnet18")
    neck = make_neck("deconv", backbone.feature_info.channels(), 64)
    model = OneNet(backbone, CLASSES, neck=neck)
    loss = DetectionLoss(MatchingCost(), make_matcher("min_cost", "keep"))
    images = torch.randn(variant.batch, 3, SIDE, SIDE)
    targets = scene(variant.batch, OBJECTS, (SIDE // STRIDE, SIDE // STRIDE))[1]
    if variant.plain:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    else:
        model.to(memory_format=build.memory_format(model, "cpu"))
        optimizer = make_optimizer(model, 1e-4, 1e-4)

    def total_loss(outputs: list[HeadOutput], targets: list[Target]) -> Tensor:
        return plain.loss(outputs, targets) if variant.plain else loss(outputs, targets)[0]

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, variant.precision == "bf16"):
            outputs = model(images)
        loss_start = time.perf_counter()
        leaves = [_detach(output) for output in outputs]
        total_loss(leaves, targets).backward()
        loss_end = time.perf_counter()
        pairs = [(getattr(o, name), getattr(leaf, name).grad)
                 for o, leaf in zip(outputs, leaves, strict=True) for name in LEARNED]  # fmt: skip
        torch.autograd.backward(*zip(*pairs, strict=True))
        optimizer.step()
        return time.perf_counter() - start, loss_end - loss_start

    return step


def _detach(output: HeadOutput) -> HeadOutput:
    """Returns the predictions as leaves, so that the losses' backward pass can be timed alone."""
    leaves = {name: getattr(output, name).detach().requires_grad_() for name in LEARNED}
    return replace(output, **leaves)
