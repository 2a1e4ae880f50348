"""Finds and reads the runs behind tables, claims and figures.

The default runs root is run.py's (`runs/`), or the committed records in a fresh clone, where
`runs/` does not exist yet.
"""

import argparse
import contextlib
import json
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from analysis.core.rows import RECORDS, Comparison, TableRow, compare
from onenet.config.compose import use_folder
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.runs.folder import RunFolder, find_runs
from onenet.sweeps.experiments import NoRow, RunSpec, read_experiment
from onenet.system.files import REPOSITORY

RESULTS = REPOSITORY / "analysis" / "results"
OWN_RUNS = REPOSITORY / "runs"
BCCD = RESULTS / "bccd"  # Table 1 and claims.csv on real images; their runs are not committed


def with_root(overrides: list[str], runs: str | None) -> list[str]:
    """Returns run.py's overrides with `runs_root` set to `runs`, or to the committed records if
    there are no other runs. Raises UserError."""
    for override in overrides:
        if override.lstrip("+").startswith("experiment="):
            raise UserError(
                f"{override}: this command chooses the experiments itself. To choose tables: "
                "--table N"
            )
    overrides = [override for override in overrides if not override.startswith("plan=")]
    if runs is None:
        if _names_root(overrides) or default_root() != RECORDS:
            return overrides
        runs = str(RECORDS)
    text = str(runs_folder(runs))
    if not re.fullmatch(r"[\w./-]+", text):  # Hydra's grammar reads other characters as syntax
        text = "'" + text.replace("'", r"\'") + "'"
    return [*(each for each in overrides if not each.startswith("runs_root=")), f"runs_root={text}"]


def runs_folder(runs: str | Path) -> Path:
    """Returns the folder that `--runs` names. Raises UserError if there is none."""
    root = Path(runs).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"--runs {runs} is not a folder.")
    return root


def _names_root(overrides: list[str]) -> bool:
    return any(override.startswith(("runs_root=", "debug=")) for override in overrides)


def command_line(doc: str) -> argparse.ArgumentParser:
    """The parser that tables, claims, figures and report share: `--runs`, run.py's overrides."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", metavar="DIR", help="runs root (default: run.py's)")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="as in run.py")
    parser.add_argument("--config-dir", metavar="DIR", help="as in run.py")
    return parser


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Returns run.py's overrides from the arguments that `command_line` parsed. Raises
    UserError."""
    use_folder(args.config_dir)
    return with_root(args.overrides, args.runs)


def default_root() -> Path:
    """Returns run.py's `runs/`, or the committed records if the user has no runs yet."""
    has_runs = any(OWN_RUNS.glob("*/status.json"))
    return RECORDS if RECORDS.exists() and not has_runs else OWN_RUNS


def named_runs(root: Path, names: Sequence[str]) -> list[RunFolder]:
    """Returns the runs with these names, each an id, the name of a folder in the root, or the path
    of a folder. Raises UserError."""
    folders = [RunFolder(path) for path in sorted(root.glob("[!.]*")) if path.is_dir()]
    names_in_root = {name for folder in folders for name in (folder.id, folder.path.name)}
    runs = []
    for name in names:
        path = Path(name).expanduser().absolute()
        if name not in names_in_root and path.is_dir():
            runs.append(RunFolder(path))
        elif name not in names_in_root and "=" in name:
            raise UserError(f"There is no run {name} in {root}. Did you mean: -- {name}?")
        else:
            runs += find_runs(root, folders, [name])
    return list(dict.fromkeys(runs))


def print_source(overrides: list[str]) -> None:
    """Prints which runs root was read, if the user did not name one."""
    if f"runs_root={RECORDS}" in overrides and default_root() == RECORDS:
        print(
            f"There are no runs in runs/ yet: these are the records in {RECORDS}", file=sys.stderr
        )
    elif not _names_root(overrides):
        records = f"--runs {RECORDS.relative_to(REPOSITORY)}"
        print(f"These are the runs in runs/. For the committed records: {records}", file=sys.stderr)


