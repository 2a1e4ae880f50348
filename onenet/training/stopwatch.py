"""Times the parts of a training step."""

import time

import torch

STEP_PARTS = ("data", "forward", "match", "loss", "backward", "step")


class Stopwatch:
    """Adds up the seconds of each part of a step.

    On a GPU it uses CUDA events, so timing does not synchronise; host time counts towards the part
    that the GPU is executing.
    """

    def __init__(self, device: str = "cpu"):
        self.on_gpu = torch.device(device).type == "cuda"
        self.laps: list[tuple[str, object, object]] = []
        self.steps = 0
        self.last = self._now()

    def start(self) -> None:
        """Starts a step."""
        self.steps += 1
        self.last = self._now()

    def lap(self, part: str) -> None:
        """Counts the time since the last lap, or since the start, towards this part of the step."""
        now = self._now()
        self.laps.append((part, self.last, now))
        self.last = now

    def mean(self) -> dict[str, float]:
        """Returns the seconds per step of each part since the last call."""
        if self.on_gpu:
            self.last.synchronize()
        sums = dict.fromkeys(STEP_PARTS, 0.0)
        for part, begin, end in self.laps:
            sums[part] += begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin
        means = {part: round(seconds / self.steps, 6) for part, seconds in sums.items()}
        self.laps, self.steps = [], 0
        return means

    def _now(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
