"""Figures 5 and 6 of the paper, and what it does not show: each as SVG and PNG.

    python analysis/figures.py                       all, into the folder figures/ of the runs root
    python analysis/figures.py --only figure5 changes --out DIR
    python analysis/figures.py -- preset=paper data.root=DIR

Words after `--` are run.py's. A figure shows the runs that are there; one without any is left out,
and the command that makes them is printed.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())

import matplotlib
from matplotlib.figure import Figure

from analysis.core.charts import CURVES, Chart, charts
from analysis.core.evidence import Evidence, command_line, say_where, words_of
from analysis.core.samples import SAMPLES
from onenet.errors import UserError

STYLE = {"svg.hashsalt": "onenet", "svg.fonttype": "none", "font.size": 9}
COLORS = {
    "predefined": "#c8553d",
    "predefined + class": "#e0a100",
    "predicted": "#7a3b9c",
    "predicted + class": "#2a6f97",
}
NAMES = [*SAMPLES, *(points.__name__ for points, *_ in CURVES)]


@dataclass(frozen=True)
class Drawn:
    """A figure in its two files."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work."""
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", metavar="DIR", help="default: figures/ in the runs root")
    args = parser.parse_args(arguments)
    try:
        overrides = words_of(args)
        runs = Evidence(overrides)
        folder = runs.folder(args.out) / ("" if args.out else "figures")
        drawn = draw(runs, folder, args.only or NAMES)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table1 = runs.comparison("table1")
    way_out = table1.command if table1.missing else "The runs of Table 1 have their results only."
    for name in args.only or NAMES:
        if name not in {figure.name for figure in drawn}:
            print(f"{name}: no run has what it shows. {way_out}")
    say_where(overrides)
    print(f"Wrote {len(drawn)} figures, as SVG and PNG, to {folder}")
    return 0


def draw(runs: Evidence, folder: Path, names: list[str]) -> list[Drawn]:
    """Writes the figures of these names for which there are runs."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with matplotlib.rc_context(STYLE):
        for name in names:
            if name in SAMPLES and (made := SAMPLES[name](runs)):
                found.append(_saved(name, *made, folder))
        for chart in charts(runs):
            if chart.name in names:
                made = chart.title, chart.caption, plotted(chart)
                found.append(_saved(chart.name, *made, folder))
    return found


def plotted(chart: Chart) -> Figure:
    """Panels side by side with common axes; bands are one standard deviation over seeds."""
    count = len(chart.panels)
    figure = Figure(figsize=(0.8 + 3.4 * count, 3), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat, chart.panels, strict=True):
        for series in panel.series:
            color = COLORS.get(series.label)
            axis.plot(series.x, series.mean, color=color, label=series.label, marker=".")
            low, high = (
                [m + sign * s for m, s in zip(series.mean, series.std, strict=True)]
                for sign in (-1, 1)
            )
            axis.fill_between(series.x, low, high, color=color, alpha=0.2, linewidth=0)
        seeds = sorted({series.n for series in panel.series})
        axis.set_title(f"{panel.title} (n = {', '.join(map(str, seeds))})")
        axis.set_xlabel(chart.x)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel(chart.y)
    axes[0, -1].legend(frameon=False, fontsize=8)
    return figure


def _saved(name: str, title: str, caption: str, figure: Figure, folder: Path) -> Drawn:
    drawn = Drawn(name, title, caption, folder / f"{name}.svg", folder / f"{name}.png")
    figure.savefig(drawn.svg, metadata={"Date": None})
    figure.savefig(drawn.png, dpi=120)
    return drawn


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
