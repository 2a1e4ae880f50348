"""The training loop of one run, top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onenet.data.loading import Batch
from onenet.data.normalization import normalize
from onenet.structures import Matches, Target, unpadded_sizes
from onenet.system.context import RunContext
from onenet.system.distributed import without_sync
from onenet.system.signals import Preempted
from onenet.training.optim import Schedule
from onenet.training.stopwatch import Stopwatch

COUNTS = ("objects", "conflicts")


class Loss(Protocol):
    """What training minimises. `names`: the parts of which the total is the sum."""

    names: tuple[str, ...]

    def match(self, output, targets: Sequence[Target]) -> list[Matches]:
        """The positive samples of each image."""

    def __call__(
        self,
        outputs: Sequence,
        targets: Sequence[Target],
        num_objects: int | None = None,
        lap: Callable[[str], None] = lambda part: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and its parts for the log with the counts `objects` and `conflicts`."""


@dataclass
class Progress:
    """Where a run stands; with model and optimiser all that a resumed run needs."""

    step: int = 0
    seconds: float = 0.0  # spent in training steps, over all resumes
    objects: int = 0  # over all steps and heads
    conflicts: int = 0  # of these, whose cheapest slot another object had as well
    bad_images: list[str] = field(default_factory=list)

    def add_step(self, parts: dict[str, float], batches: Sequence[Batch], seconds: float) -> None:
        """A step is done. `parts`: what it logs, with COUNTS; `batches`: of this process."""
        self.step += 1
        self.seconds += seconds
        self.objects += int(parts["objects"])
        self.conflicts += int(parts["conflicts"])
        bad_images = {name for batch in batches for name in batch.bad_images}
        self.bad_images += sorted(bad_images - {*self.bad_images})


@dataclass
class TrainingState:
    """What the steps change, beside the model."""

    optimizer: Optimizer
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class Hooks:
    """What the loop calls while it runs; by default nothing happens.

    `log` gets a line every `log_every` steps and at the last. `save` is called after a step for
    which `save_due` is true, when the loop is stopped, and at the end. `stop` is asked after every
    step. `snapshot` is called before each step with the number of steps done, and when all are.
    `watch` times the parts of the steps.
    """

    log: Callable[[dict], None] = lambda numbers: None
    log_every: int = 1
    save: Callable[[], None] = lambda: None
    save_due: Callable[[], bool] = lambda: False
    snapshot: Callable[[int], None] = lambda step: None
    stop: Callable[[], bool] = lambda: False
    watch: Stopwatch = field(default_factory=Stopwatch)


def train(
    model: nn.Module,
    loss: Loss,
    batches: Iterator[Batch],
    schedule: Schedule,
    state: TrainingState,
    context: RunContext,
    hooks: Hooks,
    clip: float | None = None,
) -> None:
    """Runs the steps state.progress.step + 1 .. schedule.steps, one batch each.

    `batches`: for every step `context.accumulate` of them, this process's part. `clip`: largest
    gradient norm, None for no clipping. Matching and loss are float32 at any precision. The device
    is waited for once a step. Raises FloatingPointError before the optimiser step if the loss or a
    gradient is not finite, and Preempted, after saving, if `hooks.stop` says so.
    """
    model.train()
    parameters, progress, watch = list(model.parameters()), state.progress, hooks.watch
    while True:
        hooks.snapshot(progress.step)
        started = time.perf_counter()
        watch.start()
        part = list(islice(batches, context.accumulate))
        if not part:
            return
        step = progress.step + 1
        lr = schedule.at(step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

        state.optimizer.zero_grad()
        try:
            sums = _backward(model, loss, part, context, watch)
        except FloatingPointError as error:  # of the matching cost
            raise FloatingPointError(f"step {step}: {error}") from error
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        *sums, grad_norm = torch.cat([sums, norm.double()[None]]).cpu()  # waits for the device
        values = context.world.sum(torch.stack(sums)).tolist()
        parts = dict(zip((*loss.names, *COUNTS), values, strict=True))
        total = sum(parts[name] for name in loss.names)
        _check_finite(total, parts, float(grad_norm), step)
        if clip:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        state.optimizer.step()
        watch.lap("step")

        progress.add_step(parts, part, time.perf_counter() - started)
        if step % hooks.log_every == 0 or step == schedule.steps:
            numbers = {"loss": total, "lr": lr, "grad_norm": float(grad_norm)}
            hooks.log({"step": step, **parts, **numbers})
        stopping = context.world.any(hooks.stop())
        if hooks.save_due() or stopping or step == schedule.steps:
            hooks.save()
        if stopping:
            raise Preempted(f"after step {step}")


def _backward(
    model: nn.Module, loss: Loss, part: list[Batch], context: RunContext, watch: Stopwatch
) -> Tensor:
    """Adds the gradient of the whole batch's loss, of which `part` is this process's part.

    Every piece is divided by the objects of the whole batch, so that the sum over pieces and
    processes is the loss of the batch in one. Returns the parts of that loss and COUNTS, float64 on
    the device.
    """
    device, bf16 = context.device, context.precision == "bf16"
    objects = sum(len(target.gt_labels) for batch in part for target in batch.targets)
    num_objects = int(context.world.sum(torch.tensor(objects)))
    names = (*loss.names, *COUNTS)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    for number, batch in enumerate(part):
        last = number == len(part) - 1
        images = normalize(batch.images.to(device, non_blocking=True))
        targets = [target.to(device) for target in batch.targets]
        watch.lap("data")
        with nullcontext() if last else without_sync(model):
            with torch.autocast(torch.device(device).type, torch.bfloat16, bf16):
                outputs = model(images, unpadded_sizes(targets, device))
            watch.lap("forward")
            total, parts = loss(outputs, targets, num_objects, watch.lap)
            watch.lap("loss")
            (total * context.world.size).backward()  # the processes' gradients are averaged
        values = [parts[name].detach().to(device, torch.float64) for name in names]
        sums += torch.stack(values)
        watch.lap("backward")
    return sums


def _check_finite(total: float, parts: dict[str, float], grad_norm: float, step: int) -> None:
    if not math.isfinite(total):
        bad = ", ".join(f"{k} {v}" for k, v in parts.items() if not math.isfinite(v))
        raise FloatingPointError(f"the loss is not finite at step {step}: {bad}")
    if not math.isfinite(grad_norm):
        raise FloatingPointError(f"the gradient is not finite at step {step}: norm {grad_norm}")
