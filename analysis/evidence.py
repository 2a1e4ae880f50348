"""Where tables, claims and figures get their runs from. No torch.

The runs root is run.py's (`runs/`); in a fresh clone, where there is none, the committed records.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from analysis.rows import RECORDS, Comparison, Row, compare
from onenet.config import REPOSITORY
from onenet.errors import UserError
from onenet.expansion import Cell, NoRow, read_experiment
from onenet.runs import RunFolder, identity, named

RESULTS = REPOSITORY / "analysis" / "results"
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
    return parser


def default_root() -> Path:
    """run.py's `runs/`, or the committed records where the person has none yet."""
    root = REPOSITORY / "runs"
    return RECORDS if RECORDS.exists() and not root.exists() else root


def named_runs(root: Path, words: Sequence[str]) -> list[RunFolder]:
    """The runs that the words name: ids, names of folders in the root, or folders. Raises
    UserError."""
    folders = [RunFolder(path) for path in sorted(root.glob("[!.]*")) if path.is_dir()]
    known = {name for folder in folders for name in (identity(folder), folder.path.name)}
    found = []
    for word in words:
        path = Path(word).expanduser().absolute()
        if word not in known and path.is_dir():
            found.append(RunFolder(path))
        elif word not in known and "=" in word:
            raise UserError(f"There is no run {word} in {root}. Did you mean: -- {word}?")
        else:
            found += named(root, folders, [word])
    return list(dict.fromkeys(found))


def say_where(overrides: list[str]) -> None:
    """Tells whose runs were shown where the person has none yet."""
    if f"runs_root={RECORDS}" in overrides and default_root() == RECORDS:
        print(f"There is no runs/ here: shown are the records in {RECORDS}", file=sys.stderr)


class Evidence:
    """The finished runs of the experiments, under run.py's `overrides`."""

    def __init__(self, overrides: list[str]):
        self.overrides = tuple(overrides)
        self.proxy = "preset=paper" not in overrides
        self.asked = [word for word in overrides if not word.startswith("runs_root=")]
        self._compared: dict[tuple, Comparison] = {}

    @property
    def root(self) -> Path:
        return Path(self.comparison("table1").cells[0].config.runs_root)

    @property
    def home(self) -> Path:
        """Where figures and report go: the root; for the committed records the folder above."""
        return RESULTS if self.root == RECORDS else self.root

    def comparison(self, experiment: str, *more: str) -> Comparison:
        """Its rows, under `more` overrides, which give way to those of the command line."""
        key = experiment, more
        if key not in self._compared:
            given = {word.partition("=")[0] for word in self.overrides}
            words = [w for w in more if w.partition("=")[0] not in given]
            self._compared[key] = compare(read_experiment(experiment), [*words, *self.overrides])
        return self._compared[key]

    def row(self, experiment: str, label: str, *more: str) -> Row:
        """Raises NoRow where the overrides have left no such row or made it the same as another,
        UserError where they have made several of it."""
        everything = self.comparison(experiment, *more).rows
        rows = [row for row in everything if row.cells[0].label == label]
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


def _runs(row: Row) -> list[tuple]:
    return [(cell.id, cell.evaluation) for cell in row.cells]


def by_seed(row: Row, metric: str) -> dict[int, float]:
    """seed -> value, of the runs in which the metric is defined."""
    values = row.values(metric)
    return {cell.config.seed: values[cell.id] for cell in row.cells if cell.id in values}


@cache
def looks(folder: RunFolder) -> dict[str, np.ndarray]:
    """The arrays of assignments.npz (onenet/assignments.py); empty if there is none."""
    if not folder.assignments_file.is_file():
        return {}
    with np.load(folder.assignments_file) as arrays:
        return dict(arrays)


def look_lines(folder: RunFolder) -> list[dict]:
    """The lines of metrics.jsonl that tell of a look at the first images, by step."""
    return [line for line in metric_lines(folder) if line.get("evaluation") == "first64"]


@cache
def metric_lines(folder: RunFolder) -> list[dict]:
    """All whole lines of metrics.jsonl; none if there is no such file."""
    if not folder.metrics_file.is_file():
        return []
    lines = []
    for line in folder.metrics_file.read_text().splitlines():
        with contextlib.suppress(ValueError):  # torn by a kill
            lines.append(json.loads(line))
    return lines


def share_by_seed(row: Row, of) -> dict[int, float]:
    """seed -> the mean of `of`(arrays) [A], where it is not NaN, over the objects that have a
    sample in the run's last look, 0..1."""
    shares = {}
    for cell in finished(row):
        if arrays := looks(cell.folder):
            values = of(arrays)[arrays["slot"][-1] >= 0].astype(float)
            if np.isfinite(values).any():
                shares[cell.config.seed] = float(np.nanmean(values))
    return shares


def finished(row: Row) -> list[Cell]:
    return [cell for cell in row.cells if cell.id in row.results]


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
