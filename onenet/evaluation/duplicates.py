"""Duplicates per object: the redundant detections that AP does not show.

Detections are matched with objects greedily, best score first, as COCOeval does at IoU 0.5. A
duplicate is an unmatched detection that has IoU >= 0.5 with an object of its class to which another
detection was matched. Crowds are ignored. D detections and N objects over all images.
"""

from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.overlaps import IOU, Overlaps, find_overlaps, match_greedily, ranks
from onenet.evaluation.predictions import Predictions, to_xywh


@dataclass(frozen=True)
class Matching:
    """The result of greedy matching over all images and classes."""

    matched_scores: np.ndarray  # [matched objects] score of the detection matched to each
    duplicate_scores: np.ndarray  # [duplicates] highest score threshold at which it is a duplicate


def find(predictions: Predictions, annotations: Annotations) -> Matching:
    """Matches the detections of a data set with its objects."""
    overlaps = find_overlaps(predictions, annotations, to_xywh(predictions.boxes_xyxy))
    overlaps = overlaps[~annotations.crowd[overlaps.object]]
    return match(overlaps, predictions.scores, ranks(predictions.image, predictions.scores))


def match(overlaps: Overlaps, scores: np.ndarray, rank: np.ndarray) -> Matching:
    """Matches detections with objects, none of which is a crowd.

    `scores` [D]; `rank` [D]: see `ranks`.
    """
    overlaps = overlaps[np.lexsort((overlaps.object, -overlaps.iou, overlaps.detection))]
    count = 1 + overlaps.object.max(initial=-1)
    [match_of] = match_greedily(overlaps, rank, np.array([IOU]), np.zeros(count, dtype=bool))
    is_matched = match_of >= 0
    object_scores = np.full(count, -np.inf)  # score of the detection matched to each object
    object_scores[match_of[is_matched]] = scores[is_matched]
    # At threshold t, a detection is a duplicate if it and the object's match both score >= t.
    highest = np.full(len(scores), -np.inf)
    np.maximum.at(highest, overlaps.detection, object_scores[overlaps.object])
    is_duplicate = ~is_matched & np.isfinite(highest)
    return Matching(scores[is_matched], np.minimum(scores, highest)[is_duplicate])


def threshold(matching: Matching, recall_fraction: float) -> float | None:
    """Returns the highest score threshold, one for all classes, that keeps a fraction of recall.

    `recall_fraction`, in (0, 1], is relative to the objects matched without a threshold. None if no
    object was matched.
    """
    scores = np.sort(matching.matched_scores)[::-1]
    if not len(scores):
        return None
    return float(scores[int(np.ceil(recall_fraction * len(scores) - 1e-9)) - 1])


def per_object(matching: Matching, recall_fraction: float) -> float | None:
    """Returns duplicates / matched objects at that threshold; None if no object was matched."""
    min_score = threshold(matching, recall_fraction)
    if min_score is None:
        return None
    duplicates, objects = counts(matching, min_score)
    return duplicates / objects


def counts(matching: Matching, min_score: float) -> tuple[int, int]:
    """Returns the numbers of duplicates and of matched objects with a score >= `min_score`."""
    duplicates = int((matching.duplicate_scores >= min_score).sum())
    return duplicates, int((matching.matched_scores >= min_score).sum())
