"""Overlaps of the detections of a data set with its objects, and greedy matching. numpy only.

D detections, N objects, P (detection, object) pairs, T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.predictions import Predictions, to_xywh

IOU = 0.5  # smallest IoU of a match
BLOCK = 2**15  # detections per block, to bound memory


@dataclass(frozen=True)
class Overlaps:
    """Pairs of the same image and class with IoU >= 0.5; those of a detection are contiguous."""

    detection: np.ndarray  # [P] int64 in 0..D-1
    object: np.ndarray  # [P] int64 in 0..N-1
    iou: np.ndarray  # [P] float64

    def __getitem__(self, rows: np.ndarray) -> Overlaps:
        return Overlaps(self.detection[rows], self.object[rows], self.iou[rows])


def coco_iou(a_xywh: np.ndarray, b_xywh: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Returns COCOeval's IoU of pairs, in [0, 1]: [P, 4], [P, 4], [P] bool -> [P].

    If `b` is a crowd, this is the fraction of `a` inside it. Boxes without area overlap nothing.
    """
    low = np.maximum(a_xywh[:, :2], b_xywh[:, :2])
    high = np.minimum(a_xywh[:, :2] + a_xywh[:, 2:], b_xywh[:, :2] + b_xywh[:, 2:])
    sides = high - low
    overlap = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)
    a_area, b_area = a_xywh[:, 2:].prod(axis=1), b_xywh[:, 2:].prod(axis=1)
    union = np.where(crowd, a_area, a_area + b_area - overlap)
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def find_overlaps(
    predictions: Predictions, annotations: Annotations, detections_xywh: np.ndarray
) -> Overlaps:
    """Returns the pairs in the order of the detections.

    `detections_xywh` [D, 4]: boxes of `predictions`, rounded or not.
    """
    objects_xywh = to_xywh(annotations.boxes_xyxy)
    classes = len(annotations.category_ids)
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    object_groups = image * classes + annotations.labels
    by_group = np.argsort(object_groups, kind="stable")
    groups = predictions.image * classes + predictions.labels  # of the detections
    sorted_groups = object_groups[by_group]
    first, last = (np.searchsorted(sorted_groups, groups, side) for side in ("left", "right"))
    blocks = []
    for start in range(0, max(1, len(groups)), BLOCK):
        count = (last - first)[start : start + BLOCK]
        detection = start + np.repeat(np.arange(len(count)), count)
        offset = np.arange(len(detection)) - np.repeat(count.cumsum() - count, count)
        object_ = by_group[first[detection] + offset]
        boxes = detections_xywh[detection], objects_xywh[object_]
        iou = coco_iou(*boxes, annotations.crowd[object_])
        mask = iou >= IOU
        blocks.append((detection[mask], object_[mask], iou[mask]))
    return Overlaps(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def ranks(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the rank of each detection within its image, 0 for the best score: [D], [D] -> [D].

    Equal scores are ranked in the order of their rows.
    """
    order = np.lexsort((-scores, image))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    return rank


def match_greedily(
    overlaps: Overlaps, rank: np.ndarray, thresholds: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """Returns the object matched to each detection at each threshold, -1 for none: [T, D].

    In the order of `rank` [D], each detection gets the first object of its pairs with enough
    overlap that is still free; a `crowd` [N] stays free. Detections of equal rank must be from
    different images, so that they do not compete.
    """
    matches = np.full((len(thresholds), len(rank)), -1)
    is_free = np.ones((len(thresholds), len(crowd)), dtype=bool)
    order = np.argsort(rank[overlaps.detection], kind="stable")
    starts = np.flatnonzero(np.diff(rank[overlaps.detection[order]])) + 1
    for rows in np.split(order, starts) if len(order) else ():
        pairs, end = overlaps[rows], len(rows)
        can_match = (pairs.iou >= thresholds[:, None]) & is_free[:, pairs.object]  # [T, pairs]
        first = np.flatnonzero(np.diff(pairs.detection, prepend=-1))  # pair of each detection
        best = np.minimum.reduceat(np.where(can_match, np.arange(end), end), first, axis=1)
        threshold, nth = np.nonzero(best < end)
        objects = pairs.object[best[threshold, nth]]
        matches[threshold, pairs.detection[first[nth]]] = objects
        is_free[threshold, objects] = crowd[objects]
    return matches
