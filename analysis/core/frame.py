"""All runs as one table, with their choices and metrics as columns.

    from analysis import load
    runs = load("runs")                      # a row per run: id, folder, state, choices, metrics
    load("runs", evaluations="all")          # a row per run and evaluation
    load.curves("runs")                      # a row per run and line of metrics.jsonl
    load.samples("runs")                     # a row per run, snapshot and object

Each reads a runs root, the committed records ("analysis/results/records"), or a list of both. A
file that is damaged is named on stderr and left out.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from onenet.config.options import TIDE
from onenet.config.schema import CostWeightsConfig
from onenet.errors import UserError
from onenet.runs.edits import edit
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flatten
from onenet.runs.metrics import parse_line
from onenet.runs.result import read_result
from onenet.system.files import REPOSITORY

RESULTS = REPOSITORY / "analysis" / "results"
RECORDS = RESULTS / "records"  # of our own runs, committed
OWN_RUNS = REPOSITORY / "runs"
Roots = str | Path | Sequence[str | Path]

CHOICES = {  # column -> key in a run's configuration
    **{name: f"{name}.name" for name in ("cost", "assigner", "backbone", "neck", "data")},
    **{name: name for name in ("location", "heads", "infer_heads", "detector", "preset")},
    **{name: name for name in ("seed", "schedule", "lr", "steps", "batch")},
    "kind": "data.shapes.kind",
    "short": "size.short",
    "ratio": "size.ratio",
}
COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRICS = (
    *COCO,
    *("AP_nms", "nms_gain", "AP50_nms", "AP50_nms_gain", "AP75_nms", "APs_nms", "APm_nms"),
    *("APl_nms", "AP_nms_06", "AP_nms_07", "AR100", "AR100_nms", "duplicates_per_object"),
    *(f"dAP_{error}{nms}" for nms in ("", "_nms") for error in TIDE),
    *("score_gap", "conflict_rate", "params", "train_hours"),
)
ORIGIN = ("recipe", "evaluator", "evaluator_version", "device", "commit")
COLUMNS = ("id", "folder", "state", "evaluation", *CHOICES, *METRICS, *ORIGIN)
TERMS = [field.name for field in fields(CostWeightsConfig)]  # in assignments.npz
DAMAGE = (OSError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
          BadZipFile, zlib.error, UserError)  # fmt: skip


def load(root: Roots = "runs", evaluations: str = "default") -> pd.DataFrame:
    """Returns a row for each run, with the metrics of its default evaluation (NaN if it is not
    finished), or with `evaluations="all"` a row for each run and evaluation. Raises UserError."""
    if evaluations not in ("default", "all"):
        raise UserError(f"evaluations={evaluations}: choose default or all.")
    rows = [row for run in run_folders(root) for row in _rows(run, evaluations)]
    frame = pd.DataFrame(rows, columns=None if rows else [*COLUMNS])
    others = frame.columns.difference(COLUMNS, sort=False)
    return frame.reindex(columns=[*COLUMNS, *others])


def curves(root: Roots = "runs") -> pd.DataFrame:
    """Returns a row for each run and line of metrics.jsonl: the losses of a step, or the metrics of
    an evaluation (`evaluation` is "first64" for a snapshot). Raises UserError."""
    lines = [
        {"id": run.id, "folder": str(run.path), **line}
        for run in run_folders(root)
        for line in metric_lines(run)
    ]
    frame = pd.DataFrame(lines, columns=None if lines else ["id", "folder", "step", "evaluation"])
    return frame.drop(columns="seconds", errors="ignore")  # of the parts of a step


def samples(root: Roots = "runs") -> pd.DataFrame:
    """Returns a row for each run, snapshot and object of the first validation images: the slot and
    location of its positive sample (`slot` is -1 if it has none), whether that is the grid point
    `nearest` to the object's centre, `in_box` and `in_part` (NaN if the part is unknown), and its
    cost terms without their weights. Raises UserError."""
    names = ["id", "folder", "step", "image_id", "label", "slot", "x", "y", "nearest", "in_box"]
    runs = [run for run in run_folders(root) if run.assignments_file.is_file()]
    frames = [samples_of(run).assign(id=run.id, folder=str(run.path)) for run in runs]
    frame = pd.concat(frames) if frames else pd.DataFrame()
    return frame.reindex(columns=[*names, "in_part", *TERMS]).reset_index(drop=True)


load.curves, load.samples = curves, samples


def default_root() -> Path:
    """Returns run.py's `runs/`, or the committed records if the user has no runs yet."""
    has_runs = any(OWN_RUNS.glob("*/status.json"))
    return RECORDS if RECORDS.exists() and not has_runs else OWN_RUNS


