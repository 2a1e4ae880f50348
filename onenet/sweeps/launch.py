"""Our own launchers: they start runs, several at a time, and wait for them."""

import subprocess
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console

from onenet.config.options import LauncherOptions, SlurmOptions
from onenet.config.schema import Config
from onenet.runs.request import note_rows
from onenet.sweeps import machine, plan, slurm
from onenet.sweeps.machine import Resources
from onenet.sweeps.plan import Run
from onenet.sweeps.screen import Screen
from onenet.sweeps.start import RunProcess, command, environment, share, start_here, stop

POLL = 0.5  # seconds between looks at the runs

Statuses = dict[str, int | None]  # a run's name: what its process ended with


class RunLauncher(Protocol):
    """Where runs take place."""

    options: LauncherOptions

    def places(self, config: Config, runs: int) -> list[Resources]:
        """One for each run at a time. Raises UserError if they cannot take place here."""

    def work(self, console: Console, todo: Sequence[Run], free: list[Resources]) -> Statuses:
        """Runs them in these places; a failure stops no other run."""


class _Ours:
    """Starts runs as places get free, and waits for them."""

    def __init__(self, options: LauncherOptions):
        self.options = options

    def start(self, run: Run, place: Resources) -> RunProcess:
        raise NotImplementedError

    def stop(self, console: Console, active: list[RunProcess]) -> None:
        """When the sweep ends before the runs do."""
        raise NotImplementedError

    def work(self, console: Console, todo: Sequence[Run], free: list[Resources]) -> Statuses:
        """As RunLauncher; `max_failures` of them end the sweep."""
        # The long ones first, so that no core idles at the end.
        waiting = sorted(todo, key=lambda run: -(run.config.steps or 0) * (1 + run.config.heads))
        most_failures = self.options.max_failures or len(todo) + 1
        free, failures = [*free], 0
        active: list[RunProcess] = []
        ended: Statuses = {}
        with Screen(console) as screen:
            try:
                while waiting or active:
                    while waiting and free:
                        active.append(self.start(waiting.pop(0), free.pop(0)))
                    time.sleep(POLL)
                    screen.show(active, len(waiting))
                    for handle in [handle for handle in active if handle.has_ended()]:
                        active.remove(handle)
                        free.append(handle.place)
                        handle.note_end()
                        screen.ended(handle)
                        ended[handle.run.name] = handle.process.returncode
                        failures += handle.run.state() == "failed"
                    if waiting and failures >= most_failures:
                        console.out(f"{failures} failed: the other {len(waiting)} are not started")
                        waiting.clear()
            finally:
                self.stop(console, active)  # a signal, or an error here
        return ended


class Local(_Ours):
    """Each run in a process of this machine."""

    def places(self, config: Config, runs: int) -> list[Resources]:
        return machine.places(config, self.options, runs)

    def start(self, run: Run, place: Resources) -> RunProcess:
        request = run.request(place.threads).write(run.folder)
        return RunProcess(run, place, start_here(run.folder, request, place))

    def stop(self, console: Console, active: list[RunProcess]) -> None:
        stop([h.process for h in active if isinstance(h.process, subprocess.Popen)])
        for handle in active:
            handle.run.folder.note_end("killed")


class Slurm(_Ours):
    """Each run in a job of the cluster, which goes on without the sweep."""

    options: SlurmOptions

    def __init__(self, options: SlurmOptions):
        super().__init__(options)
        self._cluster: slurm.Cluster | None = None

    def places(self, config: Config, runs: int) -> list[Resources]:
        self._cluster = self._cluster or slurm.Cluster(self.options, config.root)
        return slurm.places(config, self.options, runs)

    def start(self, run: Run, place: Resources) -> RunProcess:
        assert self._cluster
        request = run.request(place.threads).write(run.folder)
        words = command(run.folder, request, place.processes)
        job = self._cluster.submit(run.folder, words, environment(place))
        return RunProcess(run, place, job, on_cluster=True)

    def stop(self, console: Console, active: list[RunProcess]) -> None:
        jobs = [h.process.job for h in active if isinstance(h.process, slurm.SlurmJob)]
        if jobs:
            console.out(f"Slurm goes on with its jobs; to end them: scancel {' '.join(jobs)}")


def run_all(
    console: Console,
    runs: Sequence[Run],
    launcher: RunLauncher,
    free: list[Resources] | None = None,
) -> Statuses:
    """Trains and evaluates what is missing, several at a time (in `free` places, if given)."""
    states = [(run, run.state()) for run in runs]
    todo = [run for run, state in states if state != "done"]
    done = [run for run, state in states if state == "done"]
    for run in done:
        note_rows(run.folder, run.rows())
    if not todo:
        return {}
    free = free or launcher.places(todo[0].config, len(todo))
    plan.check(console, todo)
    console.out(
        f"{plan.count(runs)}, {len(done)} already done, {len(todo)} to do: {share(free)}",
        highlight=False,
    )
    plan.freeze(todo)
    return launcher.work(console, todo, free)
