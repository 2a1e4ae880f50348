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
from onenet.system.distributed import ALONE, World, without_sync
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


def train(
    model: nn.Module,
    loss: Loss,
    batches: Iterator[Batch],
    optimizer: Optimizer,
    schedule: Schedule,
    progress: Progress,
    *,
    clip: float | None,
    device: str,
    log_every: int,
    log: Callable[[dict], None],
    save: Callable[[], None],
    save_due: Callable[[Progress], bool],
    world: World = ALONE,
    accumulate: int = 1,
    precision: str = "float32",
    stop: Callable[[], bool] = lambda: False,
    watch: Stopwatch | None = None,
    look: Callable[[int], None] = lambda step: None,
) -> None:
    """Runs the steps progress.step + 1 .. schedule.steps, one batch each.

    `batches`: for every step `accumulate` of them, this process's share. `clip`: largest gradient
    norm, None for no clipping. `precision`: of the network, `float32` or `bf16`; matching and loss
    are float32. `log` gets a line every `log_every` steps and at the last. `save` is called after a
    step for which `save_due` is true, and at the end. `stop` is asked after every step: if it says
    so, the step is saved and Preempted raised. `look` is called before each step with the number of
    steps done, and when all are. `watch` times the parts of the steps. The device is
    waited for once a step.
    Raises FloatingPointError before the optimiser step if the loss or a gradient is not finite.
    """
    model.train()
    parameters = list(model.parameters())
    watch = watch or Stopwatch(device)
    while True:
        look(progress.step)
        started = time.perf_counter()
        watch.start()
        share = list(islice(batches, accumulate))
        if not share:
            return
        step = progress.step + 1
        lr = schedule.at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

        optimizer.zero_grad()
        try:
            sums = _backward(model, loss, share, device, world, precision, watch)
        except FloatingPointError as error:  # of the matching cost
            raise FloatingPointError(f"step {step}: {error}") from error
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        *sums, grad_norm = torch.cat([sums, norm.double()[None]]).cpu()  # waits for the device
        names = (*loss.names, *COUNTS)
        parts = dict(zip(names, world.sum(torch.stack(sums)).tolist(), strict=True))
        total = sum(parts[name] for name in loss.names)
        _check_finite(total, parts, float(grad_norm), step)
        if clip:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        optimizer.step()
        watch.lap("step")

        progress.step = step
        progress.seconds += time.perf_counter() - started
        progress.objects += int(parts["objects"])
        progress.conflicts += int(parts["conflicts"])
        bad_images = {name for batch in share for name in batch.bad_images}
        progress.bad_images += sorted(bad_images - {*progress.bad_images})
        if step % log_every == 0 or step == schedule.steps:
            numbers = {"loss": total, "lr": lr, "grad_norm": float(grad_norm)}
            log({"step": step, **parts, **numbers})
        stopping = world.any(stop())
        if save_due(progress) or stopping or step == schedule.steps:
            save()
        if stopping:
            raise Preempted(f"after step {step}")


def _backward(
    model: nn.Module,
    loss: Loss,
    share: list[Batch],
    device: str,
    world: World,
    precision: str,
    watch: Stopwatch,
) -> Tensor:
    """Adds the gradient of the whole batch's loss, of which `share` is this process's part.

    Every piece is divided by the objects of the whole batch, so that the sum over pieces and
    processes is the loss of the batch in one. Returns the parts of that loss and COUNTS, float64 on
    the device.
    """
    objects = sum(len(target.gt_labels) for batch in share for target in batch.targets)
    num_objects = int(world.sum(torch.tensor(objects)))
    names = (*loss.names, *COUNTS)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    for piece, batch in enumerate(share):
        last = piece == len(share) - 1
        images = normalize(batch.images.to(device, non_blocking=True))
        targets = [target.to(device) for target in batch.targets]
        watch.lap("data")
        with nullcontext() if last else without_sync(model):
            with torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bf16"):
                outputs = model(images, unpadded_sizes(targets, device))
            watch.lap("forward")
            total, parts = loss(outputs, targets, num_objects, watch.lap)
            watch.lap("loss")
            (total * world.size).backward()  # the processes' gradients are averaged
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
