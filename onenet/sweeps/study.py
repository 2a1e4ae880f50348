"""The trials of a search, and the next one, drawn from the results so far.

A trial is an ordinary run. As many are drawn at a time as run at a time, and a draw follows from
the search, the trial's number and the results of earlier draws alone: the sequence is the same in
whatever order runs end, and after a stop. Trial 0 has the values of conf/ if they are in the space.
"""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from onenet.config.compose import GROUPS, to_dict
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flat
from onenet.sweeps.experiments import Cell, expand
from onenet.sweeps.plan import Planned
from onenet.sweeps.search import Range, Search
from onenet.system.files import read_json, write_json


@dataclass(frozen=True, eq=False)
class Trial:
    number: int
    values: dict[str, float]
    run: Planned  # the same for trials with the same values

    def result(self, metric: str) -> float | None:
        cell = self.run.cells[0]
        return self.run.folder.result(cell.evaluation).get("metrics", {}).get(metric)

    def to_do(self) -> bool:
        """One that diverged would do so again; any other failure may have been the machine's."""
        return self.run.state() != "done" and self.run.folder.kind() != "diverged"


class Study:
    """The trials of a search, drawn so far. Their values stay in `.search/` of the runs root, so
    that a trial once drawn stays what it is; everything else is read from the run folders."""

    def __init__(self, search: Search):
        self.search = search
        self.base = self._cell({})
        self.ranges = [self._range(key, limits) for key, limits in search.space.items()]
        if not self.ranges:
            raise UserError(f"{search.name}: no key is left to search.")
        same: list = [self.base.id, self.base.evaluation.id, *map(asdict, self.ranges)]
        same += [search.metric, search.direction, search.sampler, search.seed]
        digest = hashlib.sha256(json.dumps(same).encode()).hexdigest()[:10]
        self.root = self.base.config.root
        self.folder = RunFolder(self.root / ".search" / f"{search.name}-{digest}")
        self.trials: list[Trial] = []
        for trial in read_json(self._file).get("trials", ()):
            self.add(trial["values"])

    @property
    def _file(self) -> Path:
        return self.folder.path / "trials.json"

    def _cell(self, values: dict[str, float]) -> Cell:
        words = [*self.search.overrides, *(f"{key}={value}" for key, value in values.items())]
        return expand(words, multirun=False)[0]

    def _range(self, key: str, limits) -> Range:
        if key in GROUPS:
            raise UserError(f"search.space.{key}: a group has no range, only numbers have.")
        whole = type(flat(to_dict(self.base.config)).get(key)) is int
        found = Range.parse(key, limits, whole)
        ends = [self._cell({key: found.round(end)}) for end in (found.low, found.high)]
        if ends[0].id == ends[1].id:
            raise UserError(f"search.space.{key}: the key does not change the training here.")
        return found

    def add(self, values: dict[str, float]) -> None:
        cell = self._cell(values)
        runs = {trial.run.cells[0].id: trial.run for trial in self.trials}
        run = runs.get(cell.id) or Planned([cell])
        self.trials.append(Trial(len(self.trials), values, run))

    def count(self) -> int:
        """Of trials at the end. What is drawn is never thrown away."""
        return max(self.search.trials, len(self.trials))

    def runs(self) -> list[Planned]:
        return list({trial.run.name: trial.run for trial in self.trials}.values())

    def headline(self) -> str:
        s = self.search
        return f"{s.name}: {s.direction} {s.metric}, {s.trials} trials, {s.sampler}, seed {s.seed}"

    def best(self) -> str:
        value, trial = self.ranked()[0]
        return f"{self.search.metric} {value:.4g} of trial {trial.number}"

    def draw(self, at_a_time: int) -> list[Trial]:
        """Adds trials, up to a multiple of `at_a_time`, and returns those that need a run."""
        first = len(self.trials)
        while len(self.trials) < self.count():
            self.add(self._next(at_a_time))
            if len(self.trials) % at_a_time == 0:
                break
        return [trial for trial in self.trials[first:] if trial.to_do()]

    def _next(self, at_a_time: int) -> dict[str, float]:
        number = len(self.trials)
        if not number and (values := self._defaults()):
            return values
        optuna = require_optuna()
        state, make = optuna.trial.TrialState, optuna.distributions
        space = {
            r.key: make.IntDistribution(round(r.low), round(r.high), log=r.log)
            if r.whole
            else make.FloatDistribution(r.low, r.high, log=r.log)
            for r in self.ranges
        }
        study = optuna.create_study(direction=self.search.direction, sampler=self._sampler(number))
        for trial in self.trials:
            value, told = None, state.RUNNING
            if trial.number < number - number % at_a_time:
                value = trial.result(self.search.metric)
                told = state.FAIL if value is None else state.COMPLETE
            study.add_trial(
                optuna.trial.create_trial(
                    state=told, value=value, params=trial.values, distributions=space
                )
            )
        drawn = study.ask(space).params
        return {r.key: r.round(drawn[r.key]) for r in self.ranges}

    def _sampler(self, number: int):
        """One for each trial: the state of a single one would be lost at a stop."""
        samplers = require_optuna().samplers
        seed = int(hashlib.sha256(f"{self.search.seed} {number}".encode()).hexdigest()[:8], 16)
        if self.search.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # before version 5 both options are called experimental
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _defaults(self) -> dict[str, float] | None:
        """What conf/ and the command line say, if all of it lies in the space."""
        config = flat(to_dict(self.base.config))
        values = {}
        for r in self.ranges:
            value = config[r.key]
            if not isinstance(value, int | float) or not r.low <= value <= r.high:
                return None
            values[r.key] = value
        return values

    def save(self) -> None:
        rows = [
            {
                "number": trial.number,
                "values": trial.values,
                "run": trial.run.name,
                "state": trial.run.state(),
                self.search.metric: trial.result(self.search.metric),
            }
            for trial in self.trials
        ]
        write_json(self._file, {"search": asdict(self.search), "trials": rows})

    def ranked(self) -> list[tuple[float, Trial]]:
        """The trials that have a value, the best first."""
        metric, sign = self.search.metric, -1 if self.search.direction == "maximize" else 1
        found = [(trial.result(metric), trial) for trial in self.trials]
        known = [(value, trial) for value, trial in found if value is not None]
        return sorted(known, key=lambda pair: sign * pair[0])


def require_optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("A search needs optuna: pip install 'onenet[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
