"""The trials of a search, and the next one, drawn from the results so far.

A trial is an ordinary run. Optuna keeps the trials, in `.search/` of the runs root, and draws the
next ones; as many are drawn at a time as run at a time. A draw follows from the search, the trial's
number and the results of the trials that were drawn before the last time: the sequence is the same
in whatever order runs end, and after a stop. Trial 0 has the values of conf/ if they are in the
space.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from typing import Any

from onenet.config.compose import loader, override, to_dict
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flatten
from onenet.sweeps.experiments import RunSpec, spec_of
from onenet.sweeps.plan import Run
from onenet.sweeps.search import Search


@dataclass(frozen=True, eq=False)
class Trial:
    number: int
    values: dict[str, float]
    run: Run  # the same for trials with the same values

    def result(self, metric: str) -> float | None:
        spec = self.run.specs[0]
        return self.run.folder.result(spec.evaluation).get("metrics", {}).get(metric)

    def to_do(self) -> bool:
        """One that diverged would do so again; any other failure may have been the machine's."""
        return self.run.state() != "done" and self.run.folder.kind() != "diverged"


class Study:
    """The trials of a search, drawn so far. A trial once drawn stays what it is; its result is read
    from its run's folder."""

    def __init__(self, search: Search):
        self.name, self.search, self._held = search.name, search.settings, search.overrides
        self.base = self._cell({})
        self.space = {key: self._distribution(key, e) for key, e in self.search.space.items()}
        if not self.space:
            raise UserError(f"{self.name}: no key is left to search.")
        s, root = self.search, self.base.config.root
        same: list = [self.base.id, self.base.evaluation.id]
        same += [
            {
                "key": key,
                "low": float(d.low),
                "high": float(d.high),
                "log": d.log,
                "whole": whole(d),
            }
            for key, d in self.space.items()
        ]
        same += [s.metric, s.direction, s.sampler, s.seed]
        digest = hashlib.sha256(json.dumps(same).encode()).hexdigest()[:10]
        self.folder = RunFolder(root / ".search" / f"{self.name}-{digest}")
        self._journal = self.folder.path / "optuna.journal"
        self.trials: list[Trial] = []
        self._optuna: Any = None
        if self._journal.is_file():
            self._read()

    def open(self) -> None:
        """Opens Optuna's record of the trials for writing, or begins one. For who holds the lock of
        the folder."""
        if self._journal.is_file():  # a torn last line would tear the next one
            lines = self._journal.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                self._journal.write_bytes(b"".join(lines[:-1]))
        if not self._read():
            self._optuna = require_optuna().create_study(
                storage=self._storage(), study_name=self.name, direction=self.search.direction
            )

    def _read(self) -> bool:
        """The trials that are on record; whether there is one."""
        try:
            study = require_optuna().load_study(study_name=self.name, storage=self._storage())
        except KeyError:
            return False
        self._optuna, self.trials = study, []
        for trial in study.trials:
            self._add(trial.params)
        return True

    def _storage(self):
        storages = require_optuna().storages
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions call journals experimental
            backend = storages.journal.JournalFileBackend(str(self._journal))
            return storages.JournalStorage(backend)

    def _cell(self, values: dict[str, float]) -> RunSpec:
        return spec_of([*self._held, *(override(key, value) for key, value in values.items())])

    def _distribution(self, key: str, limits):
        """Of Optuna's, for a range of the space. Raises UserError."""
        if loader().is_group(key):
            raise UserError(f"search.space.{key}: a group has no range, only numbers have.")
        is_whole = type(flatten(to_dict(self.base.config)).get(key)) is int
        distributions = require_optuna().distributions
        try:
            low, high = (int(end) if is_whole else float(end) for end in limits[:2])
            kind = distributions.IntDistribution if is_whole else distributions.FloatDistribution
            if low == high or limits[2:] not in ([], ["log"]):
                raise ValueError
            found = kind(low, high, log=limits[2:] == ["log"])
        except (TypeError, ValueError):
            raise UserError(
                f"search.space.{key}: {limits} is no range.\n"
                "Write [FROM, TO], or [FROM, TO, log] with FROM above 0."
            ) from None
        ends = [self._cell({key: in_three_digits(end, found)}) for end in (low, high)]
        if ends[0].id == ends[1].id:
            raise UserError(f"search.space.{key}: the key does not change the training here.")
        return found

    def _add(self, params: dict[str, float]) -> None:
        spec = self._cell(params)
        runs = {trial.run.specs[0].id: trial.run for trial in self.trials}
        run = runs.get(spec.id) or Run([spec])
        self.trials.append(Trial(len(self.trials), params, run))

    def count(self) -> int:
        """Of trials at the end. What is drawn is never thrown away."""
        return max(self.search.trials, len(self.trials))

    def runs(self) -> list[Run]:
        return list({trial.run.name: trial.run for trial in self.trials}.values())

    def headline(self) -> str:
        s = self.search
        return (
            f"{self.name}: {s.direction} {s.metric}, {s.trials} trials, {s.sampler}, seed {s.seed}"
        )

    def best(self) -> str:
        value, trial = self.ranked()[0]
        return f"{self.search.metric} {value:.4g} of trial {trial.number}"

    def draw(self, at_a_time: int) -> list[Trial]:
        """Adds trials, up to a multiple of `at_a_time`, and returns those that need a run."""
        first = len(self.trials)
        while len(self.trials) < self.count():
            self._ask()
            if len(self.trials) % at_a_time == 0:
                break
        return [trial for trial in self.trials[first:] if trial.to_do()]

    def _ask(self) -> None:
        optuna = require_optuna()
        values = None if self.trials else self._defaults()
        if values is None:  # drawn in memory: the record gets whole trials, with rounded values
            sampler = self._sampler(len(self.trials))
            draft = optuna.create_study(direction=self.search.direction, sampler=sampler)
            draft.add_trials(self._optuna.trials)
            drawn = draft.ask(self.space).params
            values = {key: in_three_digits(drawn[key], d) for key, d in self.space.items()}
        trial, state = optuna.trial.create_trial, optuna.trial.TrialState.RUNNING
        self._optuna.add_trial(trial(state=state, params=values, distributions=self.space))
        self._add(values)

    def tell(self) -> None:
        """Has Optuna know what the trials gave. To be called when all that were drawn at a time
        have had their run."""
        state = require_optuna().trial.TrialState
        for trial, known in zip(self.trials, self._optuna.trials, strict=True):
            if known.state.is_finished() or trial.to_do():
                continue
            value = trial.result(self.search.metric)
            told = state.FAIL if value is None else state.COMPLETE
            self._optuna.tell(trial.number, value, state=told)

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
        config, values = flatten(to_dict(self.base.config)), {}
        for key, d in self.space.items():
            value = config[key]
            if not isinstance(value, int | float) or not d.low <= value <= d.high:
                return None
            values[key] = value
        return values

    def ranked(self) -> list[tuple[float, Trial]]:
        """The trials that have a value, the best first."""
        metric, sign = self.search.metric, -1 if self.search.direction == "maximize" else 1
        found = [(trial.result(metric), trial) for trial in self.trials]
        known = [(value, trial) for value, trial in found if value is not None]
        return sorted(known, key=lambda pair: sign * pair[0])


def whole(distribution) -> bool:
    return isinstance(distribution, require_optuna().distributions.IntDistribution)


def in_three_digits(value: float, distribution) -> float:
    """Values of a folder can be read and typed."""
    value = min(max(float(f"{value:.3g}"), distribution.low), distribution.high)
    return round(value) if whole(distribution) else value


def require_optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("A search needs optuna: pip install 'onenet[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
