"""The rows of a table: the paper's numbers beside the results of exactly the ids that the table's
experiment resolves to.
"""

import contextlib
import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from analysis.core import fps
from onenet.errors import UserError
from onenet.runs.identity import identifying_values
from onenet.sweeps.experiments import Experiment, RunSpec, expand
from onenet.system.files import REPOSITORY

PAPER = REPOSITORY / "analysis" / "paper" / "tables.csv"
RECORDS = REPOSITORY / "analysis" / "results" / "records"  # what is committed of our own runs


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over the seeds in which a number is defined."""

    mean: float | None  # None: n is 0
    std: float | None  # None: n is below 2
    n: int


@dataclass(frozen=True)
class PaperRow:
    """A row as the paper prints it; `numbers` only has what is printed or follows from it."""

    numbers: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its runs differ in nothing but the seed."""

    label: str
    specs: list[RunSpec]
    results: dict[str, dict]  # id -> result; only of the runs that have one
    paper: PaperRow
    fps: float | None = None  # of its network, on Comparison.fps_device

    def ours(self, metric: str) -> Stat:
        if metric == "FPS":
            return Stat(self.fps, None, int(self.fps is not None))
        values = self.values(metric).values()
        return Stat(
            fmean(values) if values else None,
            stdev(values) if len(values) > 1 else None,
            len(values),
        )

    def values(self, metric: str) -> dict[str, float]:
        """id -> value, for the results in which the metric is defined."""
        found = {id_: _value(result["metrics"], metric) for id_, result in self.results.items()}
        return {id_: value for id_, value in found.items() if value is not None}

    def gap(self, metric: str) -> float | None:
        """Ours - paper; None where either has no number, and for FPS of different machines."""
        if metric == "FPS":
            return None
        ours, paper = self.ours(metric).mean, self.paper.numbers.get(metric)
        return None if ours is None or paper is None else ours - paper


@dataclass(frozen=True)
class Comparison:
    """A table of the paper and ours. All results have one data set, one recipe, and of an evaluator
    one version."""

    experiment: Experiment
    rows: list[TableRow]
    overrides: tuple[str, ...]  # run.py's, beside the experiment
    fps_device: str | None = None  # None: no row's FPS are known

    @property
    def command(self) -> str:
        """Runs what is missing; never among the committed records."""
        return command_of(self.experiment.name, elsewhere(self.overrides))

    @property
    def specs(self) -> list[RunSpec]:
        return [spec for row in self.rows for spec in row.specs]

    @property
    def results(self) -> list[dict]:
        return [result for row in self.rows for result in row.results.values()]

    @property
    def missing(self) -> list[RunSpec]:
        return [spec for row in self.rows for spec in row.specs if spec.id not in row.results]


def command_of(experiment: str, overrides: Sequence[str]) -> str:
    """What a person types to run it."""
    return shlex.join(["python", "run.py", "-m", f"+experiment={experiment}", *overrides])


def elsewhere(overrides: Sequence[str]) -> list[str]:
    """The words for a person's own runs: without the root of the committed records."""
    return [word for word in overrides if word != f"runs_root={RECORDS}"]


def compare(experiment: Experiment, overrides: Sequence[str] = ()) -> Comparison:
    """The experiment's rows, in its order, under run.py's overrides.

    Overrides that list values (other than seeds) make a row of each value. Raises UserError for
    what cannot be compared.
    """
    specs = expand([f"+experiment={experiment.name}", *overrides])
    groups: dict[tuple, list[RunSpec]] = {}
    for spec in specs:
        settings = tuple(word for word in spec.overrides if not word.startswith("seed="))
        groups.setdefault((spec.label, settings), []).append(spec)
    paper = read_paper()
    rows = []
    for (label, settings), members in groups.items():
        shared = set.intersection(*(set(s) for other, s in groups if other == label))
        varied = [word for word in settings if word not in shared]
        results = {c.id: r for c in members if (r := c.folder.result(c.evaluation))}
        printed = paper.get((experiment.table, label), PaperRow({}))
        rows.append(TableRow(", ".join([label, *varied]), members, results, printed))
    networks = [fps.network_of(row.specs[0].config, row.specs[0].evaluation) for row in rows]
    measured = fps.read(Path(specs[0].config.runs_root))
    numbers, device = fps.of_networks(measured, networks)
    rows = [replace(row, fps=number) for row, number in zip(rows, numbers, strict=True)]
    comparison = Comparison(experiment, rows, tuple(overrides), device)
    _require_comparable(comparison)
    return comparison


