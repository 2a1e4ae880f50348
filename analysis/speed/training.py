"""A training step of OneNet ResNet-18 (neck=deconv) at 512×512: against a plain one, and how much
of it is matching and losses.

Each variant lives in a process of its own, since the allocator is a matter of the process; they
take turns.
"""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.speed import plain
from analysis.speed.scenes import STRIDE, scene
from analysis.speed.timing import Timing
from onenet.assigners import make_matcher
from onenet.costs import MatchingCost
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import make_neck
from onenet.detectors.onenet import OneNet
from onenet.job import build
from onenet.losses import DetectionLoss
from onenet.structures import HeadOutput, Target
from onenet.system.memory import keep_freed_memory
from onenet.training.optim import make_optimizer

SIDE, CLASSES, OBJECTS, ROUNDS = 512, 80, 7, 5
WHERE = f"ResNet-18, neck=deconv, {SIDE}×{SIDE}, {OBJECTS} objects an image"


@dataclass(frozen=True)
class Variant:
    """`plain`: contiguous, default allocator, torchvision's losses; else as the suite trains."""

    batch: int
    precision: str = "float32"
    plain: bool = False


def rows() -> list[Timing]:
    fast = build.precision("auto", "cpu")
    precisions = list(dict.fromkeys([fast, "float32"]))
    variants = [Variant(8, precision) for precision in precisions]
    (*ours, plainly), _ = _least(*variants, Variant(8, plain=True))
    lines = []
    for precision, step in zip(precisions, ours, strict=True):
        key, goal = ("train_step", 1.5) if precision == fast else ("train_step_float32", None)
        lines.append(Timing(key, f"{WHERE}, batch 8, ours {precision}", plainly, step, "ms", goal))
    for precision in reversed(precisions):
        (step,), (part,) = _least(Variant(2, precision))
        plain_precision = precision == "float32"
        key, goal = ("step_share", 0.03) if plain_precision else (f"step_share_{precision}", None)
        what = f"matching and losses in a step of ours, {WHERE}, batch 2, {precision}"
        lines.append(Timing(key, what, part, step, "ms", goal, at_most=True))
    return lines


def _least(*variants: Variant) -> tuple[list[float], list[float]]:
    """Of the fastest step of each variant: all of it, and its matching and losses; milliseconds."""
    with ExitStack() as stack:
        steps = [stack.enter_context(_in_a_process(variant)) for variant in variants]
        times = [[step() for step in steps] for _ in range(ROUNDS + 1)][1:]
    best = [min(of_variant) for of_variant in zip(*times, strict=True)]
    return [1e3 * whole for whole, _ in best], [1e3 * part for _, part in best]


@contextmanager
def _in_a_process(variant: Variant):
    """A function that has the variant's process do a step and returns `_steps`' answer."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(variant, there), daemon=True)
    process.start()

    def step() -> tuple[float, float]:
        here.send(None)
        return here.recv()

    yield step
    process.terminate()
    process.join()


def _serve(variant: Variant, pipe) -> None:
    torch.set_num_threads(1)
    if not variant.plain:
        keep_freed_memory()
    step = _steps(variant)
    while True:
        pipe.recv()
        pipe.send(step())


def _steps(variant: Variant) -> Callable[[], tuple[float, float]]:
    """A training step that returns its seconds, and those of matching and losses in it, their
    backward pass included."""
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

    def total_of(outputs: list[HeadOutput], targets: list[Target]) -> Tensor:
        return plain.loss(outputs, targets) if variant.plain else loss(outputs, targets)[0]

    def step() -> tuple[float, float]:
        begin = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, variant.precision == "bf16"):
            outputs = model(images)
        predicted = time.perf_counter()
        leaves = [_cut(output) for output in outputs]
        total_of(leaves, targets).backward()
        matched = time.perf_counter()
        tensors = [t for o in outputs for t in (o.class_logits, o.boxes_xyxy)]
        torch.autograd.backward(
            tensors, [t.grad for leaf in leaves for t in (leaf.class_logits, leaf.boxes_xyxy)]
        )
        optimizer.step()
        return time.perf_counter() - begin, matched - predicted

    return step


def _cut(output: HeadOutput) -> HeadOutput:
    """The same predictions as leaves, so that the losses' backward pass can be timed."""
    leaves = {
        name: getattr(output, name).detach().requires_grad_()
        for name in ("class_logits", "boxes_xyxy")
    }
    return replace(output, **leaves)
