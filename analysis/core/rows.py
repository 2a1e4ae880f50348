"""The rows of a table: the paper's numbers beside the results of our runs, which are exactly the
ids that the table's experiment resolves to.
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
RECORDS = REPOSITORY / "analysis" / "results" / "records"  # of our own runs, committed


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over the seeds for which a number is defined."""

    mean: float | None  # None if n is 0
    std: float | None  # None if n is below 2
    n: int


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper; `numbers` holds what it prints and what follows from that."""

    numbers: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row of a table; its runs differ only in the seed."""

    label: str
    specs: list[RunSpec]
    results: dict[str, dict]  # id -> result, for the runs that have one
    paper: PaperRow
    fps: float | None = None  # of the row's network, on Comparison.fps_device

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
        values = {id_: _value(result["metrics"], metric) for id_, result in self.results.items()}
        return {id_: value for id_, value in values.items() if value is not None}

    def gap(self, metric: str) -> float | None:
        """Ours - paper. None if either is missing, and for FPS, as the machines differ."""
        if metric == "FPS":
            return None
        ours, paper = self.ours(metric).mean, self.paper.numbers.get(metric)
        return None if ours is None or paper is None else ours - paper


@dataclass(frozen=True)
class Comparison:
    """A table of the paper beside ours. All results share one data set, one recipe, and one version
    of each evaluator."""

    experiment: Experiment
    rows: list[TableRow]
    overrides: tuple[str, ...]  # run.py's, without the experiment
    fps_device: str | None = None  # None if no row has FPS

    @property
    def command(self) -> str:
        """The command that runs what is missing, never in the folder of committed records."""
        return command_of(self.experiment.name, without_records_root(self.overrides))

    @property
    def specs(self) -> list[RunSpec]:
        return [spec for row in self.rows for spec in row.specs]

    @property
    def results(self) -> list[dict]:
        return [result for row in self.rows for result in row.results.values()]

    @property
    def missing_specs(self) -> list[RunSpec]:
        return [spec for row in self.rows for spec in row.specs if spec.id not in row.results]


def command_of(experiment: str, overrides: Sequence[str]) -> str:
    """The command line that runs the experiment."""
    return shlex.join(["python", "run.py", "-m", f"+experiment={experiment}", *overrides])


def without_records_root(overrides: Sequence[str]) -> list[str]:
    """Drops the override that points at the committed records, so that new runs go to `runs/`."""
    return [override for override in overrides if override != f"runs_root={RECORDS}"]


def compare(experiment: Experiment, overrides: Sequence[str] = ()) -> Comparison:
    """Returns the experiment's rows, in its order, with run.py's overrides applied.

    An override that lists several values (of a key other than the seed) makes one row per value.
    Raises UserError if the results cannot be compared.
    """
    specs = expand([f"+experiment={experiment.name}", *overrides])
    groups: dict[tuple, list[RunSpec]] = {}
    for spec in specs:
        settings = tuple(each for each in spec.overrides if not each.startswith("seed="))
        groups.setdefault((spec.label, settings), []).append(spec)
    paper = read_paper()
    rows = []
    for (label, settings), members in groups.items():
        common = set.intersection(*(set(s) for other, s in groups if other == label))
        differing = [override for override in settings if override not in common]
        results = {c.id: r for c in members if (r := c.folder.result(c.evaluation))}
        paper_row = paper.get((experiment.table, label), PaperRow({}))
        rows.append(TableRow(", ".join([label, *differing]), members, results, paper_row))
    networks = [fps.network_of(row.specs[0].config, row.specs[0].evaluation) for row in rows]
    speeds = fps.read(Path(specs[0].config.runs_root))
    numbers, device = fps.lookup(speeds, networks)
    rows = [replace(row, fps=number) for row, number in zip(rows, numbers, strict=True)]
    comparison = Comparison(experiment, rows, tuple(overrides), device)
    _require_comparable(comparison)
    return comparison


def read_paper(path: Path = PAPER) -> dict[tuple[int, str], PaperRow]:
    """(table, label) -> the paper's row, from the CSV file."""
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
    """Name and version of the package that computed the result's AP."""
    package = _package(result)
    return f"{package} {result['env'].get(package, 'of unknown version')}"


def _package(result: dict) -> str:
    """The evaluator's package. Old results that do not name one come from pycocotools."""
    backend = result["config"]["eval"].get("backend", "pycocotools")
    return {"faster": "faster-coco-eval"}.get(backend, backend)


def why_missing(spec: RunSpec) -> str:
    """Says in one line why a run has no result; empty if it was never started."""
    status = spec.folder.status()
    if status.get("state") == "failed":
        return f"failed: {' '.join((status.get('exception') or 'unknown').split())}"
    with contextlib.suppress(OSError):  # a read-only runs root has no locks that show running runs
        state = spec.folder.state()
        done = "trained, but without this evaluation"
        return {"missing": "", "done": done}.get(state, state)
    return ""


def _value(metrics: dict, metric: str) -> float | None:
    if metric == "train_hours":
        seconds = metrics.get("train_seconds")
        return None if seconds is None else seconds / 3600
    value = metrics.get(metric)
    return None if value is None or value != value else value  # NaN counts as undefined


def _require_comparable(comparison: Comparison) -> None:
    """Raises UserError if the results mix data sets, recipes, or versions of one evaluator.

    Different evaluators may be mixed, since tests/test_coco_metrics.py checks that they agree.
    """
    table, root = comparison.experiment.table, comparison.specs[0].config.runs_root
    data = [
        {
            key: value
            for key, value in identifying_values(spec.config).items()
            if key.startswith("data.")
        }
        for spec in comparison.specs
    ]
    # Check names before parameters: some parameters exist for one kind of data only.
    names = ["data.name", "data.shapes.kind"]
    for key in [*names, *sorted({key for d in data for key in d})]:
        values = dict.fromkeys(str(d.get(key)) for d in data)
        if len(values) > 1:
            raise UserError(
                f"Table {table} can show one data set only, but {key} is {' and '.join(values)}.\n"
                f"Choose one value of {key} at a time."
            )
    results = [(id_, result) for row in comparison.rows for id_, result in row.results.items()]
    for id_, result in results:
        if result.get("id") != id_:
            raise UserError(
                f"The folder of {id_} holds the result of {result.get('id')}: it is a renamed or "
                f"copied folder.\nMove it out of {root}"
            )
    reevaluate = "delete the folder evaluations/ of the runs of one version (no training is lost)"
    move = f"move the runs of one recipe out of {root}"
    checks = [("recipes", lambda result: str(result["recipe"]), move, results)]
    for package in sorted({_package(result) for _, result in results}):
        same_package = [(id_, result) for id_, result in results if _package(result) == package]
        checks.append(("evaluators", evaluator, reevaluate, same_package))
    for noun, origin_of, way_out, results_to_check in checks:
        ids_by_origin: dict[str, list[str]] = {}
        for id_, result in results_to_check:
            ids_by_origin.setdefault(origin_of(result), []).append(id_)
        if len(ids_by_origin) > 1:
            summary = "; ".join(
                f"{origin}: {len(ids)} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
                for origin, ids in ids_by_origin.items()
            )
            raise UserError(
                f"The results of table {table} come from different {noun}. {summary}\n"
                f"They cannot be averaged: {way_out}, then\n{comparison.command}"
            )
