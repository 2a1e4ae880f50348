"""Measures time as the minimum over alternating rounds, and memory as the peak of live tensors."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch.profiler import ProfilerActivity, profile

ROWS = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8"))


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


def row(
    key: str, plain: float, ours: float, unit: str = "ms", text: str = "", **values: object
) -> Timing:
    """Returns a line of the table. Its text, filled in with the values, and its goal are those of
    the key `text`, by default `key`, in rows.yaml."""
    line = ROWS[text or key]
    what = line["what"].format_map(values)
    return Timing(key, what, plain, ours, unit, line.get("goal"), line.get("at_most", False))


def compare(
    key: str, plain: Callable, ours: Callable, rounds: int = 5, warmup: int = 1, **values: object
) -> Timing:
    """Times both, in milliseconds."""
    seconds = least_seconds(plain, ours, rounds=rounds, warmup=warmup)
    return row(key, *(1000 * each for each in seconds), **values)


def compare_memory(key: str, plain: Callable[[], object], ours: Callable[[], object]) -> Timing:
    """Measures the peak memory of both, in MiB."""
    return row(key, *(peak_bytes(work) / 2**20 for work in (plain, ours)), "MiB")


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
