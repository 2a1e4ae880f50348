"""Turns the overrides of a command line into runs, for sweeps, `plan=true` and tables alike."""

import contextlib
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onenet.config.compose import chooses_nothing, loader, override_text, split_sweep
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec, requested_evaluation
from onenet.runs.folder import RunFolder
from onenet.runs.identity import run_id, slug

GROUP = "experiment"  # conf/experiment is experiments/; the user's folder may have its own
MAX_VALUES = 10_000  # of a key
COMMAND_KEYS = ("runs_root", "plan", "evaluate")  # belong to the command, not to a run

Axes = dict[str, list[Override]]  # by key: one override for each of its values


class NoRow(UserError):
    """No row of the experiment has the values of the command line."""


@dataclass
class Row:
    """A row of a table: its label and its overrides."""

    label: str
    overrides: list[str]


@dataclass
class Experiment:
    """A file of experiments/: a table's question, its rows, and the sweep over each row."""

    name: str
    title: str
    question: str
    rows: list[Row]
    sweep: list[str] = field(default_factory=list)
    table: int | None = None


@dataclass(frozen=True, eq=False)
class RunSpec:
    """A requested run: one training and one evaluation of it."""

    label: str  # of the row; empty outside an experiment
    experiment: str  # empty outside an experiment
    overrides: tuple[str, ...]  # with which run.py does exactly this run
    config: Config
    id: str
    evaluation: EvalSpec

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.config.root / f"{slug(self.config)}-{self.id}")

    @property
    def command(self) -> str:
        return shlex.join(["python", "run.py", *self.overrides])


def experiment_names() -> list[str]:
    """Returns the files of experiments/ that list rows."""
    return [name for name in loader().options(GROUP) if not is_search(name)]


def search_names() -> list[str]:
    """Returns the files of experiments/ that describe a search (onenet/sweeps/search.py)."""
    return [name for name in loader().options(GROUP) if is_search(name)]


def is_search(name: str) -> bool:
    return "search" in loader().read(f"{GROUP}/{name}")


def titles() -> str:
    """Returns a line for each experiment, with its title."""
    lines = []
    for name in loader().options(GROUP):
        values = loader().read(f"{GROUP}/{name}")
        lines.append(f"{name}: {values.get('experiment', values).get('title', '')}")
    return "\n".join(lines)


def read_experiment(name: str) -> Experiment:
    """Reads experiments/<name>.yaml. Raises UserError, naming file and key."""
    path = f"{GROUP}/{name}"
    values = {"name": name, **loader().read(path)}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Experiment), values)
        experiment = cast(Experiment, OmegaConf.to_object(typed))
        if not experiment.rows:
            raise OmegaConfBaseException("it has no rows")
        return experiment
    except OmegaConfBaseException as error:
        reason = " ".join(map(str.strip, str(error).splitlines()[:2]))  # ... full_key: rows
        raise UserError(
            f"{loader().file(path)} is not an experiment: {reason}\n"
            "It needs title, question, rows (each a label and a list of overrides), and may have "
            "table and sweep."
        ) from error


def expand(overrides: Sequence[str]) -> list[RunSpec]:
    """Returns the runs that the overrides of a command line request, each once, in their order.

    `+experiment=NAME` adds the rows of experiments/NAME.yaml. An override of a key that a row sets
    selects the rows that have the value, set or by default. Any other applies to all rows, and
    multiplies them if it lists values (`seed=0,1`). Raises UserError for what cannot work.
    """
    return specs_of(axes_of(overrides))


def axes_of(overrides: Sequence[str]) -> Axes:
    """Returns each key with its values, by Hydra's grammar (lists, range(), glob() of options). The
    last override of a key counts; Hydra's own keys are ignored. Raises UserError."""
    return {one.get_key_element(): _values(one) for one in loader().parse_run(overrides)}


def _values(override: Override) -> list[Override]:
    """Returns one override for each value. Raises UserError if there are none, or too many."""
    try:
        values = list(itertools.islice(split_sweep(override), MAX_VALUES + 1))
    except ValueError as error:  # range(0,3,0)
        raise UserError(f"{override.input_line}: {error}.") from error
    if not values or len(values) > MAX_VALUES:
        number = f"more than {MAX_VALUES} values" if values else "no value"
        raise UserError(f"{override.input_line}: lists {number}.")
    return values


def specs_of(axes: Axes) -> list[RunSpec]:
    """Returns the runs, as `expand` does."""
    axes = dict(axes)
    names = axes.pop(f"+{GROUP}", ())
    if not names:
        return [spec_of(combination) for combination in itertools.product(*axes.values())]
    specs: dict[tuple, RunSpec] = {}
    for name in names:
        for spec in _experiment_specs(read_experiment(str(name.value())), axes):
            specs.setdefault((spec.experiment, spec.label, spec.id, spec.evaluation), spec)
    return list(specs.values())


def _experiment_specs(experiment: Experiment, axes: Axes) -> list[RunSpec]:
    try:
        row_axes = [axes_of(row.overrides) for row in experiment.rows]
    except UserError as error:
        raise UserError(f"{loader().file(f'{GROUP}/{experiment.name}')}: {error}") from error
    for key, values in itertools.chain(*(row.items() for row in row_axes)):
        if len(values) > 1:
            raise UserError(f"{key} has several values in a row of {experiment.name}: use sweep.")
    row_keys = {key for row in row_axes for key in row}
    selection = {key: axes[key] for key in row_keys & axes.keys()}
    rows = [
        (row, own)
        for row, own in zip(experiment.rows, row_axes, strict=True)
        if all(_has_value(own, key, values) for key, values in selection.items())
    ]
    if not rows:
        text = " ".join(override_text(one) for key in sorted(selection) for one in selection[key])
        raise NoRow(f"No row of experiment {experiment.name} has {text}.")
    common = axes_of(experiment.sweep) | {k: v for k, v in axes.items() if k not in row_keys}
    return [
        spec_of((*itertools.chain(*own.values()), *combination), row.label, experiment.name)
        for row, own in rows
        for combination in itertools.product(*common.values())
    ]


def _has_value(row: Axes, key: str, values: list[Override]) -> bool:
    """Whether the row has one of these values of the key, set in the row or by default."""
    if key in row:
        return row[key][0].value() in [one.value() for one in values]
    overrides = [*itertools.chain(*row.values())]
    config = loader().compose(overrides)
    for one in values:
        with contextlib.suppress(UserError):  # the key has no meaning for the row
            if loader().compose([*overrides, one]) == config:
                return True
    return False


def spec_of(overrides: Sequence[Override], label: str = "", experiment: str = "") -> RunSpec:
    """Returns the run with these overrides."""
    config = loader().compose(overrides)
    texts = tuple(
        override_text(override)
        for override in overrides
        if override.key_or_group not in COMMAND_KEYS and not chooses_nothing(override)
    )
    return RunSpec(label, experiment, texts, config, run_id(config), requested_evaluation(config))
