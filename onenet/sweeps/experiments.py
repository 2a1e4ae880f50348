"""From what the person typed to the list of runs: the one piece of code that the sweep, `plan=true`
and the tables share.
"""

import difflib
import itertools
import re
import shlex
from dataclasses import dataclass

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from onenet.config.compose import compose
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec, requested_evaluation
from onenet.runs.folder import RunFolder
from onenet.runs.identity import run_id, slug
from onenet.system.files import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"


class NoRow(UserError):
    """No row of an experiment is left by what the person asked for."""


@dataclass(frozen=True)
class Row:
    """A row of a table: its label and the overrides that make it."""

    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """A file of experiments/: the table's question, its rows, and what every row is swept over."""

    name: str
    title: str
    question: str
    rows: tuple[Row, ...]
    sweep: tuple[str, ...]
    table: int | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """One training and one evaluation of it, as asked for."""

    label: str  # of the row; empty outside an experiment
    experiment: str  # its name; empty outside an experiment
    overrides: tuple[str, ...]  # what `run.py` needs to make exactly this
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
    """The files of experiments/ that list rows."""
    return sorted({file.stem for file in EXPERIMENTS.glob("*.yaml")} - {*search_names()})


def search_names() -> list[str]:
    """The files of experiments/ that describe a search (onenet/sweeps/search.py)."""
    files = EXPERIMENTS.glob("*.yaml")
    return sorted(f.stem for f in files if re.search("^search:", f.read_text(), re.MULTILINE))


def read_experiment(name: str) -> Experiment:
    """experiments/<name>.yaml. Raises UserError, naming file and key."""
    path = EXPERIMENTS / f"{name}.yaml"
    if not path.is_file():
        names = sorted([*experiment_names(), *search_names()])
        near = difflib.get_close_matches(name, names) or names
        raise UserError(f"There is no {path}. Did you mean: {', '.join(near)}?")
    try:
        values = yaml.safe_load(path.read_text())
        rows = tuple(Row(row["label"], tuple(row["overrides"])) for row in values.pop("rows"))
        sweep = tuple(values.pop("sweep", ()))
        return Experiment(name, rows=rows, sweep=sweep, **values)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an experiment: {str(error).splitlines()[0]}\n"
            "It needs title, question, rows (each a label and a list of overrides), and may have "
            "table and sweep."
        ) from error


def expand(overrides: list[str], multirun: bool = True) -> list[Cell]:
    """Every run that these words of the command line ask for, each once, in their order.

    `+experiment=NAME` brings in the rows of experiments/NAME.yaml. Of the other words, one that
    sets a key of the rows keeps the rows with that value; any other holds for all rows and
    multiplies them where it lists values (`seed=0,1`). Raises UserError for what cannot work.
    """
    axes = parse_axes(overrides)
    names = axes.pop("experiment", [])
    lists = {key: values for key, values in axes.items() if len(values) > 1}
    if not multirun and names:
        raise UserError(f"An experiment is a sweep: python run.py -m {' '.join(overrides)}")
    if not multirun and lists:
        key, values = next(iter(lists.items()))
        raise UserError(f"{key}={','.join(values)} lists several values: add -m to run them all.")
    if not names:
        return [_cell(combination, combination) for combination in _product(axes)]
    cells: dict[tuple, Cell] = {}
    for name in names:
        for cell in _experiment_cells(read_experiment(name), axes):
            cells.setdefault((cell.experiment, cell.label, cell.id, cell.evaluation), cell)
    return list(cells.values())


def _experiment_cells(experiment: Experiment, axes: dict[str, list[str]]) -> list[Cell]:
    row_axes = [parse_axes(row.overrides) for row in experiment.rows]
    of_rows = {key for row in row_axes for key in row}
    chosen = [
        (row, own)
        for row, own in zip(experiment.rows, row_axes, strict=True)
        if all(own.get(key, axes[key])[0] in axes[key] for key in of_rows & axes.keys())
    ]
    if not chosen:
        asked = " ".join(f"{k}={','.join(axes[k])}" for k in sorted(of_rows & axes.keys()))
        raise NoRow(f"No row of experiment {experiment.name} has {asked}.")
    common = {**parse_axes(experiment.sweep), **{k: v for k, v in axes.items() if k not in of_rows}}
    return [
        _cell((*row.overrides, *combination), combination, row.label, experiment.name)
        for row, _ in chosen
        for combination in _product(common)
    ]


def _cell(overrides: tuple[str, ...], combination, label: str = "", experiment: str = "") -> Cell:
    config = compose(list(overrides))
    where = ("runs_root=", "plan=")
    kept = tuple(o for o in overrides if not o.startswith(where))
    return Cell(label, experiment, kept, config, run_id(config), requested_evaluation(config))


def _product(axes: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """All combinations, as overrides; the first axis varies slowest."""
    words = [[f"{key}={value}" for value in values] for key, values in axes.items()]
    return list(itertools.product(*words))


def parse_axes(overrides) -> dict[str, list[str]]:
    """Each key with its values, by Hydra's own grammar (lists, range(), glob() of options).

    A key given twice counts with its last values.
    """
    axes = {}
    for override in _parse(list(overrides)):
        key = override.get_key_element().removeprefix("+" if _is_experiment(override) else "")
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise UserError(f"{override.input_line}: a grid needs a list of values.")
            axes[key] = list(override.sweep_string_iterator())
        else:
            axes[key] = [override.get_value_element_as_str()]
    return axes


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{reason}\nWrite KEY=VALUE, or KEY=A,B with -m.") from error


def _is_experiment(override: Override) -> bool:
    return override.key_or_group == "experiment"
