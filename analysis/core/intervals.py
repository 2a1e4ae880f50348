"""How sure a mean over seeds is: Student's interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

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
