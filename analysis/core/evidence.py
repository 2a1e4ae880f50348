"""Where tables, claims and figures get their runs from.

The runs root is run.py's (`runs/`); in a fresh clone, where there is none, the committed records.
"""

import argparse
import contextlib
import json
import re
import sys
import zlib
from collections.abc import Sequence
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
OWN = REPOSITORY / "runs"
BCCD = RESULTS / "bccd"  # Table 1 and claims.csv on real images, without the runs


def with_root(overrides: list[str], runs: str | None) -> list[str]:
    """run.py's words, with the runs root among them. Raises UserError."""
    for word in overrides:
        if word.lstrip("+").startswith("experiment="):
            raise UserError(f"{word}: experiments are named here, not by words. Tables: --table N")
    kept = [word for word in overrides if not word.startswith("plan=")]
    if runs is None:
        said = any(word.startswith(("runs_root=", "debug=")) for word in kept)
        if said or default_root() != RECORDS:
            return kept
        runs = str(RECORDS)
    root = Path(runs).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise UserError(f"--runs {runs} is not a folder.")
    text = str(root)
    if not re.fullmatch(r"[\w./-]+", text):  # Hydra's grammar: quoted, it is taken as it is
        text = "'" + text.replace("'", r"\'") + "'"
    return [*(word for word in kept if not word.startswith("runs_root=")), f"runs_root={text}"]


def command_line(doc: str) -> argparse.ArgumentParser:
    """What tables, claims, figures and report have in common: `--runs`, and run.py's words."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", metavar="DIR", help="runs root (default: run.py's)")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="as for run.py")
    parser.add_argument("--config-dir", metavar="DIR", help="as for run.py")
    return parser


def words_of(args: argparse.Namespace) -> list[str]:
    """run.py's words, of what `command_line` has parsed. Raises UserError."""
    use_folder(args.config_dir)
    return with_root(args.overrides, args.runs)


def default_root() -> Path:
    """run.py's `runs/`, or the committed records where the person has none yet."""
    none = not any(OWN.glob("*/status.json"))
    return RECORDS if RECORDS.exists() and none else OWN


def named_runs(root: Path, words: Sequence[str]) -> list[RunFolder]:
    """The runs that the words name: ids, names of folders in the root, or folders. Raises
    UserError."""
    folders = [RunFolder(path) for path in sorted(root.glob("[!.]*")) if path.is_dir()]
    known = {name for folder in folders for name in (folder.id, folder.path.name)}
    found = []
    for word in words:
        path = Path(word).expanduser().absolute()
        if word not in known and path.is_dir():
            found.append(RunFolder(path))
        elif word not in known and "=" in word:
            raise UserError(f"There is no run {word} in {root}. Did you mean: -- {word}?")
        else:
            found += find_runs(root, folders, [word])
    return list(dict.fromkeys(found))


def say_where(overrides: list[str]) -> None:
    """Tells whose runs were shown where the person named none."""
    if f"runs_root={RECORDS}" in overrides and default_root() == RECORDS:
        print(
            f"There are no runs in runs/ yet: shown are the records in {RECORDS}", file=sys.stderr
        )
    elif not any(word.startswith(("runs_root=", "debug=")) for word in overrides):
        records = f"--runs {RECORDS.relative_to(REPOSITORY)}"
        print(f"Shown are the runs in runs/; the committed records: {records}", file=sys.stderr)


