"""The Slurm launcher: submitit submits and requeues a job for each run, squeue lists live jobs.

A job goes on without the sweep that submitted it. When Slurm announces that it preempts the job or
that its time is up, the run writes its checkpoint and the same job is queued again. The runs root
must be on a file system that all nodes see; submitit's files are in its `.slurm/`. Accounting
(sacct) is not needed.
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
from typing import Any

from rich.console import Console

from onenet.config.options import SlurmOptions
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.sweeps.launch import RunLauncher
from onenet.sweeps.plan import Run
from onenet.sweeps.process import Resources, RunProcess, command, count_processes, environment
from onenet.system.imports import python_path
from onenet.system.signals import EXIT_STATUS

MAX_TIMEOUTS = 100  # how often a job may reach its time limit and be queued again
SAVE_SECONDS = 60  # for a run to write its checkpoint; Slurm announces the end 90 s before
QUEUE_SECONDS = 5  # between calls of squeue
SYNC_SECONDS = 30  # until files that another node wrote are visible here
SUBMITIT_OPTIONS = ("setup", "signal_delay_s", "srun_args")  # in hydra.launcher.more


class Slurm(RunLauncher):
    """Submits each run as a job, which goes on without the sweep."""

    options: SlurmOptions

    def __init__(self, options: SlurmOptions):
        super().__init__(options)
        self._executor: Any = None
        self._queue = Queue()

    def resources(self, config: Config, runs: int) -> list[Resources]:
        """All runs at a time, or `hydra.launcher.jobs`, since Slurm queues them. The GPUs are those
        that Slurm allocates. Raises UserError if there is no Slurm here."""
        self._executor = self._executor or _executor(config.root)
        processes = count_processes(config, self.options.gpus)
        threads = self.options.threads or max(1, self.options.cpus // processes)
        return [Resources(processes, threads, None)] * min(self.options.jobs or runs, runs)

    def start(self, run: Run, resources: Resources) -> RunProcess:
        """Follows the run's job if an earlier sweep submitted one, else submits it. Raises
        UserError if Slurm refuses it."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        name = job_name(run.folder)
        request = run.request(resources.threads).write(run.folder)
        job = self._queue.find(name)
        if job is None:
            arguments = command(run.folder, request, resources.processes)
            task = Task(arguments, run.folder.path, environment(resources))
            self._executor.update_parameters(**_parameters(self.options), job_name=name)
            try:
                job = self._executor.submit(task).job_id
            except (FailedJobError, FailedSubmissionError) as error:
                raise UserError(f"Slurm refuses {name}: {' '.join(str(error).split())}") from error
        return RunProcess(run, resources, SlurmJob(job, run.folder, self._queue), on_cluster=True)

    def stop(self, console: Console, active: list[RunProcess]) -> None:
        jobs = [p.handle.job for p in active if isinstance(p.handle, SlurmJob)]
        if jobs:
            console.out(f"The Slurm jobs go on; to end them: scancel {' '.join(jobs)}")


def _executor(root: Path) -> Any:
    """Returns submitit's executor. Raises UserError if submitit or Slurm is not installed."""
    try:
        import submitit
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
    return submitit.SlurmExecutor(root / ".slurm", max_num_timeout=MAX_TIMEOUTS)


def _parameters(options: SlurmOptions) -> dict:
    """Returns the parameters of submitit's executor."""
    more = dict(options.more or {})
    own = {key: more.pop(key) for key in SUBMITIT_OPTIONS if key in more}
    return {
        "time": options.minutes,
        "cpus_per_task": options.cpus,
        **({"partition": options.partition} if options.partition else {}),
        **({"gpus_per_node": options.gpus} if options.gpus else {}),
        **({"mem": f"{round(options.memory_gb * 1024)}M"} if options.memory_gb else {}),
        **own,
        # The job imports this module, and since 22.05 srun no longer inherits sbatch's cores.
        "setup": [f"export PYTHONPATH={shlex.quote(python_path())}", *own.get("setup", [])],
        "srun_args": [f"--cpus-per-task={options.cpus}", *own.get("srun_args", [])],
        "additional_parameters": {"requeue": True, **more},
    }


def job_name(folder: RunFolder) -> str:
    """Returns a name that is readable in squeue and unique to this folder, since another runs root
    may hold the same run."""
    return f"{folder.path.name}.{hashlib.sha256(bytes(folder.path)).hexdigest()[:6]}"


class Queue:
    """This user's jobs that are pending, running or completing, as squeue lists them."""

    def __init__(self):
        self.answered = -float("inf")  # time of squeue's last answer, monotonic
        self._called = -float("inf")
        self._names: dict[str, str] = {}  # by job id

    def find(self, name: str) -> str | None:
        """Returns the id of the job with this name. Raises UserError if squeue never answered."""
        self._refresh()
        if self.answered < 0:
            raise UserError("squeue does not answer, so runs that are queued already are unknown.")
        return next((job for job, other in self._names.items() if other == name), None)

    def has(self, job: str) -> bool:
        self._refresh()
        return job in self._names

    def _refresh(self) -> None:
        """Calls squeue. While Slurm does not answer, its last answer stands."""
        if time.monotonic() - self._called < QUEUE_SECONDS:
            return
        command = ["squeue", "--noheader", "--me", "--format=%A|%j"]
        self._called = time.monotonic()
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            self.answered = self._called
            self._names = dict(line.split("|", 1) for line in answer.stdout.splitlines())


class SlurmJob:
    """A job, as a Handle."""

    def __init__(self, job: str, folder: RunFolder, queue: Queue):
        self.job = job
        self.returncode: int | None = None
        self._folder, self._queue = folder, queue
        self._submitted = time.monotonic()
        self._left: float | None = None

    def poll(self) -> int | None:
        """Returns 0 if the run is done, 75 if it was preempted, 1 if the job left the queue without
        either; None while it is queued or running."""
        queued = self._queue.has(self.job)
        if queued or self._queue.answered < self._submitted:
            return None
        self._left = self._left or time.monotonic()
        state = self._folder.status().get("state")
        if state != "done" and time.monotonic() - self._left < SYNC_SECONDS:
            return None
        self.returncode = {"done": 0, "preempted": EXIT_STATUS}.get(state or "", 1)
        return self.returncode


class Task:
    """The function of a job, which submitit pickles: it starts the run's process."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.command, self.folder, self.environment = command, folder, environment
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Raises RuntimeError unless the run is done or its job is queued again."""
        with open(RunFolder(self.folder).log_file, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                preexec_fn=_ignore_signals,
            )
        # Popen.wait holds a lock that `checkpoint` needs when a signal calls it meanwhile.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        status = self.process.wait()
        preempted = RunFolder(self.folder).status().get("state") == "preempted"
        if status and not (preempted and _requeue()):
            raise RuntimeError(f"ended with {status}: see {RunFolder(self.folder).log_file}")

    def checkpoint(self):
        """Makes the run write its checkpoint. submitit calls this on its signal, then requeues."""
        from submitit.helpers import DelayedSubmission

        if self.process:
            self.process.terminate()
            try:
                self.process.wait(SAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return DelayedSubmission(Task(self.command, self.folder, self.environment))


def _ignore_signals() -> None:
    """Slurm's warnings must not kill a run before it handles them, nor `torchrun`."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _requeue() -> bool:
    """Queues this job again if it was preempted with SIGTERM only, which submitit ignores.

    A job that somebody cancelled is not queued again: for Slurm it is no longer running.
    """
    job = os.environ["SLURM_JOB_ID"]
    output = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
    )
    if not re.search(r"\bJobState=RUNNING\b", output.stdout):
        return False
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
