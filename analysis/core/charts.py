"""What the paper does not show, as curves over the rows of Table 1: data, no drawings."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.core.evidence import Evidence, finished, metric_lines, snapshot_lines, snapshots
from analysis.core.predicates import KNOWS_PARTS, knows_parts
from analysis.core.rows import TableRow
from onenet.sweeps.experiments import RunSpec

SMOOTH = 10  # points of the conflict rate's curve

Points = dict[float, float]  # x -> y


@dataclass(frozen=True)
class Series:
    """A row's mean over its seeds, and their sample standard deviation (0 for one)."""

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
    """Panels with common axes."""

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
    return {score: count / found for score, count, found in rows if found}


def nms_training(spec: RunSpec) -> Points:
    return _by_step(spec, "nms_gain")


def ap_training(spec: RunSpec) -> Points:
    return _by_step(spec, "AP")


def _by_step(spec: RunSpec, metric: str) -> Points:
    """Of the snapshots at which it is defined."""
    lines = snapshot_lines(spec.folder)
    return {line["step"]: line[metric] for line in lines if metric in line}


def changes(spec: RunSpec) -> Points:
    """Against the snapshot before."""
    arrays = snapshots(spec.folder)
    if not arrays or not arrays["slot"].size:
        return {}
    moved = (arrays["slot"][1:] != arrays["slot"][:-1]).mean(axis=1)
    return dict(zip(arrays["steps"][1:].tolist(), (100 * moved).tolist(), strict=True))


def conflicts(spec: RunSpec) -> Points:
    lines = [line for line in metric_lines(spec.folder) if "conflicts" in line]
    parts = [part for part in np.array_split(np.arange(len(lines)), SMOOTH) if len(part)]
    points = {}
    for part in parts:
        objects = sum(lines[i]["objects"] for i in part)
        both = sum(lines[i]["conflicts"] for i in part)
        points[lines[part[-1]]["step"]] = 100 * both / max(1, objects)
    return points


STEP = "training step"
CURVES: list[tuple[Callable[[RunSpec], Points], str, str, str, str]] = [
    (
        nms_threshold, "NMS gain against the threshold of NMS",
        "AP with class-wise NMS at each IoU, less AP without, on the same detections. A detector "
        "that needs no NMS has nothing to gain at any threshold.",
        "IoU threshold of NMS", "gain in AP",
    ),
    (
        nms_training, "NMS gain against training time",
        "AP with NMS at IoU 0.5, less AP without, at the first 64 validation images, eight times a "
        "training.",
        STEP, "gain in AP",
    ),
    (
        ap_training, "AP against training time",
        "Without NMS, at the first 64 validation images.", STEP, "AP",
    ),
    (
        duplicates, "Redundant boxes against the score threshold",
        "Detections of an object that another detection has found, for each found object, among "
        "those of at least this score.",
        "score", "duplicates an object",
    ),
    (
        changes, "Objects whose positive sample changes",
        "From one look to the next, an eighth of the training later.", STEP, "% of objects",
    ),
    (
        conflicts, "Conflicts",
        "Objects in training whose cheapest slot is another object's, too.", STEP, "% of objects",
    ),
]  # fmt: skip


def charts(runs: Evidence) -> list[Chart]:
    """All of them; a panel, and a row in it, only where there are runs with what it shows."""
    tables = table1_by_data(runs)
    found = []
    for points, title, caption, x, y in CURVES:
        panels = []
        for name, rows in tables.items():
            series = [s for row in rows if (s := _series(row, points))]
            if series:
                panels.append(Panel(name, series))
        if panels:
            found.append(Chart(points.__name__, title, caption, x, y, panels))
    return found


def table1_by_data(runs: Evidence) -> dict[str, list[TableRow]]:
    """The rows of Table 1 on the data asked for; on the proxy's rigid shapes also on `parts`."""
    rows = runs.comparison("table1").rows
    data = rows[0].specs[0].config.data
    tables = {data.shapes.kind if data.name == "shapes" else "validation images": rows}
    if "rigid" in tables:
        parts = runs.comparison("table1", *KNOWS_PARTS)
        if knows_parts(parts.rows[0]):
            tables["parts"] = parts.rows
    return tables


def _series(row: TableRow, points: Callable[[RunSpec], Points]) -> Series | None:
    """Where all seeds have a point."""
    of_seeds = [found for spec in finished(row) if (found := points(spec))]
    values = defaultdict(list)
    for found in of_seeds:
        for x, y in found.items():
            values[x].append(y)
    common = sorted(x for x, ys in values.items() if len(ys) == len(of_seeds))
    if not common:
        return None
    n = len(of_seeds)
    std = [float(np.std(values[x], ddof=1)) if n > 1 else 0.0 for x in common]
    return Series(row.label, common, [float(np.mean(values[x])) for x in common], std, n)
