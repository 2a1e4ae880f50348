"""The local launcher: each run in a process of its own on this machine, sharing cores and GPUs."""

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.sweeps.launch import RunLauncher
from onenet.sweeps.plan import Run
from onenet.sweeps.process import Resources, RunProcess, command, count_processes, environment

STOP_SECONDS = 40  # for runs to write their checkpoints when the sweep is stopped
NVIDIA = Path("/proc/driver/nvidia/gpus")


class Local(RunLauncher):
    """Starts runs as subprocesses."""

    def resources(self, config: Config, runs: int) -> list[Resources]:
        """Divides the machine among `hydra.launcher.jobs` runs, or as many as cores and GPUs
        allow."""
        cores, devices = count_cores(), [] if config.device == "cpu" else gpus()
        processes, threads = count_processes(config, len(devices)), self.options.threads
        if devices and processes > len(devices):
            raise UserError(
                f"processes={processes}, but there are {len(devices)} GPUs here: "
                "lower processes, or set device=cpu."
            )
        room = len(devices) // processes if devices else cores // ((threads or 1) * processes)
        jobs = self.options.jobs or min(max(1, room), runs)
        threads = threads or max(1, cores // (jobs * processes))
        cycle = itertools.cycle(devices)  # more jobs than there is room for share the GPUs
        return [
            Resources(processes, threads, tuple(itertools.islice(cycle, processes)) or None)
            for _ in range(jobs)
        ]

    def start(self, run: Run, resources: Resources) -> RunProcess:
        request = run.request(resources.threads).write(run.folder)
        return RunProcess(run, resources, start_process(run.folder, request, resources))

    def stop(self, console: Console, active: list[RunProcess]) -> None:
        stop_processes([p.handle for p in active if isinstance(p.handle, subprocess.Popen)])
        for process in active:
            process.run.folder.note_end("killed")


def start_process(folder: RunFolder, request: Path, resources: Resources) -> subprocess.Popen:
    """Starts a run's process. It writes to log.txt, and ends when this process does, in whatever
    way that ends."""
    with open(folder.log_file, "ab") as log:
        return subprocess.Popen(
            [*command(folder, request, resources.processes), "--driver"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(resources)},
        )


def stop_processes(processes: Sequence[subprocess.Popen]) -> None:
    """Asks runs to write their checkpoints and end; kills those that take too long."""
    for process in processes:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # one that is suspended would not see it
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """Returns the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if NVIDIA.is_dir():
        count = len(list(NVIDIA.iterdir()))
    elif shutil.which("nvidia-smi"):
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        count = sum(line.startswith("GPU ") for line in output.stdout.splitlines())
    else:
        count = 0
    return [str(index) for index in range(count)]
