"""Measures time as the minimum over alternating rounds, and memory as the peak of live tensors."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """A line of the benchmark's table: the plain version against ours."""

    key: str
    what: str  # the conditions, for the reader
    plain: float  # in `unit`, lower is better
    ours: float
    unit: str  # "ms", "s", "MiB"
    goal: float | None = None  # for the ratio plain / ours: a minimum, or a maximum with at_most
    at_most: bool = False  # the ratio is the fraction of time spent in a part

    @property
    def ratio(self) -> float:
        return self.plain / self.ours


@dataclass(frozen=True)
class Curve:
    """The growth of a computation's time."""

    what: str
    against: str
    points: list[tuple[float, float, float]]  # value of `against`, seconds plain, seconds ours


def least_seconds(
    *candidates: Callable[[], object], rounds: int = 5, warmup: int = 1
) -> list[float]:
    """Returns the minimum time of each candidate over `rounds` rounds. In each round all candidates
    run once, so that a slow phase of the machine affects all of them."""
    for candidate in candidates * warmup:
        candidate()
    best = [float("inf")] * len(candidates)
    for _ in range(rounds):
        for number, candidate in enumerate(candidates):
            start = time.perf_counter()
            candidate()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def compare(
    key: str,
    what: str,
    plain: Callable[[], object],
    ours: Callable[[], object],
    goal: float | None = None,
    rounds: int = 5,
    warmup: int = 1,
) -> Timing:
    """Times both, in milliseconds."""
    seconds = least_seconds(plain, ours, rounds=rounds, warmup=warmup)
    return Timing(key, what, *(1000 * each for each in seconds), "ms", goal)


def compare_memory(
    key: str, what: str, plain: Callable[[], object], ours: Callable[[], object], goal: float
) -> Timing:
    """Measures the peak memory of both, in MiB."""
    return Timing(key, what, *(peak_bytes(work) / 2**20 for work in (plain, ours)), "MiB", goal)


def peak_bytes(work: Callable[[], object]) -> int:
    """Returns the peak memory, in bytes, of the CPU tensors that `work` allocates."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    allocated = peak = 0
    events = record.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak
