"""Runs by a launcher of Hydra's own (basic, joblib, submitit, ...): it is given frozen runs."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console

from onenet.config.compose import from_dict, in_short, override
from onenet.config.schema import Config, Launcher
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request
from onenet.sweeps import machine
from onenet.sweeps.launch import STOP_SECONDS, Statuses
from onenet.sweeps.machine import Place
from onenet.sweeps.plan import Planned
from onenet.sweeps.start import start_here


class HydrasLauncher:
    """Hands each run over by its folder and its request, so that what is edited meanwhile changes
    nothing.

    `launch`: of the launcher. `at_a_time`: runs, as far as it is known. Threads of a run: as
    OMP_NUM_THREADS says, else one.
    """

    def __init__(self, launch: Callable, at_a_time: int):
        self._launch, self.options = launch, Launcher(jobs=at_a_time)

    def places(self, config: Config, runs: int) -> list[Place]:
        threads = int(os.environ.get("OMP_NUM_THREADS", 1))
        at_a_time = max(1, min(self.options.jobs or 1, runs))
        return [Place(config.processes or 1, threads, None)] * at_a_time

    def work(self, console: Console, todo: Sequence[Planned], free: list[Place]) -> Statuses:
        words = []
        for run in todo:
            request = run.request(free[0].threads).write(run.folder)
            values = {
                "hydra.sweep.dir": str(run.folder.path.parent),
                "hydra.sweep.subdir": run.folder.path.name,
                "hydra.sweeper.request": str(request),
            }
            words.append([_quoted(key, value) for key, value in values.items()])
        try:
            self._launch(words, initial_job_idx=0)
        except Exception as error:  # of any kind; which runs are there, their folders say
            console.out(f"the launcher stopped: {in_short(error)}", highlight=False)
        for run in todo:
            run.folder.note_end("killed")
        return {}


def _quoted(key: str, value: str) -> str:
    return override(key, QuotedString(value, Quote.single)).input_line or ""


def run_frozen(folder: Path, file: Path) -> None:
    """Does the run in a process of its own. Raises RuntimeError unless it is done."""
    request, run = Request.read(file), RunFolder(folder)
    here = Launcher(jobs=1, threads=request.threads)
    (place,) = machine.places(from_dict(request.config), here, 1)
    process = start_here(run, file, place)
    try:
        status = process.wait()
    except BaseException:  # asked to stop: the run writes its checkpoint
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if status:
        raise RuntimeError(f"ended with {status}: see {run.log_file}")
