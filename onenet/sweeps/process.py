"""A run's own process: its resources, its command line, and how it ends."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.sweeps.plan import Run
from onenet.system.imports import python_path
from onenet.system.plural import plural


class NotDone(Exception):
    """A run did not end well; its folder says why."""


@dataclass(frozen=True)
class Resources:
    """The resources of one run."""

    processes: int  # one per GPU, or one on the CPU
    threads: int  # of each process
    gpus: tuple[str, ...] | None  # CUDA_VISIBLE_DEVICES; None: inherited


def resources_text(resources: list[Resources]) -> str:
    """For example: 2 at a time, each with 1 thread"""
    processes, threads, gpus = resources[0].processes, resources[0].threads, resources[0].gpus
    parts = [
        plural(processes, "process") if processes > 1 else "",
        plural(len(gpus), "GPU") if gpus else "",
        plural(processes * threads, "thread"),
    ]
    return f"{len(resources)} at a time, each with {', '.join(filter(None, parts))}"


def require_gpu(config: Config, gpus: int) -> None:
    """Raises UserError if the run needs a GPU and there is none."""
    if config.sync_bn and not gpus:
        raise UserError("sync_bn=true needs CUDA, and there is no GPU for it: leave it out.")


def count_processes(config: Config, gpus: int) -> int:
    """Returns `processes`, by default one per GPU as long as each gets an image. Raises UserError
    if the run needs a GPU and there is none."""
    require_gpu(config, gpus)
    return config.processes or max(1, min(gpus, config.batch // config.accumulate))


class Handle(Protocol):
    """What a subprocess and a Slurm job have in common."""

    returncode: int | None

    def poll(self) -> int | None: ...


@dataclass(eq=False)
class RunProcess:
    """A run that was started."""

    run: Run
    resources: Resources
    handle: Handle
    on_cluster: bool = False
    started: float = field(default_factory=time.monotonic)

    def has_ended(self) -> bool:
        return self.handle.poll() is not None

    def note_end(self) -> None:
        """Records in the run's folder how the run ended, if the run itself could not."""
        # Killed by Slurm, or one of several processes: the exit status is 1, not a signal.
        indirect = self.on_cluster or self.resources.processes > 1
        killed = indirect or (self.handle.returncode or 0) < 0
        self.run.folder.note_end("killed" if killed else "failed")


def command(folder: RunFolder, request: Path, processes: int) -> list[str]:
    """Returns the command of a run's process, with `torchrun` if there are several."""
    arguments = [sys.executable]
    if processes > 1:
        arguments += ["-m", "torch.distributed.run", "--standalone"]
        arguments += ["--nproc-per-node", str(processes)]
    return [*arguments, "-m", "onenet.job", str(folder.path), str(request)]


def environment(resources: Resources) -> dict[str, str]:
    """Returns the environment variables that the command needs in addition."""
    return {
        # Threads that spin take time from other processes on the same cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": str(resources.threads),
        "RAYON_NUM_THREADS": str(resources.threads),  # of hotcoco
        **({"CUDA_VISIBLE_DEVICES": ",".join(resources.gpus)} if resources.gpus else {}),
    }
