"""Figures 5 and 6 of the paper, and where inside the boxes positive samples lie: drawings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from analysis.core.charts import table1_by_data
from analysis.core.evidence import Evidence, finished, inside, nearest, share_by_seed, snapshots
from analysis.core.rows import TableRow
from onenet.job import drawing
from onenet.system.files import read_json

IMAGES = 4
BINS = 15
Made = tuple[str, str, Figure]  # title, caption


def figure5(runs: Evidence) -> Made | None:
    """Where the class shows in a part only, if there are such runs."""
    shown = _shown(runs, last=True)
    if not shown:
        return None
    title = "Figure 5: positive samples"
    caption = (
        f"The same validation images ({shown[0]}), seed {shown[1]}: each object's positive sample "
        "at the end of training, a dot, by the matching cost of the row."
    )
    return title, caption, _grid(shown[2], _positives, lambda listing: "")


def figure6(runs: Evidence) -> Made | None:
    shown = _shown(runs, last=False)
    if not shown:
        return None
    title = "Figure 6: predictions without NMS"
    caption = (
        f"The same validation images ({shown[0]}), seed {shown[1]}: all boxes from a score up that "
        "is chosen for each model, where nine tenths of the objects that it can find are found."
    )
    return (
        title,
        caption,
        _grid(shown[2], _boxes, lambda listing: f"score ≥ {listing['threshold']:.2f}"),
    )


def positives(runs: Evidence) -> Made | None:
    """All objects of the snapshots, in one unit box, over all seeds."""
    tables = {
        name: [row for row in rows if any(snapshots(spec.folder) for spec in finished(row))]
        for name, rows in table1_by_data(runs).items()
    }
    tables = {name: rows for name, rows in tables.items() if rows}
    if not tables:
        return None
    columns = max(map(len, tables.values()))
    figure = Figure(figsize=(2.3 * columns, 2.7 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, rows) in zip(axes, tables.items(), strict=True):
        for axis, row in zip(line, rows, strict=False):
            _heat_map(axis, row, name)
    title = "Where inside the box positive samples lie"
    caption = (
        "Place of the positive sample relative to its object's box (the square), all objects of "
        "the first 64 validation images at the end of training, all seeds. Below: samples at the "
        "grid point nearest to the centre, inside the box, inside the part that shows the class."
    )
    return title, caption, figure


SAMPLES: dict[str, Callable[[Evidence], Made | None]] = {
    "figure5": figure5,
    "figure6": figure6,
    "positives": positives,
}


def _shown(runs: Evidence, last: bool) -> tuple[str, int, list[tuple[TableRow, Path, dict]]] | None:
    """The data, the seed, and of each row the folder and listing of its pictures; of several data
    sets the `last` or the first of which there are pictures."""
    found = []
    for name, rows in table1_by_data(runs).items():
        pictures = {}
        for row in rows:
            for spec in finished(row):
                folder = spec.folder.path / "pictures"
                if listing := read_json(folder / "pictures.json"):
                    pictures.setdefault(spec.config.seed, []).append((row, folder, listing))
        if pictures:
            seed = max(pictures, key=lambda seed: (len(pictures[seed]), -seed))
            found.append((name, seed, pictures[seed]))
    return found[-1 if last else 0] if found else None


def _grid(rows: list[tuple[TableRow, Path, dict]], draw: Callable, note: Callable) -> Figure:
    """A line of images a row."""
    count = min(IMAGES, *(len(listing["images"]) for _, _, listing in rows))
    figure = Figure(figsize=(2.2 * count + 0.4, 2.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (row, folder, listing) in zip(axes, rows, strict=True):
        for axis, entry in zip(line, listing["images"], strict=False):
            with Image.open(folder / entry["file"]) as picture:
                axis.imshow(draw(picture, entry))
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel("\n".join(filter(None, [row.label, note(listing)])))
    return figure


def _positives(picture: Image.Image, entry: dict) -> Image.Image:
    return drawing.with_positives(picture, entry["ground_truth"], entry["positives"])


def _boxes(picture: Image.Image, entry: dict) -> Image.Image:
    return drawing.with_boxes(picture, entry["before_nms"])


def _heat_map(axis: Axes, row: TableRow, data: str) -> None:
    of_cells = [arrays for spec in finished(row) if (arrays := snapshots(spec.folder))]
    places = []
    for arrays in of_cells:
        corner, far = arrays["gt_xyxy"][:, :2], arrays["gt_xyxy"][:, 2:]
        places.append((arrays["place_xy"][-1] - corner) / (far - corner))
    x, y = np.concatenate(places).T
    edges = np.linspace(-0.25, 1.25, BINS + 1)
    counts, _, _ = np.histogram2d(y, x, bins=[edges, edges])
    axis.imshow(counts / len(x), extent=(-0.25, 1.25, 1.25, -0.25), cmap="magma_r")
    axis.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor="#2a6f97", linewidth=1.2))
    shares = {"nearest": nearest, "in box": inside("gt_xyxy")}
    if _has_parts(of_cells[0]):
        shares["in part"] = inside("part_xyxy")
    words = [
        f"{name} {100 * np.mean([*share_by_seed(row, of).values()]):.0f} %"
        for name, of in shares.items()
    ]
    axis.set_title(f"{row.label}\n{data}", fontsize=8)
    axis.text(0.5, 1.3, "\n".join(words), ha="center", va="top", fontsize=8)


def _has_parts(arrays: dict[str, np.ndarray]) -> bool:
    """Is there a part that shows the class, and not the whole object?"""
    parts = arrays["part_xyxy"]
    return bool(np.isfinite(parts).all() and (np.abs(parts - arrays["gt_xyxy"]) > 1).any())
