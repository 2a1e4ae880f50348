"""Paired bootstrap: how much a difference between two runs depends on the validation images.

    python analysis/bootstrap.py RUN RUN                  AP, AP50, NMS gain: difference, interval
    python analysis/bootstrap.py RUN RUN --metric AP50 --draws 5000 --runs DIR
    python analysis/bootstrap.py RUN                      the metrics of one run, with intervals

RUN is an id, the name of a folder in the runs root, or the path of a folder. Images are resampled,
seeds are not: analysis/claims.py covers the variation between seeds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from analysis.core.cli import command_line, execute, named_runs, runs_folder
from analysis.core.errors import per_image
from analysis.core.frame import DAMAGE
from analysis.core.render import Page, markdown
from analysis.core.statistics import LEVEL, Interval
from onenet.errors import UserError
from onenet.evaluation.bootstrap import METRICS, bounds, numbers
from onenet.system.terminal import run_command


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__, overrides=False)
    parser.add_argument("run_names", nargs="+", metavar="RUN", help="one or two")
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=["AP", "AP50", "nms_gain"])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling")
    return execute(print_intervals, parser.parse_args(arguments))


def print_intervals(args: argparse.Namespace) -> None:
    if len(args.run_names) > 2 or args.draws < 2:
        raise UserError("Name one or two runs, and set --draws to at least 2.")
    folders = named_runs(runs_folder(args.runs), args.run_names)
    arrays = [per_image(folder) for folder in folders]
    names = [folder.path.name for folder in folders]
    try:
        intervals = bootstrap(*arrays, *[None] * (2 - len(arrays)), args.draws, args.seed)
        values = [numbers(each) for each in arrays]
    except DAMAGE as error:
        raise UserError(f"{' and '.join(names)}: {error}.") from error
    cells = pd.DataFrame(dict(zip(names, values, strict=True)), index=METRICS).map("{:.1f}".format)
    if len(arrays) > 1:
        cells["first - second"] = pd.Series(intervals).map("{:+.1f}".format)
    bounds_text = pd.Series(intervals).map(lambda own: f"{own.low:.1f} … {own.high:.1f}")
    cells[f"{100 * LEVEL:g} % interval"] = bounds_text
    images = intervals["AP"].n
    context = [f"{images} images, resampled {args.draws} times; seeds are not resampled"]
    table = cells.loc[args.metric].rename_axis("")
    print(markdown(Page("Paired bootstrap over images", "", context, [table], [])), end="")


def bootstrap(
    one: dict[str, np.ndarray],
    other: dict[str, np.ndarray] | None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns each metric of `one`, minus that of `other` unless it is None, with percentile bounds
    over resampled images; n is the number of images.

    `one` and `other` are per_image.npz of evaluations of the same images. Raises ValueError if the
    images differ, or contain no objects.
    """
    minus = 0 if other is None else numbers(other)
    intervals = bounds(one, other, draws, seed, LEVEL)
    values = dict(zip(METRICS, (numbers(one) - minus).tolist(), strict=True))
    images = len(one["objects"])
    return {metric: Interval(values[metric], *intervals[metric], images) for metric in METRICS}


if __name__ == "__main__":
    sys.exit(run_command(main))
