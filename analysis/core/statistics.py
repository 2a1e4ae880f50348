"""Confidence intervals of means over seeds (Student's t), and where positive samples are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.core.frame import samples_of
from onenet.runs.folder import RunFolder
from onenet.sweeps.summary import number

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

    def sentence(self, pattern: str = ".1f") -> str:
        """Returns the mean with interval and number of seeds, for a text."""
        mean, low, high = (number(v, pattern) for v in (self.mean, self.low, self.high))
        if math.isinf(self.low):
            return f"{mean} (one seed)"
        return f"{mean} (95 % interval {low} to {high}, {self.n} seeds)"


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns Student's interval of the mean of one or more values, assuming independent draws from
    a normal distribution."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    quantile = stdtrit(n - 1, (1 + level) / 2)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def positives(run: RunFolder) -> pd.Series:
    """Returns the percentage of positive samples that are `nearest`, `in_box` and `in_part`, in the
    run's last snapshot; objects without one are left out, and those for which it is unknown."""
    frame = samples_of(run)
    if frame.empty:
        return pd.Series(dtype=float)
    last = frame[(frame.step == frame.step.max()) & (frame.slot >= 0)]
    return 100 * last[["nearest", "in_box", "in_part"]].astype(float).mean()
