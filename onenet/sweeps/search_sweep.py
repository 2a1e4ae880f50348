"""Does a search: the runs of its trials, and what it says at its end."""

import os

from rich.console import Console
from rich.table import Table

from onenet.errors import UserError
from onenet.runs.folder import Locked
from onenet.sweeps import plan
from onenet.sweeps.estimate import Estimates, say
from onenet.sweeps.launch import RunLauncher, Statuses, run_all
from onenet.sweeps.plan import Run
from onenet.sweeps.search import Search
from onenet.sweeps.study import Study
from onenet.sweeps.summary import failure

SHOWN = 10  # trials in the table at the end


def main(console: Console, search: Search, launcher: RunLauncher) -> int:
    """The exit status of run.py: 0 if a best trial is known. Raises UserError."""
    if "LOCAL_RANK" in os.environ:
        raise UserError("A search starts torchrun by itself: python run.py -m … processes=8")
    study = Study(search)
    if study.base.config.plan:
        print_plan(console, study)
        return 0
    return 0 if run(console, study, launcher) else 1


def print_plan(console: Console, study: Study) -> None:
    """What is searched, and the trials so far. Trains nothing."""
    console.out(study.headline(), highlight=False)
    for key, d in study.space.items():
        steps = ", by factors" if d.log else ""
        console.out(f"  {key}: {d.low:g} .. {d.high:g}{steps}", highlight=False)
    runs = study.runs()
    if runs:
        plan.print_plan(console, runs)
    else:
        plan.check(console, [Run([study.base])])
    done = sum(trial.run.state() == "done" for trial in study.trials)
    left = study.count() - len(study.trials)
    base = study.base.config
    each = Estimates(base.root).seconds(base, base.steps or 0) if left else None
    later = f", {left} of them not drawn yet" + (f" ({say(left * each)})" if each else "")
    console.out(
        f"{study.count()} trials: {done} done, {study.count() - done} to do{later if left else ''}",
        highlight=False,
    )


def run(console: Console, study: Study, launcher: RunLauncher) -> bool:
    """Runs the trials that are missing, and says which are the best. True if one has a value."""
    console.out(study.headline(), highlight=False)
    try:
        with study.folder.lock():
            study.open()
            ended = _work(console, study, launcher)
    except Locked:
        raise UserError("Another process is doing this search: wait for it.") from None
    _print_results(console, study, ended)
    return bool(study.ranked())


def _work(console: Console, study: Study, launcher: RunLauncher) -> Statuses:
    # On a cluster all could run at a time, and nothing would be drawn from results.
    most = study.count() if launcher.options.jobs else max(2, study.count() // 4)
    free = launcher.places(study.base.config, min(most, study.count()))
    most_failures = launcher.options.max_failures or study.count() + 1
    todo = [trial for trial in study.trials if trial.to_do()]
    if len(study.trials) % len(free):  # stopped while trials were drawn
        todo += study.draw(len(free))
    ended: Statuses = {}
    while todo or len(study.trials) < study.count():
        study.tell()
        todo = todo or study.draw(len(free))
        if not todo:  # the same values as earlier trials, rounded
            continue
        best = f", {study.best()} so far" if study.ranked() else ""
        numbers = ", ".join(str(trial.number) for trial in todo)
        console.out(f"trial {numbers} of {study.count()}{best}", highlight=False)
        runs = list({trial.run.name: trial.run for trial in todo}.values())
        ended |= run_all(console, runs, launcher, free)
        todo = []
        failures = sum(bool(status) for status in ended.values())
        if failures >= most_failures:
            console.out(f"{failures} failed: no more are started", highlight=False)
            break
    study.tell()
    return ended


def _print_results(console: Console, study: Study, ended: Statuses) -> None:
    metric, ranked = study.search.metric, study.ranked()
    if ranked:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", *study.space, metric):
            table.add_column(name, justify="right", overflow="fold")
        table.add_column("run", overflow="fold")
        for value, trial in ranked[:SHOWN]:
            values = [f"{number:.4g}" for number in (*trial.values.values(), value)]
            table.add_row(str(trial.number), *values, trial.run.name)
        console.print(table)
    for run in study.runs():
        result = run.folder.result(run.specs[0].evaluation)
        if run.state() != "done":
            console.out(f"\nNOT DONE  {run.name}: {failure(run, ended)}", highlight=False)
            console.out(f"  log: {run.folder.log_file}", highlight=False)
        elif result["metrics"].get(metric) is None:
            why = result["metrics_notes"].get(metric, "not there")
            console.out(f"\nNO VALUE  {run.name}: {metric}: {why}", highlight=False)
    done = sum(trial.run.state() == "done" for trial in study.trials)
    console.out(
        f"\n{study.count()} trials: {done} done, {study.count() - done} not. "
        f"The search is in {study.folder.path}",
        highlight=False,
    )
    if ranked:
        console.out(f"The best: {study.best()}", highlight=False)
        console.out(f"  {ranked[0][1].run.specs[0].command}", highlight=False)
