"""The training loop of one run, top to bottom."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onenet.data.loading import Batch
from onenet.detectors.onenet import normalize
from onenet.losses import DetectionLoss
from onenet.optim import Schedule


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
    loss: DetectionLoss,
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
) -> None:
    """Runs the steps progress.step + 1 .. schedule.steps, one batch each.

    `clip`: largest gradient norm, None for no clipping. `log` gets a line every `log_every` steps
    and at the last. `save` is called after a step for which `save_due` is true, and at the end.
    Raises FloatingPointError before the optimiser step if the loss or a gradient is not finite.
    """
    model.train()
    started = time.perf_counter()
    for batch in batches:
        step = progress.step + 1
        lr = schedule.at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        images = normalize(batch.images.to(device, non_blocking=True))
        targets = [target.to(device) for target in batch.targets]
        total, parts = loss(model(images), targets)
        _check_finite(total, parts, step)
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or torch.inf)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {step}: norm {norm}")
        optimizer.step()

        progress.step = step
        progress.seconds += time.perf_counter() - started
        started = time.perf_counter()
        progress.objects += int(parts["objects"])
        progress.conflicts += int(parts["conflicts"])
        progress.bad_images += sorted({*batch.bad_images} - {*progress.bad_images})
        if step % log_every == 0 or step == schedule.steps:
            numbers = {name: float(value.detach()) for name, value in parts.items()}
            numbers |= {"loss": float(total.detach()), "lr": lr, "grad_norm": float(norm)}
            log({"step": step, **numbers})
        if save_due(progress) or step == schedule.steps:
            save()


def _check_finite(total: Tensor, parts: dict[str, Tensor], step: int) -> None:
    if not torch.isfinite(total):
        bad = ", ".join(f"{k} {v.item()}" for k, v in parts.items() if not torch.isfinite(v))
        raise FloatingPointError(f"the loss is not finite at step {step}: {bad}")
