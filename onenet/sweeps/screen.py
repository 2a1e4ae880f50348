"""What is on the screen while runs take place."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onenet.sweeps.start import RunProcess

SAY_EVERY = 30  # seconds between lines where the screen is not a terminal
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=20),
    TextColumn("{task.fields[note]}"),
    TimeRemainingColumn(),
)


class Screen:
    """A bar for each run on a terminal, else a line now and then."""

    def __init__(self, console: Console):
        self._console, self._said = console, time.monotonic()
        self._terminal = console.is_terminal
        self._bars = Progress(*COLUMNS, console=console, disable=not self._terminal, transient=True)
        self._tasks: dict[RunProcess, TaskID] = {}

    def __enter__(self) -> "Screen":
        self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        self._bars.stop()

    def show(self, active: list[RunProcess], waiting: int) -> None:
        if self._terminal:
            for handle in active:
                self._show(handle)
        elif time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            parts = "; ".join(map(_progress, active))
            self._console.out(f"{parts}; {waiting} waiting", highlight=False)

    def _show(self, handle: RunProcess) -> None:
        last, steps = handle.run.folder.last_metrics(), handle.run.config.steps or 0
        step = last.get("step", 0)
        note = "evaluating" if step >= steps else f"step {step}/{steps}"
        if "loss" in last and step < steps:
            note += f"  loss {last['loss']:.2f}"
        if handle not in self._tasks:
            self._tasks[handle] = self._bars.add_task(handle.run.name, total=steps, note=note)
        self._bars.update(self._tasks[handle], completed=step, note=note)

    def ended(self, handle: RunProcess) -> None:
        if handle in self._tasks:
            self._bars.remove_task(self._tasks.pop(handle))
        minutes, seconds = divmod(round(time.monotonic() - handle.started), 60)
        words = {"done": "done", "partial": "stopped", "running": "left"}  # left to another sweep
        word = words.get(handle.run.state(), "FAILED")
        self._console.out(f"{word:8}{handle.run.name}  {minutes}:{seconds:02d}", highlight=False)


def _progress(handle: RunProcess) -> str:
    step, steps = handle.run.folder.last_metrics().get("step", 0), handle.run.config.steps or 0
    elapsed = time.monotonic() - handle.started
    left = f", {elapsed / step * (steps - step) / 60:.1f} min left" if 0 < step < steps else ""
    return f"{handle.run.name} {step}/{steps}{left}"
