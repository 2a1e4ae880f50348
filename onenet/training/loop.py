"""The training loop of one run."""

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
    """The training loss. `names`: the parts that add up to the total."""

    names: tuple[str, ...]

    def match(self, output, targets: Sequence[Target]) -> list[Matches]:
        """Returns the positive samples of each image."""

    def __call__(
        self,
        outputs: Sequence,
        targets: Sequence[Target],
        num_objects: int | None = None,
        lap: Callable[[str], None] = lambda part: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the total, and for the log its parts and the counts `objects` and `conflicts`."""


@dataclass
class Progress:
    """The progress of a run; with model and optimiser, everything needed to resume."""

    step: int = 0
    seconds: float = 0.0  # spent in training steps, over all resumes
    objects: int = 0  # over all steps and heads
    conflicts: int = 0  # those objects whose cheapest slot is also another object's
    bad_images: list[str] = field(default_factory=list)

    def add_step(self, parts: dict[str, float], batches: Sequence[Batch], seconds: float) -> None:
        """Adds a finished step. `parts`: its loss parts and COUNTS; `batches`: its micro-batches in
        this process."""
        self.step += 1
        self.seconds += seconds
        self.objects += int(parts["objects"])
        self.conflicts += int(parts["conflicts"])
        bad_images = {name for batch in batches for name in batch.bad_images}
        self.bad_images += sorted(bad_images - {*self.bad_images})


@dataclass
class TrainingState:
    """The state that training steps change, apart from the model."""

    optimizer: Optimizer
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop; by default they do nothing.

    `log` gets the numbers of every `log_every`-th step and of the last one. `save` is called after
    a step if `save_due` returns true, when the loop is stopped, and at the end. `stop` is called
    after every step. `snapshot` is called with the number of finished steps, before each step and
    at the end. `watch` times the parts of the steps.
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

    `batches`: this process's micro-batches, `context.accumulate` for each step. `clip`: largest
    gradient norm, None for no clipping. Matching and loss use float32 at any precision. Each step
    waits for the device once. Raises FloatingPointError before the optimiser step if the loss or
    a gradient is not finite, and Preempted, after saving, if `hooks.stop` returns true.
    """
    model.train()
    parameters, progress, watch = list(model.parameters()), state.progress, hooks.watch
    while True:
        hooks.snapshot(progress.step)
        started = time.perf_counter()
        watch.start()
        micro_batches = list(islice(batches, context.accumulate))
        if not micro_batches:
            return
        step = progress.step + 1
        lr = schedule.at(step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

        state.optimizer.zero_grad()
        try:
            sums = _backward(model, loss, micro_batches, context, watch)
        except FloatingPointError as error:  # from the matching cost
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

        progress.add_step(parts, micro_batches, time.perf_counter() - started)
        if step % hooks.log_every == 0 or step == schedule.steps:
            numbers = {"loss": total, "lr": lr, "grad_norm": float(grad_norm)}
            hooks.log({"step": step, **parts, **numbers})
        stopping = context.world.any(hooks.stop())
        if hooks.save_due() or stopping or step == schedule.steps:
            hooks.save()
        if stopping:
            raise Preempted(f"after step {step}")


def _backward(
    model: nn.Module, loss: Loss, micro_batches: list[Batch], context: RunContext, watch: Stopwatch
) -> Tensor:
    """Adds the gradients of this process's micro-batches.

    The loss of each micro-batch is divided by the number of objects in the whole batch, so that the
    sum over micro-batches and processes is the loss of the whole batch. Returns this process's sums
    of the loss parts and COUNTS, float64 on the device.
    """
    device, bf16 = context.device, context.precision == "bf16"
    objects = sum(len(target.gt_labels) for batch in micro_batches for target in batch.targets)
    num_objects = int(context.world.sum(torch.tensor(objects)))
    names = (*loss.names, *COUNTS)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    for number, batch in enumerate(micro_batches):
        is_last = number == len(micro_batches) - 1
        images = normalize(batch.images.to(device, non_blocking=True))
        targets = [target.to(device) for target in batch.targets]
        watch.lap("data")
        with nullcontext() if is_last else without_sync(model):
            with torch.autocast(torch.device(device).type, torch.bfloat16, bf16):
                outputs = model(images, unpadded_sizes(targets, device))
            watch.lap("forward")
            total, parts = loss(outputs, targets, num_objects, watch.lap)
            watch.lap("loss")
            (total * context.world.size).backward()  # DDP averages over processes
        values = [parts[name].detach().to(device, torch.float64) for name in names]
        sums += torch.stack(values)
        watch.lap("backward")
    return sums


def _check_finite(total: float, parts: dict[str, float], grad_norm: float, step: int) -> None:
    if not math.isfinite(total):
        terms = ", ".join(f"{k} {v}" for k, v in parts.items() if not math.isfinite(v))
        raise FloatingPointError(f"the loss is not finite at step {step}: {terms}")
    if not math.isfinite(grad_norm):
        raise FloatingPointError(f"the gradient is not finite at step {step}: norm {grad_norm}")
