"""Questions that the paper does not ask: how much class it takes, what the score gap tells, what
NMS costs where objects overlap, and when two objects that share a slot do harm.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.core.plots import COLORS, TEXTS, Drawing, drawing, row_of_axes
from analysis.core.statistics import Interval, t_interval
from analysis.core.table import Results
from onenet.sweeps import summary
from onenet.sweeps.experiments import NoRow, expand
from onenet.sweeps.summary import cell

OF_SHAPES = {"crowded": ["crowded"], "conflicts": ["rigid", "crowded"]}  # kinds of shapes
SEEDS = "seed=0,1,2"
MAX_GAIN = 1.0  # AP; a detector that gains less from NMS does not need it
NMS = {"0.5": "AP_nms", "0.6": "AP_nms_06", "0.7": "AP_nms_07"}  # IoU threshold -> metric
PAPER_WEIGHT = 2.0  # class weight of cost and loss in the paper
COLUMNS = {
    **{name: column for name, column in summary.COLUMNS.items() if name != "AP(+NMS)"},
    **{f"AP(+NMS {iou})": (metric, ".1f") for iou, metric in NMS.items()},
    "score gap": ("score_gap", ".2f"),
}
PANELS = {  # of the heat map: metric -> title and format
    "nms_gain": ("gain in AP from NMS", "+.1f"),
    "dAP_dupe": ("AP lost to duplicates (TIDE)", ".1f"),
    "score_gap": ("score gap", "+.2f"),
    "AP": ("AP", ".1f"),
}


@cache
def finished(results: Results, experiment: str) -> pd.DataFrame:
    """Returns the finished runs of an experiment, as `Table.runs`, with the settings that these
    experiments vary. There are none if the command line chooses other data or other rows."""
    overrides = [f"+experiment={experiment}", *results.overrides]
    if not any(override.startswith("seed=") for override in overrides):
        overrides.append(SEEDS)
    try:
        runs = results.runs(expand(overrides))
    except NoRow:
        return finished(results, "table1")[:0]
    runs = runs[runs.done]
    if experiment in OF_SHAPES:
        runs = runs[runs.kind.isin(OF_SHAPES[experiment])]
    configs = [spec.config for spec in runs.spec]
    return runs.assign(
        cost_cls=[config.cost.weights.cls for config in configs],
        loss_cls=[config.loss.weights.cls for config in configs],
        center=[config.cost.weights.center for config in configs],
        way=["Hungarian" if config.assigner.name == "hungarian" else config.assigner.conflict
             for config in configs],
    )  # fmt: skip


def mean_of(runs: pd.DataFrame, metric: str) -> Interval | None:
    """Returns the mean over the seeds of a row, None if there are none."""
    values = runs[metric].dropna()
    return t_interval([*values]) if len(values) else None


# --- what the score gap tells ---


def score_gap(results: Results) -> Drawing | None:
    runs = finished(results, "table1")
    runs = runs[runs.score_gap.notna()]
    if runs.label.nunique() < 4:
        return None
    figure, axis = _gain_figure("score gap")
    for name in QUESTIONS:
        experiment = TEXTS[name]["experiment"]
        if len(own := finished(results, experiment)):
            axis.scatter(own.score_gap, own.nms_gain, s=14, alpha=0.7, label=experiment)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.legend(frameon=False, fontsize=8)
    table = _table(runs, ("score_gap", "nms_gain", "duplicates_per_object", "dAP_dupe"))
    gaps = {
        label: mean_of(own, "score_gap").sentence(".2f") for label, own in runs.groupby("label")
    }
    return drawing("score_gap", figure, table, **gaps)


def _gain_figure(x: str) -> tuple[Figure, Axes]:
    """Returns a new figure with its only axes: `x`, and the gain from NMS."""
    figure, (axis,) = row_of_axes(1, 5.2, 3.6)
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.set(xlabel=x, ylabel="gain in AP from NMS")
    return figure, axis


def _table(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean ± standard deviation over seeds, a line for each label."""
    groups = runs.groupby("label", sort=False)
    return pd.DataFrame({
        name: groups[metric].agg(lambda own, pattern=pattern: cell([*own], pattern))
        for name, (metric, pattern) in COLUMNS.items() if metric in metrics
    }).rename_axis("row")  # fmt: skip


# --- how much class, and where ---


