"""Writes metrics.jsonl, the checkpoint and progress lines while a run trains."""

import os
import time

from torch import nn

from onenet.config.absolute import batch_factor, lr_scale
from onenet.config.schema import Config
from onenet.runs.folder import RunFolder
from onenet.runs.metrics import format_line
from onenet.system.context import RunContext
from onenet.system.files import write_atomically
from onenet.system.plural import plural
from onenet.training import checkpoint
from onenet.training.loop import TrainingState
from onenet.training.stopwatch import Stopwatch

PRINT_EVERY = 10  # seconds between progress lines


class TrainingLog:
    """Writes the log, the checkpoints and the progress lines of one training.

    Only the first process of a run writes. Call `begin` first.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        run_id: str,
        model: nn.Module,
        state: TrainingState,
        context: RunContext,
        watch: Stopwatch,
    ):
        self.folder, self.config, self.id, self.model = folder, config, run_id, model
        self.state, self.progress, self.watch = state, state.progress, watch
        self.context, self.is_writer = context, context.world.first
        self.first_step, self.start_time = state.progress.step, time.monotonic()
        self.save_time, self.print_time = self.start_time, 0.0  # of the last one

    def begin(self) -> None:
        """Continues from the checkpoint: drops the lines that were written after it."""
        if self.is_writer:
            cut_back(self.folder, self.progress.step)
            self.folder.set_status(saved_step=self.progress.step)
            print(rate_and_batch(self.config, self.context), flush=True)

    def append(self, numbers: dict) -> None:
        """Appends the numbers of a step to metrics.jsonl.

        Adds `seconds`: the mean time per step since the last line, by part of the step.
        """
        numbers["seconds"] = self.watch.mean()
        if not self.is_writer:
            return
        numbers["wall"] = round(self.progress.seconds, 3)
        with open(self.folder.metrics_file, "a") as lines:
            lines.write(format_line(numbers))
        self._print_progress(numbers)

    def save_due(self) -> bool:
        return self.is_writer and time.monotonic() - self.save_time >= self.config.save_every

    def save(self) -> None:
        """Replaces the checkpoint."""
        if self.is_writer:
            checkpoint.save(self.folder, self.id, self.model, self.state.optimizer, self.progress)
            self.folder.set_status(saved_step=self.progress.step)
            self.save_time = time.monotonic()

    def _print_progress(self, numbers: dict) -> None:
        """Prints a line every PRINT_EVERY seconds and at the last step."""
        now, step, steps = time.monotonic(), numbers["step"], self.config.steps
        if now - self.print_time < PRINT_EVERY and step < steps:
            return
        self.print_time = now
        seconds_per_step = (now - self.start_time) / (step - self.first_step)
        minutes, seconds = divmod(round(seconds_per_step * (steps - step)), 60)
        print(
            f"step {step}/{steps}  loss {numbers['loss']:.3f}  lr {numbers['lr']:.2g}  "
            f"{minutes}:{seconds:02d} left",
            flush=True,
        )


def rate_and_batch(config: Config, context: RunContext) -> str:
    """Returns a line that says how the batch is split and how the learning rate was derived."""
    o, world, precision = config.optim, context.world, context.precision
    micro_batches = world.size * context.accumulate
    factors = f"{o.base_lr:g} × {lr_scale(config):g} (lr_scale) × {batch_factor(config):.4g}"
    factors += f" (optim.batch_rule={o.batch_rule}, {config.batch} of {o.base_batch} images)"
    follows_rule = config.lr == o.base_lr * lr_scale(config) * batch_factor(config)
    return (
        f"batch {config.batch}: {plural(world.size, 'process')} × "
        f"{context.accumulate} × {config.batch / micro_batches:g} images, {precision}; "
        f"lr {config.lr:g} = {factors if follows_rule else 'set explicitly'}"
    )


def add_line(folder: RunFolder, key: dict, metrics: dict) -> None:
    """Appends a line to metrics.jsonl, unless an earlier attempt has written it (same `key`)."""
    if any(key.items() <= line.items() for line in folder.metrics()):
        return
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
    with open(folder.metrics_file, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # torn by a kill
                file.write(b"\n")
        file.write(format_line({**key, **numbers}).encode())


def cut_back(folder: RunFolder, step: int) -> None:
    """Drops the lines of metrics.jsonl after the checkpoint's step, so that no step is repeated,
    and torn ones."""
    if folder.metrics_file.is_file():
        lines = [line for line in folder.metrics() if line["step"] <= step]
        write_atomically(folder.metrics_file, "".join(map(format_line, lines)))
