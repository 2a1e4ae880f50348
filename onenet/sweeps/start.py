"""What runs are started by: the command of a run's own process, and what becomes of it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from onenet.runs.folder import RunFolder
from onenet.sweeps.machine import Resources
from onenet.sweeps.plan import Run
from onenet.system.imports import python_path
from onenet.system.plural import plural

STOP_SECONDS = 40  # for runs to write their checkpoints, when the sweep is stopped


class NotDone(Exception):
    """A run did not end well; its folder says why."""


class Process(Protocol):
    """What a subprocess and a job of a cluster have in common."""

    returncode: int | None

    def poll(self) -> int | None: ...


@dataclass(eq=False)
class RunProcess:
    """A run that was started."""

    run: Run
    place: Resources
    process: Process
    on_cluster: bool = False
    started: float = field(default_factory=time.monotonic)

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def note_end(self) -> None:
        """Has the run's folder say how it ended, where the run itself could not."""
        # What Slurm ended, and torchrun whose process was killed, end with 1.
        elsewhere = self.on_cluster or self.place.processes > 1
        killed = elsewhere or (self.process.returncode or 0) < 0
        self.run.folder.note_end("killed" if killed else "failed")


def command(folder: RunFolder, request: Path, processes: int) -> list[str]:
    """Of the run's own process, or of `torchrun` with several."""
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc-per-node", str(processes)]
    return [*words, "-m", "onenet.job", str(folder.path), str(request)]


def environment(place: Resources) -> dict[str, str]:
    """What that process needs beside the variables that are there."""
    return {
        # Threads that spin starve whatever shares the cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": str(place.threads),
        **({"CUDA_VISIBLE_DEVICES": ",".join(place.gpus)} if place.gpus else {}),
    }


def start_here(folder: RunFolder, request: Path, place: Resources) -> subprocess.Popen:
    """Starts it; it writes to log.txt, and ends when this process does, however that ends."""
    with open(folder.log_file, "ab") as log:
        return subprocess.Popen(
            [*command(folder, request, place.processes), "--driver"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(place)},
        )


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Has the runs write their checkpoints and end; kills those that take too long."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def share(free: list[Resources]) -> str:
    """For example: 2 at a time, each with 1 thread"""
    processes, threads, gpus = free[0].processes, free[0].threads, free[0].gpus
    each = [
        plural(processes, "process") if processes > 1 else "",
        plural(len(gpus), "GPU") if gpus else "",
        plural(processes * threads, "thread"),
    ]
    return f"{len(free)} at a time, each with {', '.join(filter(None, each))}"
