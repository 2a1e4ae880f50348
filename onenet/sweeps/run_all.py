"""What of a sweep's runs is missing, handed to a launcher."""

from collections.abc import Sequence

from rich.console import Console

from onenet.runs.request import note_rows
from onenet.sweeps import plan
from onenet.sweeps.launch import RunLauncher, Statuses
from onenet.sweeps.machine import Place
from onenet.sweeps.plan import Planned
from onenet.sweeps.start import share


def run_all(
    console: Console,
    runs: Sequence[Planned],
    launcher: RunLauncher,
    free: list[Place] | None = None,
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
    plan.check_own(todo)
    plan.check_data(console, todo)
    console.out(
        f"{plan.count(runs)}, {len(done)} already done, {len(todo)} to do: {share(free)}",
        highlight=False,
    )
    plan.freeze(todo)
    return launcher.work(console, todo, free)
