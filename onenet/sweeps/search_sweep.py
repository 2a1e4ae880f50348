"""Does a search: the runs of its trials, and what it prints at its end."""

from rich.console import Console

from onenet.errors import UserError
from onenet.runs.folder import Locked
from onenet.sweeps import plan
from onenet.sweeps.estimate import Estimates, duration_text
from onenet.sweeps.launch import RunLauncher, Statuses, run_all
from onenet.sweeps.plan import Run
from onenet.sweeps.search import Search, Study
from onenet.sweeps.summary import print_failure, print_table
from onenet.system.torchrun import started_by_torchrun

TABLE_ROWS = 10  # trials in the table at the end


def main(console: Console, search: Search, launcher: RunLauncher) -> int:
    """Returns the exit status of run.py: 0 if a trial has a value. Raises UserError."""
    if started_by_torchrun():
        raise UserError("A search starts torchrun itself: python run.py -m … processes=8")
    study = Study(search)
    console.out(study.headline())
    if study.base.config.plan:
        print_plan(console, study)
        return 0
    try:
        with study.folder.lock():
            study.open()
            statuses = _work(console, study, launcher)
    except Locked:
        raise UserError("Another process is doing this search: wait for it.") from None
    _print_results(console, study, statuses)
    return 0 if study.ranked() else 1


def print_plan(console: Console, study: Study) -> None:
    """Prints the space and the trials so far. Starts nothing."""
    for key, d in study.space.items():
        scale = ", on a log scale" if d.log else ""
        console.out(f"  {key}: {d.low:g} .. {d.high:g}{scale}")
    if runs := study.runs():
        plan.print_plan(console, runs)
    else:
        plan.check(console, [Run([study.base])])
    counts = study.counts("to do")
    if open_trials := study.size() - len(study.trials):
        counts += f", {open_trials} of them not drawn yet"
        config = study.base.config
        if seconds := Estimates(config.root).seconds(config, config.steps or 0):
            counts += f" ({duration_text(open_trials * seconds)})"
    console.out(counts)


def _work(console: Console, study: Study, launcher: RunLauncher) -> Statuses:
    # If all trials ran at a time, as a cluster could, none would be drawn from results.
    most = study.size() if launcher.options.jobs else max(2, study.size() // 4)
    resources = launcher.resources(study.base.config, min(most, study.size()))
    max_failures = launcher.options.max_failures or study.size() + 1
    todo = [trial for trial in study.trials if trial.is_open()]
    if len(study.trials) % len(resources):  # stopped in the middle of a draw
        todo += study.draw(len(resources))
    statuses: Statuses = {}
    while todo or len(study.trials) < study.size():
        study.tell()
        todo = todo or study.draw(len(resources))
        if not todo:  # all have the rounded values of earlier trials
            continue
        best = f", {study.best()} so far" if study.ranked() else ""
        numbers = ", ".join(str(trial.number) for trial in todo)
        console.out(f"trial {numbers} of {study.size()}{best}")
        runs = list(dict.fromkeys(trial.run for trial in todo))
        statuses |= run_all(console, runs, launcher, resources)
        todo = []
        failures = sum(bool(status) for status in statuses.values())
        if failures >= max_failures:
            console.out(f"{failures} failed: no more are started")
            break
    study.tell()
    return statuses


def _print_results(console: Console, study: Study, statuses: Statuses) -> None:
    metric, ranked = study.settings.metric, study.ranked()
    if ranked:
        rows = []
        for value, trial in ranked[:TABLE_ROWS]:
            numbers = [f"{number:.4g}" for number in (*trial.values.values(), value)]
            rows.append((str(trial.number), *numbers, trial.run.name))
        print_table(console, ("trial", *study.space, metric, "run"), rows)
    for run in study.runs():
        result = run.folder.result(run.specs[0].evaluation)
        if run.state() != "done":
            print_failure(console, run, statuses)
        elif result["metrics"].get(metric) is None:
            reason = result.get("metrics_notes", {}).get(metric, "not there")
            console.out(f"\nNO VALUE  {run.name}: {metric}: {reason}")
    console.out(f"\n{study.counts('not')}. The search is in {study.folder.path}")
    if ranked:
        console.out(f"The best: {study.best()}")
        console.out(f"  {ranked[0][1].run.specs[0].command}")
