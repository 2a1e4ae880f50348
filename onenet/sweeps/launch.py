"""Runs what is planned: a process a run, several at a time, and their progress."""

import os
import subprocess
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onenet.config.validate import problems
from onenet.errors import UserError
from onenet.runs.request import note_rows
from onenet.sweeps import slurm
from onenet.sweeps.machine import Place, gpus, places, require_gpu
from onenet.sweeps.plan import Planned, check_data, count, freeze
from onenet.system.files import REPOSITORY

POLL = 0.5  # seconds between looks at the runs
SAY_EVERY = 30  # seconds between lines where the screen is not a terminal
STOP_SECONDS = 40  # for runs to write their checkpoints, when the sweep is stopped


def run_all(console: Console, planned: list[Planned]) -> bool:
    """Trains and evaluates what is missing, several at a time; a failure stops no other run.

    True if all is there at the end.
    """
    states = [(run, run.state()) for run in planned]
    todo = [run for run, state in states if state != "done"]
    done = [run for run, state in states if state == "done"]
    for run in done:
        note_rows(run.folder, run.rows())
    if todo:
        config = planned[0].config
        cluster = slurm.Cluster(config) if config.sweep.launcher == "slurm" else None
        check_data(console, todo)
        free = (slurm.places if cluster else places)(config, len(todo))
        console.out(
            f"{count(planned)}, {len(done)} already done, {len(todo)} to do: {_share(free)}",
            highlight=False,
        )
        _work(console, todo, free, cluster)
    return all(run.state() == "done" for run in planned)


def take_part(planned: list[Planned]) -> int:
    """Does the only run as one of the processes that `torchrun` started. The exit status."""
    from onenet.job.run import work  # torch: nothing else here needs it

    if len(planned) > 1:
        raise UserError(
            f"torchrun serves one run, not {len(planned)}.\n"
            "A sweep starts it by itself for each run: python run.py -m … processes=8"
        )
    (run,) = planned
    run.config.processes = int(os.environ["WORLD_SIZE"])
    if found := problems(run.config):
        raise UserError("\n".join(found))
    require_gpu(run.config, len(gpus()))
    if os.environ["RANK"] == "0":
        check_data(Console(), [run])
        freeze([run])
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    return work(run.folder, run.request(threads), run.config.device)


def _share(free: list[Place]) -> str:
    """For example: 2 at a time, each with 1 thread"""
    processes, threads, gpus = free[0].processes, free[0].threads, free[0].gpus
    each = [
        f"{processes} processes" if processes > 1 else "",
        f"{len(gpus)} GPU{'s'[: len(gpus) > 1]}" if gpus else "",
        f"{processes * threads} thread{'s'[: processes * threads > 1]}",
    ]
    return f"{len(free)} at a time, each with {', '.join(filter(None, each))}"


def _work(
    console: Console, todo: list[Planned], free: list[Place], cluster: slurm.Cluster | None
) -> None:
    freeze(todo)
    # The long ones first, so that no core idles at the end.
    waiting = sorted(todo, key=lambda run: -(run.config.steps or 0) * (1 + run.config.heads))
    active: list[Planned] = []
    failures = 0
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
                while waiting and free:
                    active.append(start(waiting.pop(0), free.pop(0), cluster))
                time.sleep(POLL)
                for run in active:
                    _show(bars, run)
                for run in [r for r in active if r.has_ended()]:
                    active.remove(run)
                    free += [run.place] if run.place else []
                    _finish(console, bars, run)
                    failures += run.state() == "failed"
                if waiting and failures >= (todo[0].config.sweep.max_failures or len(todo) + 1):
                    console.out(f"{failures} failed: the other {len(waiting)} are not started")
                    waiting.clear()
                if not console.is_terminal and time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    _say(console, active, waiting)
        finally:
            stop(console, active)  # a signal, or an error here: no process outlives its sweep


def stop(console: Console, active: list[Planned]) -> None:
    """Has the runs write their checkpoints and end, but for those that Slurm keeps."""
    if kept := [run.process.job for run in active if isinstance(run.process, slurm.SlurmJob)]:
        console.out(f"Slurm goes on with its jobs; to end them: scancel {' '.join(kept)}")
        return
    processes = [run.process for run in active if isinstance(run.process, subprocess.Popen)]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for run in active:
        run.folder.note_end("killed")


def start(run: Planned, place: Place, cluster: slurm.Cluster | None = None) -> Planned:
    """Starts the run's own process, or `torchrun` with several, which write to log.txt; on a
    cluster, submits that."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {
        # Threads that spin starve whatever shares the cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(place.threads),
    }
    if place.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
    command = [sys.executable]
    if place.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(place.processes)]
    command += ["-m", "onenet.job", str(run.folder.path)]
    command += ["--request", run.request(place.threads).dump()]
    run.started, run.place = time.monotonic(), place
    with open(run.folder.log_file, "ab") as log:
        if cluster:
            run.process = cluster.submit(run.folder, command, environment)
            return run
        run.process = subprocess.Popen(
            [*command, "--driver"],
            stdin=subprocess.PIPE,  # ends with this process, however it ends
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
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
    run.ended_with = run.process.returncode if run.process else None
    # What Slurm ended, and torchrun whose process was killed, end with 1.
    elsewhere = isinstance(run.process, slurm.SlurmJob) or (run.place and run.place.processes > 1)
    run.folder.note_end("killed" if elsewhere or (run.ended_with or 0) < 0 else "failed")
    if run.task is not None:
        bars.remove_task(run.task)
    minutes, seconds = divmod(round(time.monotonic() - run.started), 60)
    words = {"done": "done", "partial": "stopped", "running": "left"}  # left to another sweep
    word = words.get(run.state(), "FAILED")
    console.out(f"{word:8}{run.name}  {minutes}:{seconds:02d}", highlight=False)


def _say(console: Console, active: list[Planned], waiting: list[Planned]) -> None:
    parts = []
    for run in active:
        step, steps = run.folder.last_metrics().get("step", 0), run.config.steps
        elapsed = time.monotonic() - run.started
        left = f", {elapsed / step * (steps - step) / 60:.1f} min left" if 0 < step < steps else ""
        parts.append(f"{run.name} {step}/{steps}{left}")
    console.out(f"{'; '.join(parts)}; {len(waiting)} waiting", highlight=False)