class Evidence:
    """The finished runs of all experiments, with run.py's `overrides` applied."""

    def __init__(self, overrides: list[str]):
        self.overrides = tuple(overrides)
        self.row_overrides = [each for each in overrides if not each.startswith("runs_root=")]
        self._comparisons: dict[tuple, Comparison] = {}

    @property
    def _config(self) -> Config:
        return self.comparison("table1").specs[0].config

    @property
    def proxy(self) -> bool:
        return self._config.preset == "proxy"

    @property
    def data(self) -> str:
        return self._config.data.name

    @property
    def root(self) -> Path:
        return Path(self._config.runs_root)

    @property
    def is_committed(self) -> bool:
        """Whether these are the committed records, without overrides."""
        return self.root == RECORDS and not self.row_overrides

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

    def comparison(self, experiment: str, *extra: str) -> Comparison:
        """The experiment's rows with `extra` overrides; those of the command line win."""
        key = experiment, extra
        if key not in self._comparisons:
            overrides = [*self.drop_overridden(extra), *self.overrides]
            self._comparisons[key] = compare(read_experiment(experiment), overrides)
        return self._comparisons[key]

    def drop_overridden(self, extra: Sequence[str]) -> tuple[str, ...]:
        """Returns the `extra` overrides whose keys the command line does not set."""
        keys = {override.partition("=")[0] for override in self.overrides}
        return tuple(override for override in extra if override.partition("=")[0] not in keys)

    def row(self, experiment: str, label: str, *extra: str) -> TableRow:
        """Returns the experiment's row with this label.

        Raises NoRow if the overrides removed the row or made it the same as another, UserError if
        they turned it into several rows.
        """
        all_rows = self.comparison(experiment, *extra).rows
        rows = [row for row in all_rows if row.specs[0].label == label]
        overrides = " ".join(self.row_overrides)
        if not rows:
            raise NoRow(f"{experiment} has no row '{label}' under {overrides}.")
        if len(rows) > 1:
            raise UserError(
                f"{experiment} has {len(rows)} rows '{label}' under {overrides}: give each key a "
                "single value."
            )
        same = [row for row in all_rows if _runs(row) == _runs(rows[0])]
        if len(same) > 1:
            labels = " and ".join(f"'{row.label}'" for row in same)
            raise NoRow(f"{experiment}: {labels} are the same runs under {overrides}.")
        return rows[0]


def _runs(row: TableRow) -> list[tuple]:
    return [(spec.id, spec.evaluation) for spec in row.specs]


def by_seed(row: TableRow, metric: str) -> dict[int, float]:
    """seed -> value, for the runs in which the metric is defined."""
    values = row.values(metric)
    return {spec.config.seed: values[spec.id] for spec in row.specs if spec.id in values}


@cache
def snapshots(folder: RunFolder) -> dict[str, np.ndarray]:
    """The arrays of assignments.npz (onenet/job/snapshots.py); empty if there is no such file.
    Raises UserError."""
    file = folder.assignments_file
    return read_arrays(file) if file.is_file() else {}


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file. Raises UserError if it is damaged."""
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, BadZipFile, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}): move it away.") from error


def snapshot_lines(folder: RunFolder) -> list[dict]:
    """The lines of metrics.jsonl that describe a snapshot, ordered by step."""
    return [line for line in metric_lines(folder) if line.get("evaluation") == "first64"]


@cache
def metric_lines(folder: RunFolder) -> list[dict]:
    """All complete lines of metrics.jsonl; none if there is no such file."""
    if not folder.metrics_file.is_file():
        return []
    lines = []
    for text in folder.metrics_file.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # a killed run leaves an incomplete line
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) else []
    return lines


def fraction_by_seed(row: TableRow, test: Callable) -> dict[int, float]:
    """seed -> the fraction, 0..1, of objects whose positive sample passes the test.

    `test`(arrays) returns [A], NaN for objects to leave out. Objects without a positive sample in
    the run's last snapshot are left out, too.
    """
    fractions = {}
    for spec in finished_specs(row):
        if arrays := snapshots(spec.folder):
            values = test(arrays)[arrays["slot"][-1] >= 0].astype(float)
            if np.isfinite(values).any():
                fractions[spec.config.seed] = float(np.nanmean(values))
    return fractions


def finished_specs(row: TableRow) -> list[RunSpec]:
    return [spec for spec in row.specs if spec.id in row.results]


def nearest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """[A] bool: whether the sample is at the grid point nearest to the object's centre."""
    return arrays["nearest"][-1]


def inside(box: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Returns a test for fraction_by_seed: whether the sample is inside the object's `gt_xyxy` or
    `part_xyxy`, NaN where that box is unknown."""

    def test(arrays: dict[str, np.ndarray]) -> np.ndarray:
        location, edges = arrays["place_xy"][-1], arrays[box]
        within = ((location >= edges[:, :2]) & (location <= edges[:, 2:])).all(axis=1)
        return np.where(np.isfinite(edges).all(axis=1), within, np.nan)

    return test
