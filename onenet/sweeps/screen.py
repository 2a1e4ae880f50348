"""Shows the progress of runs on the screen."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onenet.sweeps.process import RunProcess

LINE_SECONDS = 30  # between progress lines where the screen is not a terminal
COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=20),
    TextColumn("{task.fields[note]}", markup=False),
    TimeRemainingColumn(),
)


class Screen:
    """Shows a bar for each run on a terminal, elsewhere a line now and then."""

    def __init__(self, console: Console):
        self._console, self._line_time = console, time.monotonic()
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
            for process in active:
                self._show_bar(process)
        elif time.monotonic() - self._line_time > LINE_SECONDS:
            self._line_time = time.monotonic()
            self._console.out(f"{'; '.join(map(_progress, active))}; {waiting} waiting")

    def _show_bar(self, process: RunProcess) -> None:
        metrics, steps = process.run.folder.last_metrics(), process.run.config.steps or 0
        step = metrics.get("step", 0)
        note = "evaluating" if step >= steps else f"step {step}/{steps}"
        if "loss" in metrics and step < steps:
            note += f"  loss {metrics['loss']:.2f}"
        if process not in self._tasks:
            self._tasks[process] = self._bars.add_task(process.run.name, total=steps, note=note)
        self._bars.update(self._tasks[process], completed=step, note=note)

    def show_end(self, process: RunProcess) -> None:
        if process in self._tasks:
            self._bars.remove_task(self._tasks.pop(process))
        minutes, seconds = divmod(round(time.monotonic() - process.started), 60)
        # A run that still runs belongs to another sweep.
        texts = {"done": "done", "partial": "stopped", "running": "left"}
        text = texts.get(process.run.state(), "FAILED")
        self._console.out(f"{text:8}{process.run.name}  {minutes}:{seconds:02d}")


def _progress(process: RunProcess) -> str:
    run, elapsed = process.run, time.monotonic() - process.started
    step, steps = run.folder.last_metrics().get("step", 0), run.config.steps or 0
    rest = f", {elapsed / step * (steps - step) / 60:.1f} min left" if 0 < step < steps else ""
    return f"{run.name} {step}/{steps}{rest}"
