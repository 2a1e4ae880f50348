"""The trainings that a sweep wants, their states, and how long they will take."""

import os
import subprocess
import sys
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
from onenet.sweeps.estimate import Estimates, say
from onenet.sweeps.experiments import RunSpec
from onenet.system.imports import python_path
from onenet.system.own import TARGET
from onenet.system.plural import plural


@dataclass(frozen=True, eq=False)
class Run:
    """One training with all evaluations that the sweep wants of it."""

    specs: list[RunSpec]

    @property
    def folder(self) -> RunFolder:
        return self.specs[0].folder

    @property
    def config(self) -> Config:
        return self.specs[0].config

    @property
    def name(self) -> str:
        return self.folder.path.name

    def missing(self) -> list[EvalSpec]:
        """The evaluations that are asked for and not there."""
        wanted = [default_evaluation(self.config), *(spec.evaluation for spec in self.specs)]
        return [
            evaluation for evaluation in dict.fromkeys(wanted) if not self.folder.result(evaluation)
        ]

    def estimate(self, estimates: Estimates) -> float | None:
        """Seconds that are left of it, None if nothing finished compares with it."""
        saved = self.folder.status().get("saved_step", 0)
        return estimates.seconds(self.config, (self.config.steps or 0) - saved)

    def request(self, threads: int) -> Request:
        evaluations = [spec.evaluation for spec in self.specs]
        config, overrides = to_dict(self.config), list(self.specs[0].overrides)
        return Request(self.specs[0].id, config, evaluations, overrides, threads, self.rows())

    def rows(self) -> dict[str, str]:
        """The row that this training is in each experiment; the one with its default evaluation, if
        it is several."""
        default = default_evaluation(self.config)
        specs = sorted(self.specs, key=lambda spec: spec.evaluation != default)
        found: dict[str, str] = {}
        for spec in specs:
            if spec.experiment:
                found.setdefault(spec.experiment, spec.label)
        return found

    def state(self) -> str:
        state = self.folder.state()
        return "partial" if state == "done" and self.missing() else state


def group(specs: list[RunSpec]) -> list[Run]:
    """The trainings, each once, however many specs share it."""
    planned: dict[str, Run] = {}
    for spec in specs:
        planned.setdefault(spec.id, Run([])).specs.append(spec)
    return list(planned.values())


def print_plan(console: Console, planned: list[Run]) -> None:
    """One line a run: id, state, overrides, and the time that it will take. Trains nothing."""
    check(console, planned)
    root = planned[0].config.root
    estimates, states, total, unknown = Estimates(root), [], 0.0, 0
    for run in planned:
        state, trained = run.state(), run.folder.state() == "done"
        states.append(state)
        seconds = run.estimate(estimates) if state != "done" else 0.0
        total, unknown = total + (seconds or 0), unknown + (seconds is None)
        for spec in run.specs:
            done = state == "done" or (trained and run.folder.result(spec.evaluation))
            note = [f"{spec.experiment}: {spec.label}"] if spec.label else []
            note += [say(seconds)] if seconds and not done else []
            comment = f"  # {', '.join(note)}" if note else ""
            words = " ".join(spec.overrides) or "(defaults)"
            console.out(
                f"{spec.id}  {'done' if done else state:8}{words}{comment}", highlight=False
            )
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    left = f"; {say(total)} of training one after the other" if total else ""
    left += f", not counting {unknown} that nothing finished compares with" if unknown else ""
    console.out(f"{count(planned)}: {counts}{left}. In {root}", highlight=False)


def check(console: Console, planned: Sequence[Run]) -> None:
    """What is read before anything is started: the user's own parts, the data. Raises UserError."""
    check_own(planned)
    check_data(console, planned)


def check_data(console: Console, planned: Sequence[Run]) -> None:
    """Reads every data set that is asked for, once. Raises UserError before anything is trained."""
    seen = []
    for run in planned:
        if run.config.data not in seen:
            seen.append(run.config.data)
            for line in check_splits(run.config.data, run.folder.cache):
                console.out(line, highlight=False)


def check_own(planned: Sequence[Run]) -> None:
    """Imports the user's own parts, in a process of its own. Raises UserError, naming the one that
    cannot be imported."""
    parts = [part for run in planned for part in run.config.own_parts().values() if part]
    if targets := sorted({part[TARGET] for part in parts}):
        _import_elsewhere(*targets)


@cache
def _import_elsewhere(*targets: str) -> None:
    words = [sys.executable, "-m", "onenet.job.own", *targets]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    asked = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if asked.returncode:
        raise UserError(asked.stdout.strip() or asked.stderr.strip().splitlines()[-1])


def freeze(todo: Sequence[Run]) -> None:
    """Writes the configurations; what is edited from now on changes nothing for these runs."""
    for run in todo:
        run.folder.freeze(to_dict(run.config))


def count(planned: Sequence[Run]) -> str:
    return plural(len(planned), "run")


def require_one_root(planned: Sequence[Run]) -> None:
    roots = {str(spec.config.root) for run in planned for spec in run.specs}
    if len(roots) > 1:
        raise UserError(f"One sweep, one runs root, but there are {len(roots)}: {sorted(roots)}")
