"""The time of each part of a step, with a fake clock; and the reuse of freed memory.

Run: pytest tests/test_stopwatch.py
"""

import platform
import resource
import subprocess
import sys

import pytest

from onenet.training import stopwatch
from onenet.training.stopwatch import STEP_PARTS, Stopwatch


def test_the_mean_of_each_part_over_the_steps_since_it_was_asked(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    watch = Stopwatch("cpu")

    def step(**seconds: float) -> None:
        now[0] += 100  # between steps, e.g. a checkpoint
        watch.start()
        for part, duration in seconds.items():
            now[0] += duration
            watch.lap(part)

    step(data=1, forward=2)
    step(data=3, forward=2, match=1)
    assert watch.mean() == {**dict.fromkeys(STEP_PARTS, 0), "data": 2, "forward": 2, "match": 0.5}
    step(step=5)
    assert watch.mean() == {**dict.fromkeys(STEP_PARTS, 0), "step": 5}


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    """After some rounds, tensors of 12 to 48 MiB reuse freed pages."""
    script = """
import resource, torch
from onenet.system.memory import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one = torch.ones(3 * 2**20)
    two = torch.cat([one, one + 1])
    torch.cat([two, two]).mul_(2).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sum([faults() for _ in range(30)][10:]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    fresh = 20 * 96 * 2**20 / resource.getpagesize()  # if each round took all its memory anew
    assert int(done.stdout) < 0.2 * fresh
