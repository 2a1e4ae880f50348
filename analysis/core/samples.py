"""Draws Figures 5 and 6 of the paper, and heat maps of positive samples inside their boxes."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from analysis.core.frame import assignments
from analysis.core.plots import Drawing, drawing, rows_by_data
from analysis.core.statistics import positives
from analysis.core.table import Results
from onenet.evaluation.drawing import with_boxes, with_positives
from onenet.runs.folder import RunFolder
from onenet.system.files import read_json

IMAGES = 4
BINS = 15
THRESHOLD = "\nscore ≥ {threshold:.2f}"


def heat_maps(results: Results) -> Drawing | None:
    """Maps all objects of the last snapshots, over all seeds, to one unit box."""
    tables: dict[str, dict[str, list[RunFolder]]] = {}
    for data, rows in rows_by_data(results).items():
        for label, runs in rows.items():
            if folders := [spec.folder for spec in runs.spec if assignments(spec.folder)]:
                tables.setdefault(data, {})[label] = folders
    if not tables:
        return None
    columns = max(map(len, tables.values()))
    figure = Figure(figsize=(2.3 * columns, 2.7 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, rows) in zip(axes, tables.items(), strict=True):
        for axis, (label, runs) in zip(line, rows.items(), strict=False):
            _heat_map(axis, runs, f"{label}\n{name}", parts=name == "parts")
    return drawing("positives", figure)


def _pictures(
    results: Results, name: str, which: int, draw: Callable, keys: Sequence[str], note: str = ""
) -> Drawing | None:
    """Draws one line of images per row that has pictures. Of several data sets with pictures it
    takes the one at the index `which`, and of several seeds the one with most rows.

    `keys`: what to draw on an image, from its entry in the listing of pictures. `note`: what is
    written below a row's label, from that listing.
    """
    candidates = []
    for data, rows in rows_by_data(results).items():
        seeds: dict[int, list[tuple[str, Path, dict]]] = {}
        for label, runs in rows.items():
            for spec in runs.spec:
                folder = spec.folder.path / "pictures"
                if listing := read_json(folder / "pictures.json"):
                    seeds.setdefault(spec.config.seed, []).append((label, folder, listing))
        if seeds:
            seed = max(seeds, key=lambda seed: (len(seeds[seed]), -seed))
            candidates.append((data, seed, seeds[seed]))
    if not candidates:
        return None
    data, seed, lines = candidates[which]
    count = min(IMAGES, *(len(listing["images"]) for _, _, listing in lines))
    figure = Figure(figsize=(2.2 * count + 0.4, 2.3 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), count, squeeze=False)
    for line, (label, folder, listing) in zip(axes, lines, strict=True):
        for axis, entry in zip(line, listing["images"], strict=False):
            with Image.open(folder / entry["file"]) as picture:
                axis.imshow(draw(picture, *(entry[key] for key in keys)))
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label + note.format_map(listing))
    return drawing(name, figure, data=data, seed=seed)


def _heat_map(axis: Axes, runs: list[RunFolder], title: str, parts: bool) -> None:
    locations = []
    for arrays in map(assignments, runs):
        low, high = arrays["gt_xyxy"][:, :2], arrays["gt_xyxy"][:, 2:]
        locations.append((arrays["place_xy"][-1] - low) / (high - low))
    x, y = np.concatenate(locations).T
    edges = np.linspace(-0.25, 1.25, BINS + 1)
    counts, _, _ = np.histogram2d(y, x, bins=[edges, edges])
    axis.imshow(counts / len(x), extent=(-0.25, 1.25, 1.25, -0.25), cmap="magma_r")
    axis.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor="#2a6f97", linewidth=1.2))
    fractions = pd.DataFrame([positives(run) for run in runs]).mean()
    names = {"nearest": "nearest", "in box": "in_box"} | ({"in part": "in_part"} if parts else {})
    text = "\n".join(f"{name} {fractions[column]:.0f} %" for name, column in names.items())
    axis.set_title(title, fontsize=8)
    axis.text(0.5, 1.3, text, ha="center", va="top", fontsize=8)


SAMPLES: dict[str, Callable[[Results], Drawing | None]] = {
    "figure5": partial(  # prefers runs on images that show the class in a part of the object
        _pictures, name="figure5", which=-1, draw=with_positives, keys=("ground_truth", "positives")
    ),
    "figure6": partial(
        _pictures, name="figure6", which=0, draw=with_boxes, keys=("before_nms",), note=THRESHOLD
    ),
    "positives": heat_maps,
}
