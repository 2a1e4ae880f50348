"""Curves that the paper does not show, for the rows of Table 1. Data only; figures.py draws it."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.core.frame import DAMAGE, assignments, metric_lines, warn
from analysis.core.table import Results
from onenet.sweeps.experiments import RunSpec

COLORS = {
    "predefined": "#c8553d",
    "predefined + class": "#e0a100",
    "predicted": "#7a3b9c",
    "predicted + class": "#2a6f97",
}
POINTS = 10  # of the conflict rate's curve, each a mean over training steps


def nms_threshold(spec: RunSpec) -> pd.Series:
    result = spec.folder.result(spec.evaluation)
    without, rows = result["metrics"]["AP"], result.get("curves", {}).get("nms", [])
    return pd.Series({iou: ap - without for iou, ap, _ in rows if None not in (ap, without)})


def duplicates(spec: RunSpec) -> pd.Series:
    rows = spec.folder.result(spec.evaluation).get("curves", {}).get("duplicates", [])
    return pd.Series({score: count / objects for score, count, objects in rows if objects})


def nms_training(spec: RunSpec) -> pd.Series:
    return _by_step(spec, "nms_gain")


def ap_training(spec: RunSpec) -> pd.Series:
    return _by_step(spec, "AP")


def _by_step(spec: RunSpec, metric: str) -> pd.Series:
    """step -> the metric, for the snapshots at which it is defined."""
    lines = [line for line in metric_lines(spec.folder) if line.get("evaluation") == "first64"]
    return pd.Series({line["step"]: line[metric] for line in lines if metric in line})


def changes(spec: RunSpec) -> pd.Series:
    """step -> % of objects whose positive sample differs from the previous snapshot's."""
    arrays = assignments(spec.folder)
    if not arrays:
        return pd.Series()
    fractions = (arrays["slot"][1:] != arrays["slot"][:-1]).mean(axis=1)
    return pd.Series(100 * fractions, index=arrays["steps"][1:])


def conflicts(spec: RunSpec) -> pd.Series:
    lines = [line for line in metric_lines(spec.folder) if "conflicts" in line]
    frame = pd.DataFrame(lines, columns=["step", "conflicts", "objects"])
    groups = frame.groupby(np.arange(len(frame)) * POINTS // max(1, len(frame)))
    sums = groups[["conflicts", "objects"]].sum()
    return pd.Series([*100 * sums.conflicts / sums.objects.clip(1)], index=groups.step.last())


STEP = "training step"
CURVES: list[tuple[Callable[[RunSpec], pd.Series], str, str, str, str]] = [
    (
        nms_threshold, "NMS gain against the NMS threshold",
        "AP with class-wise NMS at each IoU threshold, minus AP without NMS, on the same "
        "detections. A detector that needs no NMS gains nothing at any threshold.",
        "IoU threshold of NMS", "gain in AP",
    ),
    (
        nms_training, "NMS gain during training",
        "AP with NMS at IoU 0.5, minus AP without NMS, on the first 64 validation images, at eight "
        "snapshots.",
        STEP, "gain in AP",
    ),
    (
        ap_training, "AP during training",
        "Without NMS, on the first 64 validation images.", STEP, "AP",
    ),
    (
        duplicates, "Duplicates against the score threshold",
        "Duplicates per detected object, among the detections with at least this score: detections "
        "of an object that another detection already matches.",
        "score threshold", "duplicates per object",
    ),
    (
        changes, "Objects whose positive sample changes",
        "Between successive snapshots, an eighth of the training apart.", STEP, "% of objects",
    ),
    (
        conflicts, "Conflicts",
        "Training objects whose cheapest slot is also the cheapest slot of another object.",
        STEP, "% of objects",
    ),
]  # fmt: skip


def charts(results: Results, names: Sequence[str] | None = None) -> list[dict]:
    """Returns the named charts (None: all) that have data, each with the panels and rows that have
    data, as the report's script reads them."""
    drawable = []
    for points, title, caption, x, y in CURVES:
        if names is not None and points.__name__ not in names:
            continue
        panels = []
        for name, rows in rows_by_data(results).items():
            series = [_series(label, runs, points) for label, runs in rows.items()]
            if any(series):
                panels.append({"title": name, "series": [*filter(None, series)]})
        if panels:
            drawable.append({"name": points.__name__, "title": title, "caption": caption, "x": x,
                             "y": y, "panels": panels})  # fmt: skip
    return drawable


def rows_by_data(results: Results) -> dict[str, dict[str, pd.DataFrame]]:
    """The finished runs of each row of Table 1, by name of the data; if that is `rigid` shapes,
    `parts` are added."""
    tables = {results.data if results.config.data.name == "shapes" else "validation images": ""}
    if "rigid" in tables and results.setting("parts"):
        tables["parts"] = "parts"
    return {
        name: {label: runs[runs.done] for label, runs in
               results.table("table1", setting).runs.groupby("row", sort=False)}
        for name, setting in tables.items()
    }  # fmt: skip


def _series(label: str, runs: pd.DataFrame, points: Callable[[RunSpec], pd.Series]) -> dict | None:
    """Returns a row's mean over its seeds and their sample standard deviation (0 for a single
    seed), at the x that all seeds have."""
    curves = [curve for spec in runs.spec if len(curve := _points(spec, points))]
    frame = pd.concat(curves, axis=1, join="inner").sort_index() if curves else pd.DataFrame()
    if frame.empty:
        return None
    return {
        "label": label,
        "x": frame.index.tolist(),
        "mean": frame.mean(axis=1).tolist(),
        "std": frame.std(axis=1).fillna(0.0).tolist(),
        "n": len(curves),
    }


def _points(spec: RunSpec, points: Callable[[RunSpec], pd.Series]) -> pd.Series:
    try:
        return points(spec)
    except DAMAGE as error:
        warn(f"{points.__name__} of {spec.folder.path}: a file is damaged ({error!r})")
        return pd.Series()
