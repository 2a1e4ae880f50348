"""Starts the runs of a sweep, several at a time, and waits for them."""

import time
from collections.abc import Sequence

from rich.console import Console

from onenet.config.options import LauncherOptions
from onenet.config.schema import Config
from onenet.runs.request import note_rows
from onenet.sweeps import plan
from onenet.sweeps.plan import Run
from onenet.sweeps.process import Resources, RunProcess, resources_text
from onenet.sweeps.screen import Screen
from onenet.system.plural import plural

POLL = 0.5  # seconds

Statuses = dict[str, int | None]  # the exit status of each run's process, by the run's name


class RunLauncher:
    """Starts runs as resources become free, and waits for them. A subclass decides where."""

    def __init__(self, options: LauncherOptions):
        self.options = options

    def resources(self, config: Config, runs: int) -> list[Resources]:
        """Returns the resources of the runs that go on at the same time. Raises UserError if runs
        cannot be started here."""
        raise NotImplementedError

    def start(self, run: Run, resources: Resources) -> RunProcess:
        raise NotImplementedError

    def stop(self, console: Console, active: list[RunProcess]) -> None:
        """Handles runs that are still active when the sweep ends."""
        raise NotImplementedError

    def work(self, console: Console, runs: Sequence[Run], resources: list[Resources]) -> Statuses:
        """Does the runs. A failure stops no other run; `max_failures` of them end the sweep."""
        # Long runs first, so that no core idles at the end.
        waiting = sorted(runs, key=lambda run: -(run.config.steps or 0) * (1 + run.config.heads))
        max_failures = self.options.max_failures or len(runs) + 1
        free, failures = [*resources], 0
        active: list[RunProcess] = []
        statuses: Statuses = {}
        with Screen(console) as screen:
            try:
                while waiting or active:
                    while waiting and free:
                        active.append(self.start(waiting.pop(0), free.pop(0)))
                    time.sleep(POLL)
                    screen.show(active, len(waiting))
                    for process in [process for process in active if process.has_ended()]:
                        active.remove(process)
                        free.append(process.resources)
                        process.note_end()
                        screen.show_end(process)
                        statuses[process.run.name] = process.handle.returncode
                        failures += process.run.state() == "failed"
                    if waiting and failures >= max_failures:
                        console.out(f"{failures} failed: the other {len(waiting)} are not started")
                        waiting.clear()
            finally:
                self.stop(console, active)  # after a signal or an error
        return statuses


def run_all(
    console: Console,
    runs: Sequence[Run],
    launcher: RunLauncher,
    resources: list[Resources] | None = None,
) -> Statuses:
    """Trains and evaluates what is missing. `resources`: by default the launcher's."""
    states = {run: run.state() for run in runs}
    todo = [run for run, state in states.items() if state not in ("done", "unreadable")]
    done = [run for run, state in states.items() if state == "done"]
    for run in done:
        note_rows(run.folder, run.rows())
    if not todo:
        return {}
    resources = resources or launcher.resources(todo[0].config, len(todo))
    plan.check(console, todo)
    counts = f"{len(done)} already done, {len(todo)} to do"
    console.out(f"{plural(len(runs), 'run')}, {counts}: {resources_text(resources)}")
    plan.freeze(todo)
    statuses = launcher.work(console, todo, resources)
    _wait_for_others(console, todo)
    return statuses


def _wait_for_others(console: Console, runs: Sequence[Run]) -> None:
    """Waits for runs that another sweep is doing, so that this one ends with their outcome."""
    others = [run for run in runs if run.state() == "running"]
    if others:
        count = plural(len(others), "run")
        console.out(f"waiting for {count} of another sweep; Ctrl-C does not disturb it")
    while any(run.state() == "running" for run in others):
        time.sleep(POLL)
