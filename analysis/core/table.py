"""The tables: the rows of an experiment, each with exactly the runs that it resolves to, beside the
paper's numbers.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.core import fps
from analysis.core.frame import COLUMNS, METRICS, RECORDS, RESULTS, load
from analysis.core.settings import PROXY_ONLY, SETTINGS, SHAPES_ONLY, Overrides
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.identity import identifying_values
from onenet.sweeps.experiments import Experiment, NoRow, RunSpec, expand, read_experiment
from onenet.sweeps.summary import row_labels
from onenet.system.files import REPOSITORY

PAPER = REPOSITORY / "analysis" / "paper" / "tables.csv"
TIDY = ("paper", "ours_mean", "ours_std", "n", "gap", "ids")


@dataclass(frozen=True, eq=False)
class Table:
    """An experiment with its runs. All results share one data set, one recipe, and one version of
    each evaluator."""

    experiment: Experiment
    overrides: tuple[str, ...]  # run.py's, without the experiment
    # A row per requested run: `row`, `label`, `spec`, `seed`, `done`, and the columns of `load`
    # (NaN if it is not done).
    runs: pd.DataFrame
    fps_device: str | None = None  # None if no row has FPS

    @property
    def command(self) -> str:
        """The command that runs what is missing."""
        return command_of(self.experiment.name, self.overrides)

    @property
    def done(self) -> pd.DataFrame:
        return self.runs[self.runs.done]

    @property
    def missing(self) -> list[RunSpec]:
        return [*self.runs.spec[~self.runs.done]]

    @property
    def specs(self) -> pd.Series:
        """A spec of each row, by row."""
        return self.runs.groupby("row", sort=False).spec.first()

    @cached_property
    def paper(self) -> pd.DataFrame:
        """The paper's numbers and `notes` of each row; NaN for what it does not print."""
        labels = self.runs.groupby("row", sort=False).label.first()
        frame = read_paper().reindex([(self.experiment.table, label) for label in labels])
        return frame.set_index(labels.index)

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """The columns of TIDY but `ids`, by (row, metric), and the number of runs that are `done`.
        `gap` is ours minus the paper's."""
        values = self.runs.groupby("row", sort=False)[["lr", *METRICS, "FPS"]]
        columns = {"ours_mean": values.mean(), "ours_std": values.std(), "n": values.count()}
        frame = pd.DataFrame({name: column.stack() for name, column in columns.items()})
        frame.index.names = ["row", "metric"]
        frame = frame.astype({"n": "Int64"})
        frame.loc[(slice(None), "lr"), ["ours_std", "n"]] = np.nan
        frame["paper"] = self.paper.drop(columns="notes").stack()
        frame["gap"] = frame.ours_mean - frame.paper
        frame.loc[(slice(None), "FPS"), "gap"] = np.nan  # the machines differ
        frame["done"] = self.runs.groupby("row").done.sum().reindex(frame.index, level="row")
        return frame

    @property
    def has_tide(self) -> bool:
        """Whether a run has TIDE's errors, which came later than the other metrics."""
        return bool(self.runs.dAP_dupe.notna().any())

    def tidy(self) -> pd.DataFrame:
        """A line per row and metric, to six digits, for CSV; without metrics of which earlier
        versions knew nothing."""
        ids = self.runs.groupby("row", sort=False)[[*METRICS]].agg(
            lambda values: " ".join(self.runs.id[values.index][values.notna()])
        )
        frame = self.numbers.assign(ids=ids.stack())[[*TIDY]].reset_index()
        is_later = frame.metric.str.startswith("dAP") | (frame.metric == "score_gap")
        unknown = is_later & (frame.n == 0)
        frame.insert(0, "table", self.experiment.table)
        return frame[~unknown].round(6)


def command_of(experiment: str, overrides: Sequence[str]) -> str:
    """The command that runs the experiment, never in the folder of committed records."""
    own = without_records_root(overrides)
    return shlex.join(["python", "run.py", "-m", f"+experiment={experiment}", *own])


def without_records_root(overrides: Sequence[str]) -> list[str]:
    """Drops the override that points at the committed records, so that new runs go to `runs/`."""
    return [override for override in overrides if override != f"runs_root={RECORDS}"]