def run_folders(root: Roots) -> list[RunFolder]:
    """Returns the runs of one or several roots. A relative path is looked up in the working
    directory, then in the repository. Raises UserError if there is no such folder."""
    if not isinstance(root, str | Path):
        return [run for each in root for run in run_folders(each)]
    path = Path(root).expanduser()
    path = next((p for p in (path.absolute(), REPOSITORY / path) if p.is_dir()), path)
    if not path.is_dir() and root == "runs":
        path = default_root()
        print(f"There are no runs in runs/ yet: these are the records in {path}", file=sys.stderr)
    if not path.is_dir():
        raise UserError(f"{root} is not a folder of runs.")
    marks = ("status.json", "result.json", "config.yaml", "evaluations")
    folders = [RunFolder(each) for each in sorted(path.glob("[!.]*/"))]
    return [
        run
        for run in folders
        if any(os.path.exists(run.path / mark) for mark in marks)
        or not os.access(run.path, os.X_OK)  # someone else's
    ]


def warn(text: object) -> None:
    print(f"left out: {' '.join(str(text).split())}", file=sys.stderr)


def problem(run: RunFolder) -> str | None:
    """Returns why a run cannot be trusted, in a line that names the file; None if it can."""
    for file in (run.path / "status.json", run.result_file):
        try:
            values = json.loads(file.read_bytes())
            has_id = isinstance(values, dict) and isinstance(values.get("id", ""), str)
            if not has_id or (file == run.result_file and not read_result(file)):
                return f"{file} is damaged: it is not what a run writes"
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            return f"{file} cannot be read: {error}"
    try:
        return edit(run)
    except DAMAGE as error:
        return f"{run.result_file} is damaged: {error!r}"


def is_sound(run: RunFolder) -> bool:
    """Whether the run has no problem; warns if it has one."""
    if reason := problem(run):
        warn(reason)
    return not reason


def _rows(run: RunFolder, evaluations: str) -> Iterator[dict]:
    if not is_sound(run):
        return
    every = sorted(run.path.glob("evaluations/*/result.json"))
    results, state = 0, run.state()
    for file in every if evaluations == "all" else [run.result_file]:
        try:
            values = json.loads(file.read_bytes())
            row = _row(read_result(file) and values, run)
            evaluation = row["evaluation"] if file == run.result_file else file.parent.name
            yield row | {"state": state, "evaluation": evaluation}
            results += 1
        except FileNotFoundError:
            pass
        except DAMAGE as error:
            warn(f"{file} is damaged: {error!r}")
    if not results:
        try:
            values = run.config() if run.config_file.is_file() else {}
        except UserError as error:
            warn(str(error).splitlines()[0])
            return
        yield {"id": run.id, "folder": str(run.path), "state": state, **_choices(values)}


