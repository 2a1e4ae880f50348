"""Runs by a launcher of Hydra's own (basic, joblib, submitit, ...): it is given frozen runs."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console

from onenet.config.compose import from_dict, in_short, override, word
from onenet.config.options import LauncherOptions
from onenet.config.schema import Config
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request
from onenet.sweeps import machine
from onenet.sweeps.launch import Statuses
from onenet.sweeps.machine import Resources
from onenet.sweeps.plan import Run
from onenet.sweeps.start import STOP_SECONDS, NotDone, start_here, stop
from onenet.system.signals import SIGNALS


class HydrasLauncher:
    """Hands each run over by its folder and its request, so that what is edited meanwhile changes
    nothing.

    `launch`: of the launcher. `at_a_time`: runs, as far as it is known. Threads of a run: as
    OMP_NUM_THREADS says, else one.
    """

    def __init__(self, launch: Callable, at_a_time: int):
        at_a_time = at_a_time if at_a_time > 0 else machine.count_cores()
        self._launch, self.options = launch, LauncherOptions(jobs=at_a_time)

    def places(self, config: Config, runs: int) -> list[Resources]:
        threads = int(os.environ.get("OMP_NUM_THREADS", 1))
        at_a_time = max(1, min(self.options.jobs or 1, runs))
        return [Resources(config.processes or 1, threads, None)] * at_a_time

    def work(self, console: Console, todo: Sequence[Run], free: list[Resources]) -> Statuses:
        jobs = []
        for run in todo:
            values = {
                "hydra.sweep.dir": str(run.folder.path.parent),
                "hydra.sweep.subdir": run.folder.path.name,
                "hydra.sweeper.request": str(run.request(free[0].threads).write(run.folder)),
            }
            quoted = {key: QuotedString(value, Quote.single) for key, value in values.items()}
            jobs.append([word(override(key, value)) for key, value in quoted.items()])
        try:
            with _runs_stop_first(todo):
                self._launch(jobs, initial_job_idx=0)
        except Exception as error:  # of any kind; which runs are there, their folders say
            console.out(f"the launcher stopped: {in_short(error)}", highlight=False)
        finally:
            for run in todo:
                run.folder.note_end("killed")
        return {}


@contextlib.contextmanager
def _runs_stop_first(runs: Sequence[Run]) -> Iterator[None]:
    """When the sweep is asked to stop, its runs on this machine are, and get the time to write
    their checkpoints: launchers kill what they have started."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop_runs(number: int, frame) -> None:
        for number_again in SIGNALS:  # a second one must not disturb the writing down
            signal.signal(number_again, signal.SIG_IGN)
        for run in runs:
            status = run.folder.status()
            if run.folder.is_locked() and status.get("host") == socket.gethostname():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(status["pid"], signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(run.folder.is_locked() for run in runs) and time.monotonic() < deadline:
            time.sleep(0.1)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in SIGNALS:
        signal.signal(number, stop_runs)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_frozen(folder: Path, file: Path) -> None:
    """Does the run in a process of its own. Raises NotDone."""
    request, run = Request.read(file), RunFolder(folder)
    here = LauncherOptions(jobs=1, threads=request.threads)
    (place,) = machine.places(from_dict(request.config), here, 1)
    process = start_here(run, file, place)
    try:
        status = process.wait()
    except BaseException:  # asked to stop: the run writes its checkpoint
        stop([process])
        raise
    if status:
        raise NotDone(f"{folder.name} ended with {status}: see {run.log_file}")
