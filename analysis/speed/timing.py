"""How the suite measures: the least of several runs, taken in turn; the peak over live tensors."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """A line of the benchmark's table: the plain version against ours."""

    key: str
    what: str  # the conditions, for the reader
    plain: float  # in `unit`, less is better
    ours: float
    unit: str  # "ms", "s", "MiB"
    goal: float | None = None  # least ratio plain / ours that is aimed at
    at_most: bool = False  # the ratio is a share, and `goal` the largest

    @property
    def ratio(self) -> float:
        return self.plain / self.ours


@dataclass(frozen=True)
class Curve:
    """How the time of something grows."""

    what: str
    against: str
    points: list[tuple[float, float, float]]  # value of `against`, seconds plain, seconds ours


def least_seconds(
    *candidates: Callable[[], object], rounds: int = 5, warmup: int = 1
) -> list[float]:
    """The least time of each candidate over `rounds` runs, in which they take turns, so that a slow
    moment of the machine hits all of them."""
    for candidate in candidates * warmup:
        candidate()
    best = [float("inf")] * len(candidates)
    for _ in range(rounds):
        for number, candidate in enumerate(candidates):
            started = time.perf_counter()
            candidate()
            best[number] = min(best[number], time.perf_counter() - started)
    return best


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that `work` holds at a time in CPU tensors of its own, in bytes."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = peak = 0
    events = record.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