class Evidence:
    """The finished runs of the experiments, under run.py's `overrides`."""

    def __init__(self, overrides: list[str]):
        self.overrides = tuple(overrides)
        self.asked = [word for word in overrides if not word.startswith("runs_root=")]
        self._compared: dict[tuple, Comparison] = {}

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
    def committed(self) -> bool:
        """Are these the committed records, as they are?"""
        return self.root == RECORDS and not self.asked

    def folder(self, out: str | None) -> Path:
        """Where figures and report go: what the person names, or the root; the committed records
        have theirs in the folder above, which only holds those of all records.

        Raises UserError.
        """
        if out is None and self.root == RECORDS and self.asked:
            raise UserError(
                f"{RESULTS} is for all records, not for {' '.join(self.asked)}: add --out DIR."
            )
        home = RESULTS if self.root == RECORDS else self.root
        return Path(out).expanduser().absolute() if out else home

    def comparison(self, experiment: str, *more: str) -> Comparison:
        """Its rows, under `more` overrides, which give way to those of the command line."""
        key = experiment, more
        if key not in self._compared:
            words = [*self.given_way(more), *self.overrides]
            self._compared[key] = compare(read_experiment(experiment), words)
        return self._compared[key]

    def given_way(self, more: Sequence[str]) -> tuple[str, ...]:
        """Those of the words whose keys the command line leaves alone."""
        own = {word.partition("=")[0] for word in self.overrides}
        return tuple(word for word in more if word.partition("=")[0] not in own)

    def row(self, experiment: str, label: str, *more: str) -> TableRow:
        """Raises NoRow where the overrides have left no such row or made it the same as another,
        UserError where they have made several of it."""
        everything = self.comparison(experiment, *more).rows
        rows = [row for row in everything if row.specs[0].label == label]
        asked = " ".join(self.asked)
        if not rows:
            raise NoRow(f"{experiment} has no row '{label}' under {asked}.")
        if len(rows) > 1:
            raise UserError(
                f"{experiment} has {len(rows)} rows '{label}' under {asked}: list no values."
            )
        same = [row for row in everything if _runs(row) == _runs(rows[0])]
        if len(same) > 1:
            labels = " and ".join(f"'{row.label}'" for row in same)
            raise NoRow(f"{experiment}: {labels} are the same runs under {asked}.")
        return rows[0]


def _runs(row: TableRow) -> list[tuple]:
    return [(spec.id, spec.evaluation) for spec in row.specs]


def by_seed(row: TableRow, metric: str) -> dict[int, float]:
    """seed -> value, of the runs in which the metric is defined."""
    values = row.values(metric)
    return {spec.config.seed: values[spec.id] for spec in row.specs if spec.id in values}


@cache
def snapshots(folder: RunFolder) -> dict[str, np.ndarray]:
    """The arrays of assignments.npz (onenet/job/snapshots.py); empty if there is none. Raises
    UserError."""
    file = folder.assignments_file
    return arrays_of(file) if file.is_file() else {}


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    """Raises UserError if it cannot be read."""
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, BadZipFile, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}): move it away.") from error


def snapshot_lines(folder: RunFolder) -> list[dict]:
    """The lines of metrics.jsonl that tell of a snapshot, by step."""
    return [line for line in metric_lines(folder) if line.get("evaluation") == "first64"]


@cache
def metric_lines(folder: RunFolder) -> list[dict]:
    """All whole lines of metrics.jsonl; none if there is no such file."""
    if not folder.metrics_file.is_file():
        return []
    lines = []
    for text in folder.metrics_file.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # torn by a kill
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) else []
    return lines


def share_by_seed(row: TableRow, of) -> dict[int, float]:
    """seed -> the mean of `of`(arrays) [A], where it is not NaN, over the objects that have a
    sample in the run's last snapshot, 0..1."""
    shares = {}
    for spec in finished(row):
        if arrays := snapshots(spec.folder):
            values = of(arrays)[arrays["slot"][-1] >= 0].astype(float)
            if np.isfinite(values).any():
                shares[spec.config.seed] = float(np.nanmean(values))
    return shares


def finished(row: TableRow) -> list[RunSpec]:
    return [spec for spec in row.specs if spec.id in row.results]


def nearest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """[A] bool: is the sample at the grid point nearest to the object's centre?"""
    return arrays["nearest"][-1]


def inside(box: str):
    """Is the sample inside the object's `gt_xyxy` or `part_xyxy`? A function for share_by_seed; NaN
    where that is not known."""

    def test(arrays: dict[str, np.ndarray]) -> np.ndarray:
        place, edges = arrays["place_xy"][-1], arrays[box]
        within = ((place >= edges[:, :2]) & (place <= edges[:, 2:])).all(axis=1)
        return np.where(np.isfinite(edges).all(axis=1), within, np.nan)

    return test
