"""Draws Figures 5 and 6 of the paper, further curves, and our own questions, as SVG and PNG.

    python analysis/figures.py                       all, into figures/ in the runs root
    python analysis/figures.py --only figure5 changes --out DIR
    python analysis/figures.py -- preset=paper data.root=DIR

Arguments after `--` are overrides for run.py. A figure shows the finished runs. If there are none,
it is skipped and the command that runs them is printed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis.core.beyond import QUESTIONS
from analysis.core.cli import command_line, execute, overrides_of, print_source
from analysis.core.plots import COLORS, CURVES, TEXTS, Drawing, chart, row_of_axes
from analysis.core.samples import SAMPLES
from analysis.core.table import Results
from onenet.system.plural import plural
from onenet.system.terminal import run_command

DPI = 120
STYLE = {"svg.hashsalt": "onenet", "svg.fonttype": "none", "font.size": 9}


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", metavar="DIR", help="default: figures/ in the runs root")
    return execute(write_figures, parser.parse_args(arguments))


def write_figures(args: argparse.Namespace) -> None:
    overrides = overrides_of(args)
    results = Results(overrides)
    folder = results.folder(args.out) / ("" if args.out else "figures")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for drawing in draw(results, args.only or NAMES):
        save(drawing.figure, folder / drawing.name)
        names.append(drawing.name)
    for name in (each for each in args.only or NAMES if each not in names):
        experiment = TEXTS[name].get("experiment", "table1")
        way_out = f"To run them: {results.command(experiment)}"
        if experiment == "table1" and not results.table("table1").missing:
            way_out = "The runs of Table 1 have only their results."
        print(f"{name}: no run has the data for it. {way_out}")
    print_source(overrides)
    print(f"Wrote {plural(len(names), 'figure')}, as SVG and PNG, to {folder}")


def draw(results: Results, names: Iterable[str]) -> Iterator[Drawing]:
    """Yields the named figures that have runs."""
    with matplotlib.rc_context(STYLE):
        for name in names:
            if drawing := DRAW[name](results):
                yield drawing


def plot(results: Results, name: str) -> Drawing | None:
    """Plots a curve's panels side by side; bands are one standard deviation over seeds."""
    curve = chart(results, name)
    if curve is None:
        return None
    panels = curve["panels"]
    figure, axes = row_of_axes(len(panels), 0.8 + 3.4 * len(panels), 3, sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        for series in panel["series"]:
            color, x = COLORS.get(series["label"]), series["x"]
            mean, std = np.array(series["mean"]), np.array(series["std"])
            axis.plot(x, mean, color=color, label=series["label"], marker=".")
            axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
        seeds = sorted({series["n"] for series in panel["series"]})
        title = f"{panel['title']} (n = {', '.join(map(str, seeds))})"
        axis.set(title=title, xlabel=curve["x"])
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(curve["y"])
    figure.axes[-1].legend(frameon=False, fontsize=8)
    return Drawing(name, figure, curve["title"], curve["caption"])


DRAW: dict[str, Callable[[Results], Drawing | None]] = {
    **SAMPLES,
    **{name: partial(plot, name=name) for name in CURVES},
    **QUESTIONS,
}
NAMES = tuple(DRAW)


def save(figure: Figure, file: Path) -> None:
    """Writes <file>.svg and <file>.png."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(f"{file}.svg", metadata={"Date": None})
        figure.savefig(f"{file}.png", dpi=DPI, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    sys.exit(run_command(main))
