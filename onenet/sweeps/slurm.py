"""Runs of a sweep as Slurm jobs: submitit submits and requeues them, squeue knows which still live.

A job goes on without the sweep that submitted it. When Slurm announces that it takes the machine
away, or that the time is up, the run writes its checkpoint, and the same job is queued again. The
runs root must be on a file system that all nodes see; submitit's files lie in its `.slurm/`. Needs
no accounting (sacct).
"""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from onenet.config.options import SlurmOptions
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.sweeps.machine import Resources, require_gpu
from onenet.system.signals import EXIT_STATUS

TIME_OUTS = 100  # times that a job may reach its time limit and is queued again
SAVE_SECONDS = 60  # for a run to write its checkpoint; Slurm announces the end 90 before
LOOK_EVERY = 5  # seconds between calls of squeue
SETTLE_SECONDS = 30  # until what another node wrote is seen here
SUBMITIT = ("setup", "signal_delay_s", "srun_args")  # in hydra.launcher.more: no options of sbatch


def places(config: Config, options: SlurmOptions, runs: int) -> list[Resources]:
    """One for each run, or `hydra.launcher.jobs`: Slurm has the queue. GPUs are those that Slurm
    gives."""
    require_gpu(config, options.gpus)
    most = config.batch // config.accumulate  # each process needs an image
    processes = config.processes or max(1, min(options.gpus, most))
    threads = options.threads or max(1, options.cpus // processes)
    return [Resources(processes, threads, None)] * min(options.jobs or runs, runs)


class Cluster:
    """Submits runs. Raises UserError if there is no Slurm here, or it refuses what is asked."""

    def __init__(self, options: SlurmOptions, root: Path):
        try:
            import submitit
            from submitit.core.utils import FailedJobError, FailedSubmissionError
        except ImportError:
            raise UserError(
                "hydra/launcher=slurm needs submitit: pip install -e '.[slurm]', where run.py is."
            ) from None
        for tool in ("sbatch", "srun", "squeue"):
            if not shutil.which(tool):
                raise UserError(
                    f"hydra/launcher=slurm needs {tool}, which is not on the PATH: "
                    "start this where jobs are submitted, or leave out hydra/launcher."
                )
        self._options = options
        self._executor = submitit.SlurmExecutor(root / ".slurm", max_num_timeout=TIME_OUTS)
        self._refused = (FailedJobError, FailedSubmissionError)
        self._queue = Queue()

    def submit(self, folder: RunFolder, command: list[str], environment: dict) -> "SlurmJob":
        """The run's job: the one that an earlier sweep has submitted, or else a new one.

        `environment`: what the command needs beside the variables of the node.
        """
        name = job_name(folder)
        if job := self._queue.find(name):
            return SlurmJob(job, folder, self._queue)
        self._executor.update_parameters(
            **parameters(self._options, environment.get("PYTHONPATH", "")), job_name=name
        )
        try:
            submitted = self._executor.submit(Task(command, folder.path, environment))
        except self._refused as error:
            raise UserError(f"Slurm refuses {name}: {' '.join(str(error).split())}") from error
        return SlurmJob(submitted.job_id, folder, self._queue)


def parameters(asked: SlurmOptions, python_path: str) -> dict:
    """What submitit's executor is told."""
    more = dict(asked.more or {})
    options = {key: more.pop(key) for key in SUBMITIT if key in more}
    return {
        "time": asked.minutes,
        "cpus_per_task": asked.cpus,
        **({"partition": asked.partition} if asked.partition else {}),
        **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
        **({"mem": f"{round(asked.memory_gb * 1024)}M"} if asked.memory_gb else {}),
        **options,
        # The worker imports this module, and since 22.05 srun no longer takes over sbatch's cores.
        "setup": [f"export PYTHONPATH={shlex.quote(python_path)}", *options.get("setup", [])],
        "srun_args": [f"--cpus-per-task={asked.cpus}", *options.get("srun_args", [])],
        "additional_parameters": {"requeue": True, **more},
    }


def job_name(folder: RunFolder) -> str:
    """Readable in squeue, and of this folder alone: another runs root may hold the same run."""
    return f"{folder.path.name}.{hashlib.sha256(bytes(folder.path)).hexdigest()[:6]}"


class Queue:
    """This user's jobs that wait, run or end, as squeue tells them."""

    def __init__(self):
        self.looked = -float("inf")  # when squeue last answered, on the monotonic clock
        self._tried = -float("inf")
        self._names: dict[str, str] = {}  # by job id

    def find(self, name: str) -> str | None:
        """The id of the job with this name. Raises UserError if squeue has never answered."""
        self._look()
        if self.looked < 0:
            raise UserError("squeue does not answer, so it is not known what is queued already.")
        return next((job for job, found in self._names.items() if found == name), None)

    def has(self, job: str) -> bool:
        self._look()
        return job in self._names

    def _look(self) -> None:
        """Where Slurm does not answer, what it last said holds."""
        if time.monotonic() - self._tried < LOOK_EVERY:
            return
        command = ["squeue", "--noheader", "--me", "--format=%A|%j"]
        self._tried = time.monotonic()
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode == 0:
            self.looked = self._tried
            self._names = dict(line.split("|", 1) for line in said.stdout.splitlines())


class SlurmJob:
    """A job, with the part of the interface of subprocess.Popen that a sweep needs."""

    def __init__(self, job: str, folder: RunFolder, queue: Queue):
        self.job = job
        self.returncode: int | None = None
        self._folder, self._queue = folder, queue
        self._submitted = time.monotonic()
        self._gone: float | None = None

    def poll(self) -> int | None:
        """0 if the run is done, 75 if it was stopped, 1 if the job is gone with neither; None while
        it waits or runs."""
        there = self._queue.has(self.job)
        if there or self._queue.looked < self._submitted:
            return None
        self._gone = self._gone or time.monotonic()
        state = self._folder.status().get("state")
        if state != "done" and time.monotonic() - self._gone < SETTLE_SECONDS:
            return None
        self.returncode = {"done": 0, "preempted": EXIT_STATUS}.get(state or "", 1)
        return self.returncode


class Task:
    """What a job runs, and what submitit pickles: the run's own process, which writes log.txt."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.command, self.folder, self.environment = command, folder, environment
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Raises RuntimeError if the run ends in any other way than done or requeued."""
        with open(RunFolder(self.folder).log_file, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                preexec_fn=_ignore_announcements,
            )
        # Popen.wait would hold a lock that `checkpoint`, called by a signal meanwhile, needs.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        status = self.process.wait()
        preempted = RunFolder(self.folder).status().get("state") == "preempted"
        if status and not (preempted and _requeue()):
            raise RuntimeError(f"ended with {status}: see {RunFolder(self.folder).log_file}")

    def checkpoint(self):
        """Has the run write its checkpoint. submitit calls it on its signal, and then requeues."""
        from submitit.helpers import DelayedSubmission

        if self.process:
            self.process.terminate()
            try:
                self.process.wait(SAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return DelayedSubmission(Task(self.command, self.folder, self.environment))


def _ignore_announcements() -> None:
    """A run handles them once it can; until then, and in `torchrun`, they must not kill."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _requeue() -> bool:
    """Queues this job again if it was preempted by SIGTERM alone, which submitit passes over.

    One that somebody cancelled is not: to Slurm it is no longer running.
    """
    job = os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
    )
    if not re.search(r"\bJobState=RUNNING\b", shown.stdout):
        return False
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