def _row(result: dict, run: RunFolder) -> dict:
    """Returns the columns of a result. Raises one of DAMAGE."""
    metrics = {name: np.nan if v is None else float(v) for name, v in result["metrics"].items()}
    metrics["train_hours"] = metrics.get("train_seconds", np.nan) / 3600
    evaluation = result.get("evaluation")
    backend = result["config"]["eval"].get("backend", "pycocotools")  # old results name none
    package = {"faster": "faster-coco-eval"}.get(backend, backend)
    env = result["env"]
    choices = _choices(result["config"])
    return {
        "id": result["id"],
        "folder": str(run.path),
        "evaluation": EvalSpec(**evaluation).id if evaluation else None,
        **choices,
        "infer_heads": evaluation["infer_heads"] if evaluation else choices["infer_heads"],
        **metrics,
        "recipe": int(result["recipe"]),
        "evaluator": package,
        "evaluator_version": env.get(package, "of unknown version"),
        "device": env.get("device"),
        "commit": env.get("commit"),
    }


def _choices(config: dict) -> dict:
    values = flatten(config)
    choices = {column: values.get(key) for column, key in CHOICES.items()}
    return choices | ({} if choices["data"] == "shapes" else {"kind": None})


def metric_lines(run: RunFolder) -> list[dict]:
    """Returns the lines of metrics.jsonl; none if there is no such file. Warns of damaged ones,
    except for the last, which a killed run leaves incomplete."""
    return _metric_lines(run.metrics_file, _time(run.metrics_file))


def assignments(run: RunFolder) -> dict[str, np.ndarray]:
    """Returns the arrays of assignments.npz (onenet/job/snapshots.py); empty, with a warning, if it
    is damaged, and without one if it does not exist."""
    return _assignments(run.assignments_file, _time(run.assignments_file))


def _time(file: Path) -> int:
    """When the file was written, 0 if there is none: running runs write more."""
    return file.stat().st_mtime_ns if file.is_file() else 0


@cache
def _metric_lines(file: Path, time: int) -> list[dict]:
    lines = [parse_line(text) for text in file.read_bytes().splitlines()] if time else []
    for number, line in enumerate(lines[:-1], 1):
        if not line:
            warn(f"line {number} of {file} is damaged")
    return [line for line in lines if line]


@cache
def _assignments(file: Path, time: int) -> dict[str, np.ndarray]:
    if not time:
        return {}
    try:
        arrays = read_arrays(file)
        snapshots, objects = arrays["slot"].shape
        shapes = {"steps": (snapshots,), "nearest": (snapshots, objects),
                  "place_xy": (snapshots, objects, 2), "gt_xyxy": (objects, 4),
                  "part_xyxy": (objects, 4)}  # fmt: skip
        if any(arrays[name].shape != shape for name, shape in shapes.items()):
            raise UserError(f"{file} is damaged: its arrays do not fit.")
        return arrays if snapshots and objects else {}
    except UserError as error:
        warn(error)
    except (KeyError, ValueError) as error:
        warn(f"{file} is damaged: {error!r}")
    return {}


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file. Raises UserError if it is damaged."""
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except DAMAGE as error:
        raise UserError(f"{file} is damaged ({error}): move it away.") from error


def samples_of(run: RunFolder) -> pd.DataFrame:
    """Returns one run's rows of `samples`; none if it took no snapshots."""
    arrays = assignments(run)
    if not arrays:
        return pd.DataFrame()
    snapshots, objects = arrays["slot"].shape
    columns = {
        "step": np.repeat(arrays["steps"], objects),
        **{name: np.tile(arrays[name], snapshots) for name in ("image_id", "label")
           if name in arrays},
        **{name: arrays[name].ravel() for name in ("slot", "nearest")},
        **dict(zip("xy", arrays["place_xy"].reshape(-1, 2).T, strict=True)),
        "in_box": _inside(arrays["place_xy"], arrays["gt_xyxy"]).ravel(),
        "in_part": _inside(arrays["place_xy"], arrays["part_xyxy"]).ravel(),
    }  # fmt: skip
    if "terms" in arrays:
        columns |= dict(zip(TERMS, arrays["terms"].reshape(-1, len(TERMS)).T, strict=True))
    return pd.DataFrame(columns)


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether the points [..., A, 2] are inside the boxes [A, 4]: 1 or 0, NaN for unknown boxes."""
    within = ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(axis=-1)
    return np.where(np.isfinite(boxes).all(axis=1), within, np.nan)
