"""Curves that the paper does not show, for the rows of Table 1. Data only; figures.py draws it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.core.evidence import Evidence, finished_specs, metric_lines, snapshot_lines, snapshots
from analysis.core.predicates import PARTS, has_parts
from analysis.core.rows import TableRow
from onenet.sweeps.experiments import RunSpec

POINTS = 10  # of the conflict rate's curve, each a mean over training steps

Points = dict[float, float]  # x -> y


@dataclass(frozen=True)
class Series:
    """A row's mean over its seeds and their sample standard deviation (0 for a single seed)."""

    label: str
    x: list[float]
    mean: list[float]
    std: list[float]
    n: int


@dataclass(frozen=True)
class Panel:
    title: str
    series: list[Series]


@dataclass(frozen=True)
class Chart:
    """Panels that share their axes."""

    name: str
    title: str
    caption: str
    x: str
    y: str
    panels: list[Panel]


def nms_threshold(spec: RunSpec) -> Points:
    result = spec.folder.result(spec.evaluation)
    without, rows = result["metrics"]["AP"], result.get("curves", {}).get("nms", [])
    return {iou: ap - without for iou, ap, _ in rows if None not in (ap, without)}


def duplicates(spec: RunSpec) -> Points:
    rows = spec.folder.result(spec.evaluation).get("curves", {}).get("duplicates", [])
    return {score: duplicates / objects for score, duplicates, objects in rows if objects}


def nms_training(spec: RunSpec) -> Points:
    return _by_step(spec, "nms_gain")


def ap_training(spec: RunSpec) -> Points:
    return _by_step(spec, "AP")


def _by_step(spec: RunSpec, metric: str) -> Points:
    """step -> the metric, for the snapshots at which it is defined."""
    lines = snapshot_lines(spec.folder)
    return {line["step"]: line[metric] for line in lines if metric in line}


def changes(spec: RunSpec) -> Points:
    """step -> % of objects whose positive sample differs from the previous snapshot's."""
    arrays = snapshots(spec.folder)
    if not arrays or not arrays["slot"].size:
        return {}
    fractions = (arrays["slot"][1:] != arrays["slot"][:-1]).mean(axis=1)
    return dict(zip(arrays["steps"][1:].tolist(), (100 * fractions).tolist(), strict=True))


def conflicts(spec: RunSpec) -> Points:
    lines = [line for line in metric_lines(spec.folder) if "conflicts" in line]
    groups = [group for group in np.array_split(np.arange(len(lines)), POINTS) if len(group)]
    points = {}
    for group in groups:
        objects = sum(lines[i]["objects"] for i in group)
        count = sum(lines[i]["conflicts"] for i in group)
        points[lines[group[-1]]["step"]] = 100 * count / max(1, objects)
    return points


STEP = "training step"
CURVES: list[tuple[Callable[[RunSpec], Points], str, str, str, str]] = [
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


def charts(runs: Evidence) -> list[Chart]:
    """Returns all charts that have data, each with the panels and rows that have data."""
    tables = table1_by_data(runs)
    drawable = []
    for points, title, caption, x, y in CURVES:
        panels = []
        for name, rows in tables.items():
            series = [s for row in rows if (s := _series(row, points))]
            if series:
                panels.append(Panel(name, series))
        if panels:
            drawable.append(Chart(points.__name__, title, caption, x, y, panels))
    return drawable


def table1_by_data(runs: Evidence) -> dict[str, list[TableRow]]:
    """The rows of Table 1 by name of the data; if that is `rigid` shapes, `parts` are added."""
    rows = runs.comparison("table1").rows
    data = rows[0].specs[0].config.data
    tables = {data.shapes.kind if data.name == "shapes" else "validation images": rows}
    if "rigid" in tables:
        parts = runs.comparison("table1", *PARTS)
        if has_parts(parts.rows[0]):
            tables["parts"] = parts.rows
    return tables


def _series(row: TableRow, points: Callable[[RunSpec], Points]) -> Series | None:
    """Returns the mean curve, at the x that all seeds have."""
    curves = [curve for spec in finished_specs(row) if (curve := points(spec))]
    values = defaultdict(list)
    for curve in curves:
        for x, y in curve.items():
            values[x].append(y)
    common = sorted(x for x, ys in values.items() if len(ys) == len(curves))
    if not common:
        return None
    n = len(curves)
    std = [float(np.std(values[x], ddof=1)) if n > 1 else 0.0 for x in common]
    return Series(row.label, common, [float(np.mean(values[x])) for x in common], std, n)
