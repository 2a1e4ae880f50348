"""Confidence intervals of means over seeds: Student's t."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval at LEVEL; the bounds are infinite if n is 1."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, pattern: str) -> str:
        return format(self.mean, pattern)


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns Student's interval of the mean of one or more values, assuming independent draws from
    a normal distribution."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    quantile = stdtrit(n - 1, (1 + level) / 2)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)
