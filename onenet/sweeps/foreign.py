"""Runs under Hydra's own launchers (basic, joblib, submitit, ...)."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console

from onenet.config.compose import from_dict, override, override_text, short_message
from onenet.config.options import LauncherOptions
from onenet.config.schema import Config
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request
from onenet.sweeps.launch import RunLauncher, Statuses
from onenet.sweeps.local import STOP_SECONDS, Local, count_cores, start_process, stop_processes
from onenet.sweeps.plan import Run
from onenet.sweeps.process import NotDone, Resources
from onenet.system.signals import SIGNALS


class ForeignLauncher(RunLauncher):
    """Hands all runs to a launcher of Hydra's, each by its folder and its request. The runs are
    frozen: later edits of any file do not change them.

    `launch`: the launcher's method. `jobs`: how many runs it does at a time; not above 0: one per
    core. The threads of a run are OMP_NUM_THREADS, by default 1.
    """

    def __init__(self, launch: Callable, jobs: int):
        super().__init__(LauncherOptions(jobs=jobs if jobs > 0 else count_cores()))
        self._launch = launch

    def resources(self, config: Config, runs: int) -> list[Resources]:
        threads = int(os.environ.get("OMP_NUM_THREADS", 1))
        jobs = max(1, min(self.options.jobs or 1, runs))
        return [Resources(config.processes or 1, threads, None)] * jobs

    def work(self, console: Console, runs: Sequence[Run], resources: list[Resources]) -> Statuses:
        jobs = []
        for run in runs:
            values = {
                "hydra.sweep.dir": str(run.folder.path.parent),
                "hydra.sweep.subdir": run.folder.path.name,
                "hydra.sweeper.request": str(run.request(resources[0].threads).write(run.folder)),
            }
            quoted = {key: QuotedString(value, Quote.single) for key, value in values.items()}
            jobs.append([override_text(override(key, value)) for key, value in quoted.items()])
        try:
            with _stopping_runs_first(runs):
                self._launch(jobs, initial_job_idx=0)
        except Exception as error:  # of any type; the folders tell which runs are done
            console.out(f"the launcher stopped: {short_message(error)}")
        finally:
            for run in runs:
                run.folder.note_end("killed")
        return {}


@contextlib.contextmanager
def _stopping_runs_first(runs: Sequence[Run]) -> Iterator[None]:
    """On a signal, first stops the runs on this machine and waits for their checkpoints, since
    Hydra's launchers kill what they started."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def stop_runs(number: int, frame) -> None:
        for other in SIGNALS:  # a second signal must not interrupt the checkpoints
            signal.signal(other, signal.SIG_IGN)
        for run in runs:
            status = run.folder.status()
            is_here = run.folder.is_locked() and status.get("host") == socket.gethostname()
            if is_here and (process := status.get("pid")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(run.folder.is_locked() for run in runs) and time.monotonic() < deadline:
            time.sleep(0.1)
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in SIGNALS:
        signal.signal(number, stop_runs)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_frozen(folder: Path, request_file: Path) -> None:
    """Does one run of such a launcher, in a process of its own. Raises NotDone."""
    request, run_folder = Request.read(request_file), RunFolder(folder)
    local = Local(LauncherOptions(jobs=1, threads=request.threads))
    (resources,) = local.resources(from_dict(request.config), 1)
    process = start_process(run_folder, request_file, resources)
    try:
        status = process.wait()
    except BaseException:  # a signal: the run writes its checkpoint
        stop_processes([process])
        raise
    if status:
        raise NotDone(f"{folder.name} ended with {status}: see {run_folder.log_file}")