def decoupling(results: Results) -> Drawing | None:
    runs = finished(results, "decoupling")
    gains = {key: mean_of(own, "nms_gain") for key, own in runs.groupby(["cost_cls", "loss_cls"])}
    seeds = {weight: gains[weight, PAPER_WEIGHT] for weight in runs.cost_cls.unique()
             if (weight, PAPER_WEIGHT) in gains and gains[weight, PAPER_WEIGHT].n > 1}  # fmt: skip
    if 0 not in seeds or runs.cost_cls.nunique() < 3:  # Table 1 has two
        return None
    without = [f"{gain.sentence()} AP with a class weight of the loss of {loss:g}"
               for (cost, loss), gain in gains.items() if cost == 0 and gain.n > 1]  # fmt: skip
    enough = [f"; a weight of {weight:g} in the cost leaves {gain.sentence()}"
              for weight, gain in sorted(seeds.items()) if gain.high < MAX_GAIN]  # fmt: skip
    figure, axes = row_of_axes(4, 11, 3.6)
    for axis, (metric, (title, pattern)) in zip(axes, PANELS.items(), strict=True):
        _heat_map(axis, runs, metric, pattern)
        axis.set_title(title)
    figure.axes[0].set_ylabel("class weight of the matching cost")
    table = _table(runs, (*PANELS, "duplicates_per_object"))
    texts = {"without": ", ".join(without), "enough": enough[0] if enough else ""}
    return drawing("decoupling", figure, table, **texts)


def _heat_map(axis: Axes, runs: pd.DataFrame, metric: str, pattern: str) -> None:
    grid = runs.pivot_table(metric, "cost_cls", "loss_cls", dropna=False)
    axis.imshow(grid, cmap="viridis", aspect="auto", origin="lower", alpha=0.6)
    for (y, x), value in np.ndenumerate(grid.to_numpy()):
        if np.isfinite(value):
            axis.text(x, y, format(value, pattern), ha="center", va="center")
    axis.set_xticks(range(len(grid.columns)), [f"{weight:g}" for weight in grid.columns])
    axis.set_yticks(range(len(grid.index)), [f"{weight:g}" for weight in grid.index])
    axis.set_xlabel("class weight of the loss")


# --- what NMS costs where objects overlap ---


def crowded(results: Results) -> Drawing | None:
    runs = finished(results, "crowded")
    runs = runs.assign(**{iou: runs[metric] - runs.AP for iou, metric in NMS.items()})
    own = runs[runs.label == "predicted + class"]
    if own.empty:
        return None
    changes = [f"at {iou} by {change.sentence('+.1f')}"
               for iou in NMS if (change := mean_of(own, iou))]  # fmt: skip
    figure, axis = _gain_figure("IoU threshold of NMS")
    for number, (label, own) in enumerate(runs.groupby("label", sort=False)):
        x = np.arange(len(NMS)) + 0.18 * (number - 1.5)
        mean, std = own[[*NMS]].mean(), own[[*NMS]].std().fillna(0)
        axis.bar(x, mean, width=0.18, label=label, yerr=std, color=COLORS[label])
    axis.set_xticks(range(len(NMS)), NMS)
    axis.legend(frameon=False, fontsize=8)
    table = _table(runs, ("AP", *NMS.values(), "duplicates_per_object", "score_gap"))
    return drawing("crowded", figure, table, changes=", ".join(changes))


# --- two objects, one slot ---


def shared_slots(results: Results) -> Drawing | None:
    runs = finished(results, "conflicts")
    kinds, changes = [*runs.kind.unique()], []
    for (center, kind), own in runs.groupby(["center", "kind"], sort=False):
        by_way = own.pivot_table("AP", "seed", "way").reindex(columns=["keep", "Hungarian"])
        change = (by_way["Hungarian"] - by_way["keep"]).dropna()
        if len(change) > 1:
            interval = t_interval([*change]).sentence("+.1f")
            changes.append(f"{interval} on {kind} shapes with a centre weight of {center:g}")
    if not changes:
        return None
    figure, axes = row_of_axes(len(kinds), 0.8 + 3.4 * len(kinds), 3.2)
    for axis, kind in zip(axes, kinds, strict=True):
        for way, own in runs[runs.kind == kind].groupby("way", sort=False):
            means = own.groupby("center").AP.agg(["mean", "std"]).fillna(0)
            axis.errorbar(means.index, means["mean"], means["std"], marker=".", label=way)
        axis.set_xscale("log")
        axis.set_xticks([*runs.center.unique()], [f"{value:g}" for value in runs.center.unique()])
        axis.minorticks_off()
        axis.set(title=kind, xlabel="weight of the centre in the cost")
    figure.axes[0].set_ylabel("AP")
    figure.axes[-1].legend(frameon=False, fontsize=8)
    table = runs.groupby(["kind", "center", "way"], sort=False).AP.agg(lambda own: cell([*own]))
    table = table.unstack("way", fill_value="-")
    rows = [f"{kind}, centre {weight:g}" for kind, weight in table.index]
    table.index = pd.Index(rows, name="row")
    return drawing("shared_slots", figure, table, changes=", by ".join(changes))


QUESTIONS = {each.__name__: each for each in (score_gap, decoupling, crowded, shared_slots)}
