"""Searches: the trials of a search, and the next ones, drawn from the results so far.

A search is a file of experiments/ with the keys whose best values it looks for. A trial is an
ordinary run. Optuna records the trials in `.search/` of the runs root and draws the next ones, as
many as run at a time. A draw depends on the search, the trial's number and the results of all
trials of earlier draws, so neither a stop nor the order in which runs end changes the sequence.
Trial 0 has the values of conf/ if they are in the space.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from onenet.config.compose import COMPOSE_ERRORS, ComposeError, loader, override, to_dict
from onenet.config.options import SearchConfig
from onenet.config.validate import out_of_range
from onenet.errors import UserError, raise_for
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flatten
from onenet.sweeps.experiments import GROUP, Axes, RunSpec, axes_of, is_search, spec_of
from onenet.sweeps.plan import Run

SETTINGS = tuple(f"search.{field.name}" for field in fields(SearchConfig))


@dataclass(frozen=True)
class Search:
    """A search as the command line requests it."""

    name: str
    settings: SearchConfig
    overrides: tuple[Override, ...]  # of all trials


def requested_search(axes: Axes) -> Search | None:
    """Returns the search that the command line requests, if it does. Raises UserError.

    An override of a key of the space takes the key out of the space; any other applies to all
    trials.
    """
    experiments = axes.get(f"+{GROUP}", [])
    names = [str(one.value()) for one in experiments]
    if not any(map(is_search, names)):
        return None
    if len(names) > 1:
        raise UserError(f"+{GROUP}={','.join(names)}: a search must be requested alone.")
    own = [one for values in axes.values() for one in values if one.key_or_group in SETTINGS]
    settings, overrides = _read_search([*experiments, *own])
    fixed = axes_of(overrides) | {
        key: values for key, values in axes.items() if values[0] not in (*experiments, *own)
    }
    for key, values in (axes | fixed).items():
        if len(values) > 1:
            text = ",".join(str(one.value()) for one in values)
            raise UserError(f"{key}={text}: a search needs a single value.")
    settings.space = {key: ends for key, ends in settings.space.items() if key not in fixed}
    return Search(names[0], settings, tuple(one for (one,) in fixed.values()))


def _read_search(overrides: Sequence[Override]) -> tuple[SearchConfig, list[str]]:
    """Returns `search` and the experiment's `overrides`. Raises UserError."""
    try:
        merged = loader().merge(overrides)
        settings = OmegaConf.to_object(merged.search)
        own = list(merged.experiment.get("overrides", []))
        if not isinstance(settings, SearchConfig):
            raise TypeError
    except COMPOSE_ERRORS as error:
        raise ComposeError(error) from error
    except (AttributeError, TypeError) as error:
        file = loader().file(f"{GROUP}/{overrides[0].value()}")
        raise UserError(
            f"{file} is not a search. It begins with\n"
            "# @package _global_\n"
            "defaults: [/search_schema@search, _self_]\n"
            "and has search, with a space, and experiment: title, question and overrides."
        ) from error
    raise_for(out_of_range(settings, "search."))
    return settings, own


@dataclass(frozen=True, eq=False)
class Trial:
    number: int
    values: dict[str, float]
    run: Run  # shared by trials with the same values

    def result(self, metric: str) -> float | None:
        spec = self.run.specs[0]
        return self.run.folder.result(spec.evaluation).get("metrics", {}).get(metric)

    def is_open(self) -> bool:
        """Whether the run is to be started: a diverged run would diverge again, but another failure
        may have been the machine's."""
        return self.run.state() != "done" and self.run.folder.kind() != "diverged"


