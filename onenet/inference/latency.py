"""How long one image takes, from pixels to detections, and what NMS would add."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onenet.inference.check import clipped
from onenet.inference.detector import TrainedDetector
from onenet.inference.formats import Runner
from onenet.postprocess import nms_keep
from onenet.structures import Detections

WARMUP, LEAST_CALLS, SECONDS = 3, 20, 2.0
COUNTS = (10, 100)  # detections given to NMS


def measure(detector: TrainedDetector, run: Runner | None, images: Tensor) -> dict[str, list]:
    """Returns p50 and p99 in ms for images [1, 3, H, W] uint8, by what is measured, in one process:
    the fused network, the export `run` if there is one, each without and with NMS at IoU 0.5, and
    NMS alone by the number of detections. All use torch's number of threads.
    """
    size_hw = (images.shape[2], images.shape[3])

    def network() -> Detections:
        return detector.top_detections(detector.fused_network, images, size_hw)

    ways: dict[str, Callable[[], Detections]] = {"network": network}
    if run is not None:
        ways["export"] = lambda: clipped(run(images), size_hw)
    with torch.inference_mode():
        calls: dict[str, Callable] = {}
        for name, detect in ways.items():
            calls[name] = detect
            calls[f"{name} + NMS"] = lambda detect=detect: nms_keep(detect())
        calls |= {f"NMS of {count}": partial(nms_keep, _boxes(count)) for count in COUNTS}
        return _time_in_turn(calls)


def _time_in_turn(calls: dict[str, Callable]) -> dict[str, list]:
    """Calls each in turn, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    end = time.perf_counter() + SECONDS * len(calls)
    while len(times["network"]) < LEAST_CALLS or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: np.percentile(t, (50, 99)).round(3).tolist() for name, t in times.items()}


def _boxes(count: int) -> Detections:
    """Overlapping boxes of one class, the worst case."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 50], dim=1)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    return Detections(boxes, scores, torch.zeros(count, dtype=torch.int64))