def read_paper(path: Path = PAPER) -> dict[tuple[int, str], PaperRow]:
    """(table, label) -> the paper's row, as the CSV file has it."""
    rows = {}
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            key = int(line.pop("table")), line.pop("row")
            note = line.pop("notes")
            numbers = {metric: float(text) for metric, text in line.items() if text}
            if "AP_nms" in numbers:
                numbers["nms_gain"] = round(numbers["AP_nms"] - numbers["AP"], 1)
            rows[key] = PaperRow(numbers, note)
    return rows


def evaluator(result: dict) -> str:
    """Name and version of what computed the result's AP."""
    package = _package(result)
    return f"{package} {result['env'].get(package, 'of unknown version')}"


def _package(result: dict) -> str:
    """Results of before there was a choice are pycocotools'."""
    backend = result["config"]["eval"].get("backend", "pycocotools")
    return {"faster": "faster-coco-eval"}.get(backend, backend)


def why_missing(spec: RunSpec) -> str:
    """What is known about a run without a result, in a line; empty if it was never started."""
    status = spec.folder.status()
    if status.get("state") == "failed":
        return f"failed: {' '.join((status.get('exception') or 'unknown').split())}"
    with contextlib.suppress(OSError):  # a runs root that is read-only cannot tell who runs
        state = spec.folder.state()
        done = "trained, but not evaluated in this way"
        return {"missing": "", "done": done}.get(state, state)
    return ""


def _value(metrics: dict, metric: str) -> float | None:
    if metric == "train_hours":
        seconds = metrics.get("train_seconds")
        return None if seconds is None else seconds / 3600
    value = metrics.get(metric)
    return None if value is None or value != value else value  # NaN is none


def _require_comparable(comparison: Comparison) -> None:
    """Raises UserError that says what there is several of. Evaluators may differ in name: they give
    the same numbers, as tests/test_coco_metrics.py holds them to."""
    table, root = comparison.experiment.table, comparison.specs[0].config.runs_root
    data = [
        {
            key: value
            for key, value in identifying_values(spec.config).items()
            if key.startswith("data.")
        }
        for spec in comparison.specs
    ]
    # What names a data set comes before its parameters, some of which exist for one kind only.
    names = ["data.name", "data.shapes.kind"]
    for key in [*names, *sorted({key for d in data for key in d})]:
        values = dict.fromkeys(str(d.get(key)) for d in data)
        if len(values) > 1:
            raise UserError(
                f"Table {table} can show one data set, but {key} is {' and '.join(values)}.\n"
                "Ask for one at a time."
            )
    found = [(id_, result) for row in comparison.rows for id_, result in row.results.items()]
    for id_, result in found:
        if result.get("id") != id_:
            raise UserError(
                f"The folder of {id_} holds the result of {result.get('id')}: it is a copy, or was "
                f"renamed.\nMove it out of {root}"
            )
    again = "delete the folder evaluations/ of one kind (no run is lost)"
    compared = [("recipes", lambda r: str(r["recipe"]), f"move one kind out of {root}", found)]
    for package in sorted({_package(result) for _, result in found}):
        of_package = [(id_, result) for id_, result in found if _package(result) == package]
        compared.append(("evaluators", evaluator, again, of_package))
    for what, of, way_out, those in compared:
        kinds: dict[str, list[str]] = {}
        for id_, result in those:
            kinds.setdefault(of(result), []).append(id_)
        if len(kinds) > 1:
            listed = "; ".join(
                f"{kind}: {len(ids)} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
                for kind, ids in kinds.items()
            )
            raise UserError(
                f"The results of table {table} come from several {what}. {listed}\n"
                f"They cannot be averaged: {way_out}, then\n{comparison.command}"
            )
