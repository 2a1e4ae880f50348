"""What a run writes while it trains: metrics.jsonl, the checkpoint, a line on the screen."""

import json
import time

from torch import nn

from onenet.config.absolute import batch_factor, lr_scale
from onenet.config.schema import Config
from onenet.runs.folder import RunFolder
from onenet.system.context import RunContext
from onenet.system.files import write_atomically
from onenet.system.plural import plural
from onenet.training import checkpoint
from onenet.training.loop import TrainingState
from onenet.training.stopwatch import Stopwatch

SAY_EVERY = 10  # seconds between lines on the screen


class TrainingRecord:
    """Writes down a training: a line, a checkpoint, a word on the screen. Only the first process
    of a run writes. `begin` comes before all else."""

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
        self.context, self.writes = context, context.world.first
        self.first_step, self.started = state.progress.step, time.monotonic()
        self.saved, self.said = self.started, 0.0

    def begin(self) -> None:
        """Goes on where the checkpoint is: what was written after it is cut off."""
        if self.writes:
            cut_back(self.folder, self.progress.step)
            self.folder.set_status(saved_step=self.progress.step)
            print(rate_and_batch(self.config, self.context), flush=True)

    def log(self, numbers: dict) -> None:
        """Appends the numbers of a step, and where the time of the steps since the last line went:
        `seconds` a step, by its parts."""
        numbers["seconds"] = self.watch.mean()
        if not self.writes:
            return
        numbers["wall"] = round(self.progress.seconds, 3)
        with open(self.folder.metrics_file, "a") as lines:
            lines.write(json.dumps(numbers) + "\n")
        self._say(numbers)

    def save_due(self) -> bool:
        return self.writes and time.monotonic() - self.saved >= self.config.save_every

    def save(self) -> None:
        """Replaces the checkpoint."""
        if self.writes:
            checkpoint.save(self.folder, self.id, self.model, self.state.optimizer, self.progress)
            self.folder.set_status(saved_step=self.progress.step)
            self.saved = time.monotonic()

    def _say(self, numbers: dict) -> None:
        """A line on the screen, now and then."""
        now, step, steps = time.monotonic(), numbers["step"], self.config.steps
        if now - self.said < SAY_EVERY and step < steps:
            return
        self.said = now
        pace = (now - self.started) / (step - self.first_step)
        minutes, seconds = divmod(round(pace * (steps - step)), 60)
        print(
            f"step {step}/{steps}  loss {numbers['loss']:.3f}  lr {numbers['lr']:.2g}  "
            f"{minutes}:{seconds:02d} left",
            flush=True,
        )


def rate_and_batch(config: Config, context: RunContext) -> str:
    """How the batch is worked through, and where the learning rate comes from; a line."""
    o, world, precision = config.optim, context.world, context.precision
    pieces = world.size * context.accumulate
    factors = f"{o.base_lr:g} × {lr_scale(config):g} (lr_scale) × {batch_factor(config):.4g}"
    factors += f" (optim.batch_rule={o.batch_rule}, {config.batch} of {o.base_batch} images)"
    by_rule = config.lr == o.base_lr * lr_scale(config) * batch_factor(config)
    return (
        f"batch {config.batch}: {plural(world.size, 'process')} × "
        f"{context.accumulate} × {config.batch / pieces:g} images, {precision}; "
        f"lr {config.lr:g} = {factors if by_rule else 'as it was set'}"
    )


def add_line(folder: RunFolder, what: dict, metrics: dict) -> None:
    """Appends to metrics.jsonl, unless an attempt that was killed right after has done it."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
    with open(folder.metrics_file, "a+") as file:
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # torn by a kill
            file.truncate(sum(len(line.encode()) for line in lines[:-1]))
            lines.pop()
        if not any(what.items() <= json.loads(line).items() for line in lines):
            file.write(json.dumps({**what, **numbers}) + "\n")


def cut_back(folder: RunFolder, step: int) -> None:
    """Drops the lines of metrics.jsonl beyond the checkpoint: each step stands there once."""
    if not folder.metrics_file.is_file():
        return
    kept = []
    for line in folder.metrics_file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # torn by a crash: the last one
            break
    write_atomically(folder.metrics_file, "".join(kept))
