"""How far the validation images decide a difference between two runs: a paired bootstrap.

    python analysis/bootstrap.py RUN RUN                        AP and what NMS adds, with intervals
    python analysis/bootstrap.py RUN RUN --metric AP50 --draws 5000 --runs DIR
    python analysis/bootstrap.py RUN                            of one run's own numbers

RUN is an id, a folder's name below the runs root, or a folder. Images are redrawn; seeds are not:
that other seeds would give the same is what analysis/claims.py looks into.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from analysis.evidence import default_root, named_runs
from analysis.formats import Block, Sheet, markdown
from analysis.intervals import LEVEL, Interval
from onenet.errors import UserError
from onenet.identity import EvalSpec
from onenet.per_image import recompute
from onenet.runs import RunFolder

METRICS = {  # of recompute: prefix, position in its answer
    "AP": ("raw", 0),
    "AP50": ("raw", 1),
    "AP_nms": ("nms", 0),
    "AP50_nms": ("nms", 1),
}
GAINS = {"nms_gain": 0, "AP50_nms_gain": 1}


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs_wanted", nargs="+", metavar="RUN", help="one or two")
    parser.add_argument("--runs", metavar="DIR", default=default_root(), help="runs root")
    names = [*METRICS, *GAINS]
    parser.add_argument("--metric", nargs="+", choices=names, default=["AP", "AP50", "nms_gain"])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    given = parser.parse_args(arguments)
    try:
        if len(given.runs_wanted) > 2 or given.draws < 2:
            raise UserError("Name one or two runs, and at least two draws.")
        root = Path(given.runs).expanduser().absolute()
        folders = named_runs(root, given.runs_wanted)
        arrays = [per_image(folder) for folder in folders]
        one, other = arrays[0], arrays[1] if len(arrays) > 1 else None
        try:
            found = {
                metric: bootstrap(one, other, metric, given.draws, given.seed)
                for metric in given.metric
            }
        except ValueError as error:
            raise UserError(f"{' and '.join(f.path.name for f in folders)}: {error}.") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = []
    for metric, interval in found.items():
        values = [f"{values_of(a, metric, None):.1f}" for a in arrays]
        difference = [f"{interval.mean:+.1f}"] if other is not None else []
        lines.append([metric, *values, *difference, f"{interval.low:+.1f} … {interval.high:+.1f}"])
    header = ["", *(f.path.name for f in folders)] + ["difference"] * (other is not None)
    context = [f"{interval.n} images, redrawn {given.draws} times; the seeds are as they are"]
    block = Block([*header, f"{100 * LEVEL:g} % interval"], lines)
    print(markdown(Sheet("Paired bootstrap over images", "", context, [block], [])), end="")
    return 0


def per_image(folder: RunFolder) -> dict[str, np.ndarray]:
    """per_image.npz of the run's default evaluation. Raises UserError."""
    result = folder.result()
    if not result:
        raise UserError(f"{folder.path} has no result.json: the run is not finished.")
    file = folder.evaluation(EvalSpec(**result["evaluation"])) / "per_image.npz"
    if not file.is_file():
        raise UserError(f"{file} is not there: copy it from where the run was made.")
    with np.load(file) as arrays:
        return dict(arrays)


def values_of(arrays: dict[str, np.ndarray], metric: str, weights: np.ndarray | None) -> float:
    """A metric of METRICS or GAINS, of weighted images, 0..100."""
    if metric in METRICS:
        prefix, position = METRICS[metric]
        return recompute(arrays, prefix, weights)[position]
    position = GAINS[metric]
    with_nms, without = (recompute(arrays, prefix, weights)[position] for prefix in ("nms", "raw"))
    return with_nms - without


def bootstrap(
    one: dict[str, np.ndarray],
    other: dict[str, np.ndarray] | None,
    metric: str,
    draws: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Of the metric of `one`, less that of `other` if given, over redrawn images: per_image.npz of
    evaluations of the same images. The bounds are percentiles; n is the number of images.

    It tells how far the images that happened to be in the validation set decide; other seeds would
    differ by more. Raises ValueError if the images differ.
    """
    images = len(one["objects"])
    if other is not None and not np.array_equal(one["objects"], other["objects"]):
        raise ValueError("the two evaluations are not of the same images")
    generator = np.random.default_rng(seed)

    def difference(weights: np.ndarray | None) -> float:
        value = values_of(one, metric, weights)
        return value if other is None else value - values_of(other, metric, weights)

    drawn = [
        difference(np.bincount(generator.integers(images, size=images), minlength=images))
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(difference(None), float(low), float(high), images)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
