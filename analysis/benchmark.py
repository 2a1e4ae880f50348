"""Measures the suite's speed: compared to plain versions of its parts, and in frames per second.

python analysis/benchmark.py                     all ratios, frames per second, growth of the times
python analysis/benchmark.py --only focal eval   some of the ratios
python analysis/benchmark.py --json FILE         also writes the numbers to FILE
python analysis/benchmark.py fps                 only frames per second, which the tables show
python analysis/benchmark.py fps --compared      only for networks that analysis/claims.py compares

Uses one thread and reports the fastest of several rounds, in which the two sides alternate. Nothing
else should run on the machine. A plain version is a straightforward implementation with the
functions of torch and torchvision.
"""

import argparse
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences torch's profiler
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # silences its messages about memory

import pandas as pd
import torch
from matplotlib.figure import Figure

from analysis.core import fps
from analysis.core.cli import plain_parser
from analysis.core.frame import OWN_RUNS
from analysis.core.render import Page, markdown
from analysis.speed import data, evaluation, inference, matching, training
from analysis.speed.timing import Curve, Timing
from onenet.errors import UserError
from onenet.system.files import REPOSITORY, write_json
from onenet.system.terminal import run_command

IMAGES = REPOSITORY.parent / "shared" / "data" / "coco_mini"
RATIOS = {  # name for --only -> function that measures its rows
    "match": lambda args: matching.matching_rows(),
    "focal": lambda args: matching.focal_rows(),
    "step": lambda args: training.rows(),
    "jpeg": lambda args: data.rows(args.images),
    "eval": lambda args: evaluation.rows(),
    "fcos": lambda args: inference.rows(),
    "hungarian": lambda args: matching.hungarian_rows(),
    "worst": lambda args: matching.worst_rows(),  # last: from here on, freed memory is kept
}


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    torch.set_num_threads(1)
    rows, speeds = [], []
    if args.what == "ratios":
        rows = _ratios(args)
        print(markdown(_page(rows)))
        _write(args.json, rows, speeds)
    if args.what == "fps" or not args.only:
        speeds = inference.fps("cuda" if torch.cuda.is_available() else "cpu", args.compared)
        table = fps.printed(speeds)
        print(markdown(Page("Frames per second", "Batch size 1.", [_machine()], [table], [])))
        print(f"Wrote the frames per second, for the tables, to {fps.write(args.runs, speeds)}")
    if args.what == "ratios" and not args.only:
        curves = [*matching.growth(), Curve("evaluation", "images", evaluation.growth())]
        print(f"Plotted how the times grow: {_plot(curves, args.runs / 'benchmark.png')}")
    if speeds:
        _write(args.json, rows, speeds)
    return 0


def _write(file: Path | None, rows: list[Timing], speeds: list[fps.Speed]) -> None:
    """Writes what has been measured so far."""
    if file:
        without_nms = {speed.key: speed.fps for speed in speeds if speed.fps}
        numbers = {
            "ratios": {row.key: row.ratio for row in rows},
            "timings": [asdict(row) for row in rows],
            "fps": without_nms | {f"{speed.key} +NMS": speed.fps_nms for speed in speeds},
            "device": _machine(),
        }
        write_json(file, numbers)
        print(f"Wrote the numbers to {file}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("what", nargs="?", choices=("ratios", "fps"), default="ratios")
    add("--only", nargs="+", choices=RATIOS, help="measure only these ratios")
    add("--compared", action="store_true", help="fps: only networks that claims compare")
    add("--json", type=_path, metavar="FILE", help="also write the numbers to FILE")
    about_images = "folder of COCO, whose images jpeg decodes"
    add("--images", type=_path, metavar="DIR", default=IMAGES, help=about_images)
    add("--runs", type=_path, metavar="DIR", default=OWN_RUNS, help="runs root")
    return parser.parse_args(arguments)


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _ratios(args: argparse.Namespace) -> list[Timing]:
    """Measures the ratios; skips those that need images if there are none, with a message."""
    rows = []
    for name in args.only or RATIOS:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            rows += RATIOS[name](args)
        except UserError as error:
            print(f"{name} skipped: {error}\nName COCO's folder: --images DIR", file=sys.stderr)
    return rows


def _page(rows: list[Timing]) -> Page:
    lines = []
    for row in rows:
        goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {row.goal:g}"
        sides = [f"{side:,.4g} {row.unit}" for side in (row.plain, row.ours)]
        lines.append([row.key, *sides, f"{row.ratio:.3g}", goal])
    table = pd.DataFrame(lines, columns=["key", "plain", "ours", "ratio", "goal"]).set_index("key")
    notes = [f"{row.key}: {row.what}" for row in rows]
    return Page("Plain versions against ours", "", [_machine()], [table], notes)


def _machine() -> str:
    """Describes the machine in one line."""
    name = platform.processor() or platform.machine()
    if hasattr(torch.cpu, "get_capabilities"):
        name = torch.cpu.get_capabilities().get("cpu_name", name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name} ({os.cpu_count()} cores, 1 thread used){gpu}, torch {torch.__version__}"


def _plot(curves: list[Curve], file: Path) -> Path:
    """Plots one panel per curve, both axes logarithmic. Returns the file."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    for panel, curve in zip(figure.subplots(2, 3).flat, curves, strict=True):
        values, *times = zip(*curve.points, strict=True)
        for side, seconds, color in zip(("plain", "ours"), times, ("0.55", "#3454d1"), strict=True):
            panel.loglog(values, seconds, "o-", color=color, label=side)
        panel.set(title=f"{curve.what} by {curve.against}", ylabel="seconds")
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.xaxis.set_minor_formatter("")
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return file


if __name__ == "__main__":
    sys.exit(run_command(main))
