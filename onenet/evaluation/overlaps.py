"""Which detections of a data set overlap which objects, and who gets whom. numpy only.

All images at once. D detections, N objects, P pairs of one of each, T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.predictions import Predictions, to_xywh

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


def coco_iou(a_xywh: np.ndarray, b_xywh: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """COCOeval's IoU of pairs, in [0, 1]: [P, 4], [P, 4], [P] bool -> [P].

    Where `b` is a crowd it is the part of `a` that lies in it. Boxes without area overlap nothing.
    """
    low = np.maximum(a_xywh[:, :2], b_xywh[:, :2])
    high = np.minimum(a_xywh[:, :2] + a_xywh[:, 2:], b_xywh[:, :2] + b_xywh[:, 2:])
    sides = high - low
    overlap = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)
    area, other = a_xywh[:, 2:].prod(axis=1), b_xywh[:, 2:].prod(axis=1)
    union = np.where(crowd, area, area + other - overlap)
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def find_overlaps(
    predictions: Predictions, annotations: Annotations, detections_xywh: np.ndarray
) -> Overlaps:
    """The pairs in the order of the detections, whose boxes [D, 4] may be rounded."""
    objects_xywh = to_xywh(annotations.boxes_xyxy)
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
        boxes = detections_xywh[detection], objects_xywh[of_detection]
        values = coco_iou(*boxes, annotations.crowd[of_detection])
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
