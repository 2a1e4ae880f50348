"""A sweep, from the words of the command line to the table: what run.py does."""

import os
import sys
from collections.abc import Sequence

from rich.console import Console

from onenet.config.validate import problems
from onenet.errors import UserError, raise_for
from onenet.sweeps import plan, search, search_sweep, summary
from onenet.sweeps.experiments import axes_of, specs_of
from onenet.sweeps.launch import RunLauncher, run_all
from onenet.sweeps.machine import gpus, require_gpu
from onenet.sweeps.plan import Run


def sweep(words: Sequence[str], launcher: RunLauncher) -> int:
    """0 if all is done, else 1. Raises UserError before anything is started."""
    # In a pipe or a file, lines are as long as they need to be.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    axes = axes_of(words)
    if searched := search.requested(axes):
        return search_sweep.main(console, searched, launcher)
    runs = plan.group(specs_of(axes))
    plan.require_one_root(runs)
    if runs[0].config.plan:
        plan.print_plan(console, runs)
        return 0
    if "LOCAL_RANK" in os.environ:
        return take_part(console, runs)
    ended = run_all(console, runs, launcher)
    summary.print_results(console, runs, ended)
    return 0 if all(run.state() == "done" for run in runs) else 1


def take_part(console: Console, runs: Sequence[Run]) -> int:
    """Does the only run as one of the processes that `torchrun` started. The exit status."""
    from onenet.job.run import work  # torch: nothing else here needs it

    if len(runs) > 1:
        raise UserError(
            f"torchrun serves one run, not {len(runs)}.\n"
            "A sweep starts it by itself for each run: python run.py -m … processes=8"
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
