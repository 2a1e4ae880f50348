"""Duplicates per object: what AP hides of redundant boxes.

Detections are matched with objects greedily, best score first, as COCOeval does at IoU 0.5. A
duplicate is a detection left unmatched although it has IoU >= 0.5 with an object of its class that
another detection has found. Crowds are left out. D detections and N objects of all images.
"""

from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.overlaps import IOU, Overlaps, find_overlaps, greedy, turns
from onenet.evaluation.predictions import Predictions, to_xywh


@dataclass(frozen=True)
class Found:
    """What the greedy matching found, over all images and classes."""

    matched_scores: np.ndarray  # [found objects] the score of each one's detection
    duplicate_scores: np.ndarray  # [duplicates] the threshold up to which each counts as one


def find(predictions: Predictions, annotations: Annotations) -> Found:
    """The matching of a data set."""
    overlaps = find_overlaps(predictions, annotations, to_xywh(predictions.boxes_xyxy))
    overlaps = overlaps[~annotations.crowd[overlaps.object]]
    return match(overlaps, predictions.scores, turns(predictions.image, predictions.scores))


def match(overlaps: Overlaps, scores: np.ndarray, turn: np.ndarray) -> Found:
    """The matching of detections with these scores and turns [D]; no object is a crowd."""
    overlaps = overlaps[np.lexsort((overlaps.object, -overlaps.iou, overlaps.detection))]
    count = 1 + overlaps.object.max(initial=-1)
    [got] = greedy(overlaps, turn, np.array([IOU]), shared=np.zeros(count, dtype=bool))
    matched = got >= 0
    taken_at = np.full(count, -np.inf)  # the score of the detection that has the object
    taken_at[got[matched]] = scores[matched]
    # With a threshold t, it is a duplicate if it and the object's own detection score at least t.
    highest = np.full(len(scores), -np.inf)
    np.maximum.at(highest, overlaps.detection, taken_at[overlaps.object])
    duplicate = ~matched & np.isfinite(highest)
    return Found(scores[matched], np.minimum(scores, highest)[duplicate])


def threshold(found: Found, share_of_recall: float) -> float | None:
    """The highest score threshold, one for all classes, that keeps `share_of_recall` (in (0, 1]) of
    the objects found without a threshold. None: nothing found.
    """
    matched = np.sort(found.matched_scores)[::-1]
    if not len(matched):
        return None
    return float(matched[int(np.ceil(share_of_recall * len(matched) - 1e-9)) - 1])


def per_object(found: Found, share_of_recall: float) -> float | None:
    """Duplicates / matched objects at that threshold. None: nothing found."""
    least = threshold(found, share_of_recall)
    if least is None:
        return None
    duplicates, matched = counts(found, least)
    return duplicates / matched


def counts(found: Found, least: float) -> tuple[int, int]:
    """How many duplicates and how many matched objects there are from the score `least` up."""
    return int((found.duplicate_scores >= least).sum()), int((found.matched_scores >= least).sum())