class Study:
    """The trials of a search so far. A trial's values never change; its result is read from its
    run's folder."""

    def __init__(self, search: Search):
        self.name, self.settings, self._overrides = search.name, search.settings, search.overrides
        self.base = self._spec({})
        space = self.settings.space
        self.space = {key: self._distribution(key, limits) for key, limits in space.items()}
        if not self.space:
            raise UserError(f"{self.name}: no key is left to search.")
        root, folder = self.base.config.root, f"{self.name}-{self._digest()}"
        self.folder = RunFolder(root / ".search" / folder)
        self._journal = self.folder.path / "optuna.journal"
        self.trials: list[Trial] = []
        self._record: Any = None
        if self._journal.is_file():
            self._read()

    def _digest(self) -> str:
        """Returns a digest of what determines the trials, except for their number."""
        settings = self.settings
        values: list = [self.base.id, self.base.evaluation.id]
        for key, d in self.space.items():
            whole = isinstance(d.low, int)
            bounds = {"low": float(d.low), "high": float(d.high), "log": d.log, "whole": whole}
            values.append({"key": key, **bounds})
        values += [settings.metric, settings.direction, settings.sampler, settings.seed]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:10]

    def open(self) -> None:
        """Opens Optuna's record of the trials for writing, or begins one. The caller holds the
        folder's lock."""
        if self._journal.is_file():  # a torn last line would corrupt the next one
            lines = self._journal.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                self._journal.write_bytes(b"".join(lines[:-1]))
        if not self._read():
            self._record = require_optuna().create_study(
                storage=self._storage(), study_name=self.name, direction=self.settings.direction
            )

    def _read(self) -> bool:
        """Reads the recorded trials. Returns whether there is a record."""
        try:
            record = require_optuna().load_study(study_name=self.name, storage=self._storage())
        except KeyError:
            return False
        self._record, self.trials = record, []
        for trial in record.trials:
            self._add(trial.params)
        return True

    def _storage(self):
        storages = require_optuna().storages
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions call journals experimental
            backend = storages.journal.JournalFileBackend(str(self._journal))
            return storages.JournalStorage(backend)

    def _spec(self, values: dict[str, float]) -> RunSpec:
        return spec_of([*self._overrides, *(override(key, value) for key, value in values.items())])

    def _distribution(self, key: str, limits):
        """Returns Optuna's distribution for a range of the space. Raises UserError."""
        if loader().is_group(key):
            raise UserError(f"search.space.{key}: a group has no range, only numbers have.")
        integer = type(flatten(to_dict(self.base.config)).get(key)) is int
        distributions = require_optuna().distributions
        try:
            low, high = (int(end) if integer else float(end) for end in limits[:2])
            kind = distributions.IntDistribution if integer else distributions.FloatDistribution
            if low == high or limits[2:] not in ([], ["log"]):
                raise ValueError
            distribution = kind(low, high, log=limits[2:] == ["log"])
        except (TypeError, ValueError):
            raise UserError(
                f"search.space.{key}: {limits} is no range.\n"
                "Write [FROM, TO], or [FROM, TO, log] with FROM above 0."
            ) from None
        ends = [self._spec({key: in_three_digits(end, distribution)}) for end in (low, high)]
        if ends[0].id == ends[1].id:
            raise UserError(f"search.space.{key}: the key does not change the training here.")
        return distribution

    def _add(self, values: dict[str, float]) -> None:
        spec = self._spec(values)
        runs = {trial.run.specs[0].id: trial.run for trial in self.trials}
        run = runs.get(spec.id) or Run([spec])
        self.trials.append(Trial(len(self.trials), values, run))

    def size(self) -> int:
        """Returns the number of trials at the end. Drawn trials are never discarded."""
        return max(self.settings.trials, len(self.trials))

    def runs(self) -> list[Run]:
        return list(dict.fromkeys(trial.run for trial in self.trials))

    def headline(self) -> str:
        s = self.settings
        goal = f"{self.name}: {s.direction} {s.metric}"
        return f"{goal}, {s.trials} trials, {s.sampler}, seed {s.seed}"

    def counts(self, rest: str) -> str:
        """For example: 9 trials: 4 done, 5 to do. `rest`: what to call those not done."""
        done = sum(trial.run.state() == "done" for trial in self.trials)
        return f"{self.size()} trials: {done} done, {self.size() - done} {rest}"

    def best(self) -> str:
        value, trial = self.ranked()[0]
        return f"{self.settings.metric} {value:.4g} of trial {trial.number}"

    def draw(self, at_a_time: int) -> list[Trial]:
        """Adds trials up to a multiple of `at_a_time`. Returns those that need a run."""
        first = len(self.trials)
        while len(self.trials) < self.size():
            self._draw_one()
            if len(self.trials) % at_a_time == 0:
                break
        return [trial for trial in self.trials[first:] if trial.is_open()]

    def _draw_one(self) -> None:
        optuna = require_optuna()
        values = None if self.trials else self._defaults()
        if values is None:  # drawn in memory, so that the record gets rounded values only
            sampler = self._sampler(len(self.trials))
            draft = optuna.create_study(direction=self.settings.direction, sampler=sampler)
            draft.add_trials(self._record.trials)
            params = draft.ask(self.space).params
            values = {key: in_three_digits(params[key], d) for key, d in self.space.items()}
        trial, state = optuna.trial.create_trial, optuna.trial.TrialState.RUNNING
        self._record.add_trial(trial(state=state, params=values, distributions=self.space))
        self._add(values)

    def tell(self) -> None:
        """Reports the trials' results to Optuna. Call it when the runs of all trials of a draw have
        ended."""
        states = require_optuna().trial.TrialState
        for trial, entry in zip(self.trials, self._record.trials, strict=True):
            if entry.state.is_finished() or trial.is_open():
                continue
            value = trial.result(self.settings.metric)
            state = states.FAIL if value is None else states.COMPLETE
            self._record.tell(trial.number, value, state=state)

    def _sampler(self, number: int):
        """Returns a new sampler for each trial, since a stop would lose the state of a common
        one."""
        samplers = require_optuna().samplers
        text = f"{self.settings.seed} {number}"
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        if self.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # before version 5 both options are called experimental
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _defaults(self) -> dict[str, float] | None:
        """Returns the values of conf/ and the command line, None if one is outside the space."""
        config, values = flatten(to_dict(self.base.config)), {}
        for key, d in self.space.items():
            value = config[key]
            if not isinstance(value, int | float) or not d.low <= value <= d.high:
                return None
            values[key] = value
        return values

    def ranked(self) -> list[tuple[float, Trial]]:
        """Returns the trials that have a value, best first."""
        results = [(trial.result(self.settings.metric), trial) for trial in self.trials]
        pairs = [(value, trial) for value, trial in results if value is not None]
        sign = -1 if self.settings.direction == "maximize" else 1
        return sorted(pairs, key=lambda pair: sign * pair[0])


def in_three_digits(value: float, distribution) -> float:
    """Rounds a value, within its bounds, so that it can be read and typed."""
    value = min(max(float(f"{value:.3g}"), distribution.low), distribution.high)
    return round(value) if isinstance(distribution.low, int) else value


def require_optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("A search needs optuna: pip install 'onenet[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
