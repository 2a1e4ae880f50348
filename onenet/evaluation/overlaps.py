"""Which detections of a data set overlap which objects, and who gets whom. numpy only.

All images at once. D detections, N objects, P pairs of one of each, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.predictions import Predictions

IOU = 0.5  # the least at which a detection may have an object
BLOCK = 2**15  # detections that are held against their objects at a time


@dataclass(frozen=True)
class Overlaps:
    """Pairs of an image and a class at IoU >= 0.5. Those of a detection stand together."""

    detection: np.ndarray  # [P] int64 in 0..D-1
    object: np.ndarray  # [P] int64 in 0..N-1
    iou: np.ndarray  # [P] float64

    def __getitem__(self, rows: np.ndarray) -> Overlaps:
        return Overlaps(self.detection[rows], self.object[rows], self.iou[rows])


def find_overlaps(
    predictions: Predictions,
    annotations: Annotations,
    iou: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Overlaps:
    """In the order of the detections. `iou`: of detections [P] with objects [P], by their rows."""
    classes = len(annotations.category_ids)
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    group = image * classes + annotations.labels
    by_group = np.argsort(group, kind="stable")
    asked = predictions.image * classes + predictions.labels
    first, last = (np.searchsorted(group[by_group], asked, side) for side in ("left", "right"))
    found = []
    for start in range(0, max(1, len(asked)), BLOCK):
        count = (last - first)[start : start + BLOCK]
        detection = start + np.repeat(np.arange(len(count)), count)
        nth = np.arange(len(detection)) - np.repeat(count.cumsum() - count, count)
        of_detection = by_group[first[detection] + nth]
        values = iou(detection, of_detection)
        near = values >= IOU
        found.append((detection[near], of_detection[near], values[near]))
    return Overlaps(*(np.concatenate(column) for column in zip(*found, strict=True)))


def turns(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[D]: the place of each detection in its image, from 0 for the best score; equal scores in the
    order of their rows."""
    order = np.lexsort((-scores, image))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    return place


def greedy(
    overlaps: Overlaps, turn: np.ndarray, thresholds: np.ndarray, shared: np.ndarray
) -> np.ndarray:
    """[T, D]: the object that each detection gets at each threshold, -1 for none.

    By turn [D], each detection gets the first object of its pairs that overlaps enough and that no
    other one has; those that are `shared` [N] are always free. The detections of a turn must not
    compete: they are of different images.
    """
    got = np.full((len(thresholds), len(turn)), -1)
    free = np.ones((len(thresholds), len(shared)), dtype=bool)
    order = np.argsort(turn[overlaps.detection], kind="stable")
    starts = np.flatnonzero(np.diff(turn[overlaps.detection[order]])) + 1
    for rows in np.split(order, starts) if len(order) else ():
        now, end = overlaps[rows], len(rows)
        able = (now.iou >= thresholds[:, None]) & free[:, now.object]  # [T, pairs of this turn]
        first = np.flatnonzero(np.diff(now.detection, prepend=-1))  # of each detection
        best = np.minimum.reduceat(np.where(able, np.arange(end), end), first, axis=1)
        at, which = np.nonzero(best < end)
        taken = now.object[best[at, which]]
        got[at, now.detection[first[which]]] = taken
        free[at, taken] = shared[taken]
    return got
