"""Runs what `expansion` lists: plan, a process a run, progress, the table at the end. No torch."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from onenet import answer
from onenet.config import REPOSITORY, Config, to_dict
from onenet.data.sources import check_splits
from onenet.errors import UserError
from onenet.expansion import Cell
from onenet.identity import EvalSpec, default_evaluation
from onenet.request import Request
from onenet.runs import RunFolder

POLL = 0.5  # seconds between looks at the runs
SAY_EVERY = 30  # seconds between lines where the screen is not a terminal


@dataclass
class Planned:
    """One training with all evaluations that the sweep wants of it."""

    cells: list[Cell]
    process: subprocess.Popen | None = None
    started: float = 0.0
    ended_with: int | None = None
    task: TaskID | None = field(default=None, repr=False)

    @property
    def folder(self) -> RunFolder:
        return self.cells[0].folder

    @property
    def config(self) -> Config:
        return self.cells[0].config

    @property
    def name(self) -> str:
        return self.folder.path.name

    def missing(self) -> list[EvalSpec]:
        """The evaluations that are asked for and not there."""
        wanted = [default_evaluation(self.config), *(cell.evaluation for cell in self.cells)]
        return [spec for spec in dict.fromkeys(wanted) if not self.folder.result(spec)]

    def state(self) -> str:
        state = self.folder.state()
        return "partial" if state == "done" and self.missing() else state


def group(cells: list[Cell]) -> list[Planned]:
    """The trainings, each once, however many cells share it."""
    planned: dict[str, Planned] = {}
    for cell in cells:
        planned.setdefault(cell.id, Planned([])).cells.append(cell)
    return list(planned.values())


def print_plan(console: Console, planned: list[Planned]) -> None:
    """One line a run: id, state, overrides. Trains nothing."""
    check_data(console, planned)
    for run in planned:
        for cell in run.cells:
            done = run.folder.state() == "done" and run.folder.result(cell.evaluation)
            state = "done" if done else run.state()
            label = f"  # {cell.experiment}: {cell.label}" if cell.label else ""
            words = " ".join(cell.overrides) or "(defaults)"
            console.out(f"{cell.id}  {state:8}{words}{label}", highlight=False)
    states = [run.state() for run in planned]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    console.out(f"{len(planned)} runs: {counts}. In {planned[0].config.runs_root}", highlight=False)


def check_data(console: Console, planned: list[Planned]) -> None:
    """Reads every data set that is asked for, once. Raises UserError before anything is trained."""
    seen = []
    for run in planned:
        if run.config.data not in seen:
            seen.append(run.config.data)
            for line in check_splits(run.config.data):
                console.out(line, highlight=False)


def run_all(console: Console, planned: list[Planned]) -> bool:
    """Trains and evaluates what is missing, several at a time; a failure stops no other run.

    True if all is there at the end.
    """
    todo = [run for run in planned if run.state() != "done"]
    done = len(planned) - len(todo)
    if todo:
        check_data(console, todo)
        jobs, threads = share_of_cores(planned[0].config, len(todo))
        console.out(
            f"{len(planned)} runs, {done} already done, {len(todo)} to do: "
            f"{jobs} at a time, {threads} thread{'s'[: threads > 1]} each",
            highlight=False,
        )
        _work(console, todo, jobs, threads)
    return all(run.state() == "done" for run in planned)


def share_of_cores(config: Config, runs: int) -> tuple[int, int]:
    """How many runs at a time, with how many threads each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = config.sweep.jobs or max(1, min(cores // (config.sweep.threads or 1), runs))
    return jobs, config.sweep.threads or max(1, cores // jobs)


def _work(console: Console, todo: list[Planned], jobs: int, threads: int) -> None:
    for run in todo:
        if run.folder.state() in ("missing", "failed", "partial"):
            run.folder.freeze(to_dict(run.config))
    # The long ones first, so that no core idles at the end.
    waiting = sorted(todo, key=lambda run: -run.config.steps * (1 + run.config.heads))
    active: list[Planned] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    said = time.monotonic()
    bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with bars:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(start(waiting.pop(0), threads))
                time.sleep(POLL)
                for run in active:
                    _show(bars, run)
                for run in [r for r in active if r.process.poll() is not None]:
                    active.remove(run)
                    _finish(console, bars, run)
                if not console.is_terminal and time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    _say(console, active, waiting)
        finally:
            for run in active:  # Ctrl-C, or an error here: no run outlives its sweep
                run.process.terminate()


def start(run: Planned, threads: int) -> Planned:
    """Starts the run's own process, which writes to log.txt."""
    request = Request([c.evaluation for c in run.cells], list(run.cells[0].overrides), threads)
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    run.started = time.monotonic()
    with open(run.folder.log_file, "ab") as log:
        run.process = subprocess.Popen(
            [sys.executable, "-m", "onenet.job", run.folder.path, "--request", request.dump()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve whatever shares the cores
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": str(threads),
            },
        )
    return run


def _show(bars: Progress, run: Planned) -> None:
    last = run.folder.last_metrics()
    step = last.get("step", 0)
    note = f"step {step}/{run.config.steps}"
    if "loss" in last:
        note += f"  loss {last['loss']:.2f}"
    if step >= run.config.steps:
        note = "evaluating"
    if run.task is None:
        run.task = bars.add_task(run.name, total=run.config.steps, note=note)
    bars.update(run.task, completed=step, note=note)


def _finish(console: Console, bars: Progress, run: Planned) -> None:
    run.ended_with = run.process.returncode
    if run.task is not None:
        bars.remove_task(run.task)
    minutes, seconds = divmod(round(time.monotonic() - run.started), 60)
    if run.state() == "done":
        console.out(f"done    {run.name}  {minutes}:{seconds:02d}", highlight=False)
    else:
        console.out(f"FAILED  {run.name}  {minutes}:{seconds:02d}", highlight=False)


def failure(run: Planned) -> str:
    """Why the run is not done, in a line."""
    if run.ended_with == 3:
        return "another process is running it"
    if run.ended_with in (1, 2):
        log = run.folder.log_file.read_text(errors="replace")
        return " ".join(log.rpartition("error: ")[2].split())
    return f"ended with {run.ended_with} (killed, or out of memory?)"


def _say(console: Console, active: list[Planned], waiting: list[Planned]) -> None:
    parts = []
    for run in active:
        step, steps = run.folder.last_metrics().get("step", 0), run.config.steps
        elapsed = time.monotonic() - run.started
        left = f", {elapsed / step * (steps - step) / 60:.1f} min left" if 0 < step < steps else ""
        parts.append(f"{run.name} {step}/{steps}{left}")
    console.out(f"{'; '.join(parts)}; {len(waiting)} waiting", highlight=False)


def print_results(console: Console, planned: list[Planned]) -> None:
    """The table of a sweep's runs and its picture, what failed and why, where everything is."""
    labels = row_labels([cell for run in planned for cell in run.cells])
    rows = [
        (labels[cell], cell, result)
        for run in planned
        for cell in run.cells
        if (result := run.folder.result(cell.evaluation))
    ]
    root = Path(planned[0].config.runs_root)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("run", no_wrap=True)
        for name in ("lr", "AP", "AP(+NMS)", "gain", "gain AP50", "dup/obj", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for label, cell, result in rows:
            table.add_row(label, *_numbers(cell, result))
        console.print(table)
    failed = [run for run in planned if run.state() != "done"]
    for run in failed:
        console.out(f"\nNOT DONE  {run.name}: {failure(run)}", highlight=False)
        console.out(f"  log: {run.folder.log_file}", highlight=False)
    if rows:
        answer.draw([(label, result["metrics"]) for label, _, result in rows], root / "answer.png")
        console.out(f"\nThe picture: {root / 'answer.png'}", highlight=False)
    console.out(f"Everything is in {root}", highlight=False)


def row_labels(cells: list[Cell]) -> dict[Cell, str]:
    """For each cell the label of its row, and the overrides that tell it from its like."""
    labels = {}
    for cell in cells:
        like = [set(other.overrides) for other in cells if other.label == cell.label]
        common = set.intersection(*like) if len(like) > 1 else set()
        own = [o for o in cell.overrides if o not in common]
        words = " ".join(own) if not cell.label or len(like) > 1 else ""
        labels[cell] = ", ".join(filter(None, [cell.label, words])) or "(defaults)"
    return labels


def _numbers(cell: Cell, result: dict) -> list[str]:
    m = result["metrics"]

    def number(name: str, pattern: str) -> str:
        return "-" if m.get(name) is None else format(m[name], pattern)

    return [
        f"{cell.config.lr:.2g}",
        number("AP", ".1f"),
        number("AP_nms", ".1f"),
        number("nms_gain", "+.1f"),
        number("AP50_nms_gain", "+.1f"),
        number("duplicates_per_object", ".2f"),
        f"{m['train_seconds'] / 60:.1f} min",
    ]


def require_one_root(planned: list[Planned]) -> None:
    roots = {run.config.runs_root for run in planned}
    if len(roots) > 1:
        raise UserError(f"One sweep, one runs root, but there are {len(roots)}: {sorted(roots)}")
