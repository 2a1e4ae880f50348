"""Figures: their texts, and the curves that the paper does not show, for the rows of Table 1."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.core.frame import DAMAGE, assignments, metric_lines, warn
from analysis.core.render import TEMPLATES
from analysis.core.table import Results
from onenet.sweeps.experiments import RunSpec

TEXTS = yaml.safe_load((TEMPLATES / "figures.yaml").read_text(encoding="utf-8"))  # by figure
COLORS = {
    "predefined": "#c8553d",
    "predefined + class": "#e0a100",
    "predicted": "#7a3b9c",
    "predicted + class": "#2a6f97",
}
POINTS = 10  # of the conflict rate's curve, each a mean over training steps


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with its texts. For a question of our own also what our runs answer."""

    name: str
    figure: Figure
    title: str
    caption: str
    question: str = ""
    sentence: str = ""  # the answer
    experiment: str = "table1"  # that has the runs
    table: pd.DataFrame | None = None  # of text


def drawing(
    name: str, figure: Figure, table: pd.DataFrame | None = None, **values: object
) -> Drawing:
    """Returns the figure with its texts from figures.yaml, and the values in them."""
    texts = {key: text.format_map(values) for key, text in TEXTS[name].items()}
    return Drawing(name, figure, table=table, **texts)


def row_of_axes(
    columns: int, width: float, height: float, **options
) -> tuple[Figure, Iterator[Axes]]:
    """Returns a new figure, and its axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options).flat


def nms_threshold(spec: RunSpec) -> pd.Series:
    result = spec.folder.result(spec.evaluation)
    without, rows = result["metrics"]["AP"], result.get("curves", {}).get("nms", [])
    return pd.Series({iou: ap - without for iou, ap, _ in rows if None not in (ap, without)})


def duplicates(spec: RunSpec) -> pd.Series:
    rows = spec.folder.result(spec.evaluation).get("curves", {}).get("duplicates", [])
    return pd.Series({score: count / objects for score, count, objects in rows if objects})


def by_step(spec: RunSpec, metric: str) -> pd.Series:
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


CURVES: dict[str, Callable[[RunSpec], pd.Series]] = {
    "nms_threshold": nms_threshold,
    "nms_training": partial(by_step, metric="nms_gain"),
    "ap_training": partial(by_step, metric="AP"),
    "duplicates": duplicates,
    "changes": changes,
    "conflicts": conflicts,
}


def chart(results: Results, name: str) -> dict | None:
    """Returns a curve with the panels and rows that have data, as the report's script reads it, or
    None if none has."""
    panels = []
    for data, rows in rows_by_data(results).items():
        series = [_series(label, runs, name) for label, runs in rows.items()]
        if any(series):
            panels.append({"title": data, "series": [*filter(None, series)]})
    return {"name": name, **TEXTS[name], "panels": panels} if panels else None


def charts(results: Results) -> list[dict]:
    return [*filter(None, (chart(results, name) for name in CURVES))]


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


def _series(label: str, runs: pd.DataFrame, name: str) -> dict | None:
    """Returns a row's mean over its seeds and their sample standard deviation (0 for a single
    seed), at the x that all seeds have."""
    curves = []
    for spec in runs.spec:
        try:
            curves.append(CURVES[name](spec))
        except DAMAGE as error:
            warn(f"{name} of {spec.folder.path}: a file is damaged ({error!r})")
    curves = [curve for curve in curves if len(curve)]
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
