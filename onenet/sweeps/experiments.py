"""From what the person typed to the list of runs: the one piece of code that the sweep, `plan=true`
and the tables share.
"""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Override

from onenet.config.compose import loader, no_option, values_of, word
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec, requested_evaluation
from onenet.runs.folder import RunFolder
from onenet.runs.identity import run_id, slug

GROUP = "experiment"  # conf/experiment is experiments/; a folder of the user's may have its own
MOST_VALUES = 10_000  # of a key
WHERE = ("runs_root", "plan")  # keys that say nothing of a run

Axes = dict[str, list[Override]]  # each key with its values, one override a value


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
class RunSpec:
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
    return [name for name in loader().options(GROUP) if not is_search(name)]


def search_names() -> list[str]:
    """The files of experiments/ that describe a search (onenet/sweeps/search.py)."""
    return [name for name in loader().options(GROUP) if is_search(name)]


def is_search(name: str) -> bool:
    return "search" in loader().read(f"{GROUP}/{name}")


def titles() -> str:
    """The experiments and what they ask, a line each."""
    lines = []
    for name in loader().options(GROUP):
        values = loader().read(f"{GROUP}/{name}")
        lines.append(f"{name}: {values.get('experiment', values).get('title', '')}")
    return "\n".join(lines)


def read_experiment(name: str) -> Experiment:
    """experiments/<name>.yaml. Raises UserError, naming file and key."""
    path = f"{GROUP}/{name}"
    values = loader().read(path)
    try:
        rows = tuple(Row(row["label"], tuple(row["overrides"])) for row in values.pop("rows"))
        sweep = tuple(values.pop("sweep", ()))
        return Experiment(name, rows=rows, sweep=sweep, **values)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{loader().where(path)} is not an experiment: {str(error).splitlines()[0]}\n"
            "It needs title, question, rows (each a label and a list of overrides), and may have "
            "table and sweep."
        ) from error


def expand(words: Sequence[str]) -> list[RunSpec]:
    """Every run that these words of the command line ask for, each once, in their order.

    `+experiment=NAME` brings in the rows of experiments/NAME.yaml. Of the other words, one that
    sets a key of the rows keeps the rows with that value; any other holds for all rows and
    multiplies them where it lists values (`seed=0,1`). Raises UserError for what cannot work.
    """
    return specs_of(axes_of(words))


def axes_of(words: Sequence[str]) -> Axes:
    """Each key with its values, by Hydra's grammar (lists, range(), glob() of options). A key that
    is given twice counts with its last values; Hydra's own keys say nothing of a run. Raises
    UserError."""
    parsed = [one for one in loader().parse(words) if not one.is_hydra_override()]
    return {one.get_key_element(): _listed(one) for one in parsed}


def _listed(override: Override) -> list[Override]:
    """Its values, each for itself. Raises UserError if there are none, or too many."""
    try:
        values = list(itertools.islice(values_of(override), MOST_VALUES + 1))
    except ValueError as error:  # range(0,3,0)
        raise UserError(f"{override.input_line}: {error}.") from error
    if not values or len(values) > MOST_VALUES:
        number = f"more than {MOST_VALUES} values" if values else "no value"
        raise UserError(f"{override.input_line}: lists {number}.")
    return values


def specs_of(axes: Axes) -> list[RunSpec]:
    """As `expand`."""
    axes = dict(axes)
    names = axes.pop(f"+{GROUP}", ())
    if not names:
        return [spec_of(combination) for combination in itertools.product(*axes.values())]
    found: dict[tuple, RunSpec] = {}
    for name in names:
        for spec in _of_experiment(read_experiment(str(name.value())), axes):
            found.setdefault((spec.experiment, spec.label, spec.id, spec.evaluation), spec)
    return list(found.values())


def _of_experiment(experiment: Experiment, axes: Axes) -> list[RunSpec]:
    row_axes = [axes_of(row.overrides) for row in experiment.rows]
    of_rows = {key for row in row_axes for key in row}
    for key, values in itertools.chain(*(row.items() for row in row_axes)):
        if len(values) > 1:
            raise UserError(f"{key} lists values in a row of {experiment.name}: it may in sweep.")
    asked = {key: [one.value() for one in axes[key]] for key in of_rows & axes.keys()}
    chosen = [
        (row, own)
        for row, own in zip(experiment.rows, row_axes, strict=True)
        if all(own[key][0].value() in asked[key] for key in own.keys() & asked.keys())
    ]
    if not chosen:
        said = " ".join(word(one) for key in sorted(asked) for one in axes[key])
        raise NoRow(f"No row of experiment {experiment.name} has {said}.")
    common = axes_of(experiment.sweep) | {k: v for k, v in axes.items() if k not in of_rows}
    return [
        spec_of((*itertools.chain(*own.values()), *combination), row.label, experiment.name)
        for row, own in chosen
        for combination in itertools.product(*common.values())
    ]


def spec_of(overrides: Sequence[Override], label: str = "", experiment: str = "") -> RunSpec:
    """The run with these values."""
    config = loader().compose(overrides)
    said = [one for one in overrides if one.key_or_group not in WHERE and not no_option(one)]
    words = tuple(map(word, said))
    return RunSpec(label, experiment, words, config, run_id(config), requested_evaluation(config))
