"""A sweep, from the overrides of the command line to the table: what run.py does."""

import os
import sys
from collections.abc import Sequence

from rich.console import Console

from onenet.config.validate import problems
from onenet.errors import UserError, raise_for
from onenet.sweeps import plan, search_sweep, summary
from onenet.sweeps.console import SafeConsole
from onenet.sweeps.experiments import axes_of, specs_of
from onenet.sweeps.launch import RunLauncher, run_all
from onenet.sweeps.local import gpus
from onenet.sweeps.plan import Run
from onenet.sweeps.process import require_gpu
from onenet.sweeps.search import requested_search
from onenet.system.torchrun import started_by_torchrun


def sweep(overrides: Sequence[str], launcher: RunLauncher) -> int:
    """Returns the exit status: 0 if all runs are done, else 1. Raises UserError before any run is
    started."""
    # In a pipe or a file, lines are as long as they need to be.
    width = None if sys.stdout.isatty() else 200
    console = SafeConsole(soft_wrap=True, width=width, highlight=False)
    axes = axes_of(overrides)
    if search := requested_search(axes):
        return search_sweep.main(console, search, launcher)
    runs = plan.group(specs_of(axes))
    if runs[0].config.plan:
        plan.print_plan(console, runs)
        return 0
    if started_by_torchrun():
        return run_under_torchrun(console, runs)
    statuses = run_all(console, runs, launcher)
    summary.print_results(console, runs, statuses)
    return 0 if all(run.state() == "done" for run in runs) else 1


def run_under_torchrun(console: Console, runs: Sequence[Run]) -> int:
    """Does the only run, as one of the processes that `torchrun` started. Returns the exit
    status."""
    from onenet.job.run import work  # imports torch, which nothing else here needs

    if len(runs) > 1:
        raise UserError(
            f"torchrun is for one run, not {len(runs)}.\n"
            "A sweep starts it itself for each run: python run.py -m … processes=8"
        )
    (run,) = runs
    run.config.processes = int(os.environ["WORLD_SIZE"])
    raise_for(problems(run.config))
    require_gpu(run.config, len(gpus()))
    if os.environ["RANK"] == "0":
        plan.check(console, [run])
        plan.freeze([run])
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    return work(run.folder, run.request(threads), run.config.device)
