"""How sure a number is: t-intervals over seeds, a paired bootstrap over images. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from onenet.per_image import recompute

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with probability LEVEL; infinite bounds where n is 1."""

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of the mean of at least one value, which are taken as independent draws
    from a normal distribution."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    quantile = stdtrit(n - 1, (1 + level) / 2)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired(one: dict, other: dict) -> list[float]:
    """one - other for each key (a seed) that both have."""
    return [one[key] - other[key] for key in sorted(one.keys() & other.keys())]


METRICS = {  # of recompute: prefix, position in its answer
    "AP": ("raw", 0),
    "AP50": ("raw", 1),
    "AP_nms": ("nms", 0),
    "AP50_nms": ("nms", 1),
}


def values_of(arrays: dict[str, np.ndarray], metric: str, weights: np.ndarray | None) -> float:
    """A metric of METRICS, or `nms_gain`, `AP50_nms_gain`, of weighted images, 0..100."""
    if metric in METRICS:
        prefix, position = METRICS[metric]
        return recompute(arrays, prefix, weights)[position]
    position = {"nms_gain": 0, "AP50_nms_gain": 1}[metric]
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
