"""The runs of a sweep, their states, and how long they will take."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rich.console import Console

from onenet.config.compose import to_dict
from onenet.config.schema import Config
from onenet.data.sources import check_splits
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec, default_evaluation
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request
from onenet.sweeps.estimate import Estimates, duration_text
from onenet.sweeps.experiments import RunSpec
from onenet.system.imports import python_path
from onenet.system.own import TARGET
from onenet.system.plural import plural


@dataclass(frozen=True, eq=False)
class Run:
    """One training with all evaluations that the sweep requests of it."""

    specs: list[RunSpec]
    since: float = 0.0  # earlier results do not count (Unix time)

    @property
    def folder(self) -> RunFolder:
        return self.specs[0].folder

    @property
    def config(self) -> Config:
        return self.specs[0].config

    @property
    def name(self) -> str:
        return self.folder.path.name

    def missing_evaluations(self) -> list[EvalSpec]:
        """Returns the evaluations that were requested but have no result yet."""
        requested = [default_evaluation(self.config), *(spec.evaluation for spec in self.specs)]
        specs = dict.fromkeys(requested)
        return [spec for spec in specs if not self.folder.result(spec, self.since)]

    def remaining_seconds(self, estimates: Estimates) -> float | None:
        """Returns the estimated time to the end of the run, None if no finished run is
        comparable."""
        saved = self.folder.status().get("saved_step", 0)
        return estimates.seconds(self.config, (self.config.steps or 0) - saved)

    def request(self, threads: int) -> Request:
        evaluations = [spec.evaluation for spec in self.specs]
        config, overrides = to_dict(self.config), list(self.specs[0].overrides)
        rows, since = self.rows(), self.since
        return Request(self.specs[0].id, config, evaluations, overrides, threads, rows, since)

    def rows(self) -> dict[str, str]:
        """Returns the label of the run's row in each experiment. If it is several rows, that with
        its default evaluation counts."""
        default = default_evaluation(self.config)
        labels: dict[str, str] = {}
        for spec in sorted(self.specs, key=lambda spec: spec.evaluation != default):
            if spec.experiment:
                labels.setdefault(spec.experiment, spec.label)
        return labels

    def state(self) -> str:
        state = self.folder.state()
        return "partial" if state == "done" and self.missing_evaluations() else state


def group(specs: list[RunSpec]) -> list[Run]:
    """Returns the runs; specs that need the same training share one. Raises UserError if they have
    several runs roots."""
    roots = {str(spec.config.root) for spec in specs}
    if len(roots) > 1:
        raise UserError(f"A sweep has one runs root, but there are {len(roots)}: {sorted(roots)}")
    runs: dict[str, Run] = {}
    for spec in specs:
        since = time.time() if spec.config.evaluate == "again" else 0.0
        runs.setdefault(spec.id, Run([], since)).specs.append(spec)
    return list(runs.values())


def print_plan(console: Console, runs: list[Run]) -> None:
    """Prints a line for each run: id, state, overrides, and the time that it will take. Starts
    nothing."""
    check(console, runs)
    root = runs[0].config.root
    estimates, states, total, unknown = Estimates(root), [], 0.0, 0
    for run in runs:
        state, trained = run.state(), run.folder.state() == "done"
        states.append(state)
        seconds = run.remaining_seconds(estimates) if state != "done" else 0.0
        total, unknown = total + (seconds or 0), unknown + (seconds is None)
        for spec in run.specs:
            done = state == "done" or (trained and run.folder.result(spec.evaluation))
            notes = [f"{spec.experiment}: {spec.label}"] if spec.label else []
            notes += [duration_text(seconds)] if seconds and not done else []
            comment = f"  # {', '.join(notes)}" if notes else ""
            overrides = " ".join(spec.overrides) or "(defaults)"
            console.out(f"{spec.id}  {'done' if done else state:8} {overrides}{comment}")
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    time = f"; {duration_text(total)} of training, one after the other" if total else ""
    time += f", not counting {unknown} without a comparable finished run" if unknown else ""
    console.out(f"{plural(len(runs), 'run')}: {counts}{time}. In {root}")


def check(console: Console, runs: Sequence[Run]) -> None:
    """Checks the user's own parts and the data before anything is started. Raises UserError."""
    check_own(runs)
    datasets = []
    for run in runs:
        if run.config.data not in datasets:
            datasets.append(run.config.data)
            for line in check_splits(run.config.data, run.folder.cache):
                console.out(line)


def check_own(runs: Sequence[Run]) -> None:
    """Imports the user's own parts, in another process. Raises UserError, naming the part that
    cannot be imported."""
    parts = [part for run in runs for part in run.config.own_parts().values() if part]
    if targets := sorted({part[TARGET] for part in parts}):
        _try_imports(*targets)


@cache
def _try_imports(*targets: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "onenet.job.own", *targets],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    if process.returncode:
        raise UserError(process.stdout.strip() or process.stderr.strip().splitlines()[-1])


def freeze(runs: Sequence[Run]) -> None:
    """Writes the configurations, so that later edits of any YAML do not change these runs."""
    for run in runs:
        run.folder.freeze(to_dict(run.config))