@cache
def read_paper() -> pd.DataFrame:
    """The paper's numbers by (table, row)."""
    frame = pd.read_csv(PAPER, index_col=["table", "row"])
    frame.insert(0, "nms_gain", (frame.AP_nms - frame.AP).round(1))
    return frame


class Results:
    """The tables of all experiments, with run.py's `overrides` applied."""

    def __init__(self, overrides: Sequence[str], shared: "Results | None" = None):
        """`shared`: other results, whose tables need not be read again."""
        self.overrides = tuple(overrides)
        self.row_overrides = [each for each in overrides if not each.startswith("runs_root=")]
        self._tables: dict[tuple, Table] = shared._tables if shared else {}
        self._frames: dict[Path, pd.DataFrame] = shared._frames if shared else {}

    @cached_property
    def config(self) -> Config:
        """That of the first row of Table 1."""
        return self.table("table1").runs.spec[0].config

    @property
    def proxy(self) -> bool:
        return self.config.preset == "proxy"

    @property
    def data(self) -> str:
        """The name of the data: the kind of shapes, or that of other data."""
        data = self.config.data
        return data.shapes.kind if data.name == "shapes" else data.name

    @property
    def root(self) -> Path:
        return Path(self.config.runs_root)

    @property
    def is_committed(self) -> bool:
        """Whether these are the committed records, without overrides."""
        return self.root == RECORDS and not self.row_overrides

    def command(self, experiment: str) -> str:
        """The command that runs the experiment."""
        return command_of(experiment, self.overrides)

    def folder(self, out: str | None) -> Path:
        """Returns the folder for figures and report: `out` if given, else the runs root. For the
        committed records it is the folder above, which is reserved for all records together.

        Raises UserError.
        """
        if out is None and self.root == RECORDS and self.row_overrides:
            overrides = " ".join(self.row_overrides)
            raise UserError(f"{RESULTS} is for all records, not for {overrides}: add --out DIR.")
        home = RESULTS if self.root == RECORDS else self.root
        return Path(out).expanduser().absolute() if out else home

    def under(self, setting: str) -> "Results":
        """Returns the results with this setting, as far as it applies."""
        return Results([*self.overrides, *self.setting(setting)], self)

    def setting(self, name: str) -> Overrides:
        """Returns the overrides of the setting that apply to this data and scale, and that the
        command line does not set itself."""
        wrong_data = name in SHAPES_ONLY and self.config.data.name != "shapes"
        if wrong_data or (name in PROXY_ONLY and not self.proxy):
            return ()
        keys = {override.partition("=")[0] for override in self.overrides}
        return tuple(each for each in SETTINGS[name] if each.partition("=")[0] not in keys)

    def table(self, experiment: str, setting: str = "", more: Overrides = ()) -> Table:
        """The experiment under the setting. Raises UserError if its results cannot be compared."""
        own = self.setting(setting) if setting else ()
        overrides = (*more, *own, *self.overrides)
        key = experiment, frozenset(overrides)
        if key not in self._tables:
            self._tables[key] = self._read(read_experiment(experiment), overrides)
        return self._tables[key]

    def runs(self, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """Returns `Table.runs` of the specs, without FPS. Raises UserError if a folder holds
        another run's result."""
        root, labels = specs[0].config.root, row_labels(specs, seeds=False)
        if root not in self._frames:
            frame = pd.DataFrame(columns=COLUMNS)
            if root.is_dir():
                frame = load(root, evaluations="all")
            names = frame.folder.map(lambda folder: Path(folder).name)
            self._frames[root] = frame.set_index([names, frame.evaluation.rename("name")])
        keys = [(spec.folder.path.name, spec.evaluation.id) for spec in specs]
        frame = self._frames[root].reindex(pd.MultiIndex.from_tuples(keys)).reset_index(drop=True)
        ids = pd.Series([spec.id for spec in specs])
        if len(wrong := frame.id[frame.id.notna() & (frame.id != ids)]):
            raise UserError(
                f"The folder of {ids[wrong.index[0]]} holds the result of {wrong.iloc[0]}: it is a "
                f"renamed or copied folder.\nMove it out of {root}"
            )
        return frame.assign(
            done=frame.id.notna(),
            id=ids,
            row=[labels[spec] for spec in specs],
            label=[spec.label for spec in specs],
            spec=[*specs],
            seed=[spec.config.seed for spec in specs],
            lr=[spec.config.lr for spec in specs],
        )

    def _read(self, experiment: Experiment, overrides: Overrides) -> Table:
        """Returns the experiment's rows, in its order. An override that lists several values (of a
        key other than the seed) makes one row per value."""
        specs = expand([f"+experiment={experiment.name}", *overrides])
        networks = [fps.network_of(spec.config, spec.evaluation) for spec in specs]
        speeds, device = fps.lookup(fps.read(Path(specs[0].config.runs_root)), networks)
        runs = self.runs(specs)
        runs["FPS"] = pd.Series(speeds, dtype=float).mask(runs.row.duplicated())  # one per row
        table = Table(experiment, overrides, runs, device)
        _require_one_data_set(table)
        _require_one_origin(table)
        return table

    def row(self, experiment: str, label: str, setting: str = "") -> pd.DataFrame:
        """Returns the runs of the experiment's row with this label.

        Raises NoRow if the overrides removed the row or made it the same as another, UserError if
        they turned it into several rows.
        """
        runs = self.table(experiment, setting).runs
        row = runs[runs.label == label]
        overrides = " ".join(self.row_overrides)
        if row.empty:
            raise NoRow(f"{experiment} has no row '{label}' under {overrides}.")
        if row.row.nunique() > 1:
            raise UserError(
                f"{experiment} has {row.row.nunique()} rows '{label}' under {overrides}: give each "
                "key a single value."
            )
        rows: dict[str, list] = {}
        for name, spec in zip(runs.row, runs.spec, strict=True):
            rows.setdefault(name, []).append((spec.id, spec.evaluation))
        same = [name for name, own in rows.items() if own == rows[row.row.iloc[0]]]
        if len(same) > 1:
            labels = " and ".join(f"'{name}'" for name in same)
            raise NoRow(f"{experiment}: {labels} are the same runs under {overrides}.")
        return row


def _require_one_data_set(table: Table) -> None:
    data = [
        {k: v for k, v in identifying_values(spec.config).items() if k.startswith("data.")}
        for spec in table.runs.spec
    ]
    # Check names before parameters: some parameters exist for one kind of data only.
    for key in ["data.name", "data.shapes.kind", *sorted({key for d in data for key in d})]:
        values = dict.fromkeys(str(d.get(key)) for d in data)
        if len(values) > 1:
            raise UserError(
                f"Table {table.experiment.table} can show one data set only, but {key} is "
                f"{' and '.join(values)}.\nChoose one value of {key} at a time."
            )


def _require_one_origin(table: Table) -> None:
    """Raises UserError if the results mix recipes, or versions of one evaluator.

    Different evaluators may be mixed, since tests/test_coco_metrics.py checks that they agree.
    """
    done, root = table.done, table.specs.iloc[0].config.runs_root
    move = f"move the runs of one recipe out of {root}"
    reevaluate = "delete the folder evaluations/ of the runs of one version (no training is lost)"
    evaluators = evaluators_of(done)
    checks = [("recipes", done.recipe.astype("Int64").astype(str), move)]
    checks += [("evaluators", own, reevaluate) for _, own in evaluators.groupby(done.evaluator)]
    for noun, origins, way_out in checks:
        if origins.nunique() > 1:
            ids = {origin: [*table.runs.id[own.index]] for origin, own in origins.groupby(origins)}
            summary = "; ".join(
                f"{origin}: {len(own)} ({', '.join(own[:3])}{', …' if len(own) > 3 else ''})"
                for origin, own in ids.items()
            )
            raise UserError(
                f"The results of table {table.experiment.table} come from different {noun}. "
                f"{summary}\nThey cannot be averaged: {way_out}, then\n{table.command}"
            )


def evaluators_of(done: pd.DataFrame) -> pd.Series:
    """Name and version of the package that computed the AP of each finished run."""
    return done.evaluator.astype(str) + " " + done.evaluator_version.astype(str)
