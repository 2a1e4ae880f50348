"""The cores and GPUs of this machine, and how runs share them."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from onenet.config.options import LauncherOptions
from onenet.config.schema import Config
from onenet.errors import UserError

NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Resources:
    """Where one run at a time takes place."""

    processes: int  # one a GPU, or one on the processor
    threads: int  # of each process
    gpus: tuple[str, ...] | None  # CUDA_VISIBLE_DEVICES; None: as it is


def places(config: Config, options: LauncherOptions, runs: int) -> list[Resources]:
    """As many places as runs at a time: `hydra.launcher.jobs`, or what cores and GPUs allow."""
    cores, devices = count_cores(), [] if config.device == "cpu" else gpus()
    require_gpu(config, len(devices))
    most = config.batch // config.accumulate  # each process needs an image
    processes = config.processes or max(1, min(len(devices), most))
    if devices and processes > len(devices):
        raise UserError(
            f"processes={processes}, but there are {len(devices)} GPUs here: "
            "lower processes, or device=cpu."
        )
    threads = options.threads
    if devices:
        jobs = max(1, len(devices) // processes)
    else:
        jobs = max(1, cores // ((threads or 1) * processes))
    jobs = options.jobs or min(jobs, runs)
    threads = threads or max(1, cores // (jobs * processes))
    return [
        # More jobs than there is room for share the GPUs.
        Resources(
            processes, threads, _cut(devices, job * processes, processes) if devices else None
        )
        for job in range(jobs)
    ]


def require_gpu(config: Config, gpus: int) -> None:
    """Raises UserError if the run needs one and this machine has none."""
    if config.sync_bn and not gpus:
        raise UserError("sync_bn=true needs CUDA, and there is no GPU for it: leave it out.")


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if NVIDIA.is_dir():
        return [str(at) for at, _ in enumerate(NVIDIA.iterdir())]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(at) for at, _ in enumerate(lines)]


def _cut(devices: list[str], start: int, count: int) -> tuple[str, ...]:
    return tuple(devices[(start + at) % len(devices)] for at in range(count))
