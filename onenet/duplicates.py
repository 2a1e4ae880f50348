"""Duplicates per object: what AP hides of redundant boxes.

Detections are matched with objects greedily, best score first, as COCOeval does at IoU 0.5. A
duplicate is a detection left unmatched although it has IoU >= 0.5 with an object of its class that
another detection has found. Crowds are left out.
"""

from dataclasses import dataclass

import numpy as np

IOU = 0.5


@dataclass(frozen=True)
class Found:
    """What the greedy matching found, over all images and classes."""

    matched_scores: np.ndarray  # [M] the score of each object's detection
    duplicate_scores: np.ndarray  # [D] the threshold up to which each duplicate counts as one


def find(scores: np.ndarray, labels: np.ndarray, ious: np.ndarray, gt_labels: np.ndarray) -> Found:
    """The matching of one image.

    scores [D] in any order, labels [D], ious [D, N] with the N objects (crowds left out),
    gt_labels [N].
    """
    taken_at = np.full(len(gt_labels), -np.inf)  # the score of the detection that has the object
    unmatched = []
    for detection in np.argsort(-scores, kind="stable"):
        candidates = (gt_labels == labels[detection]) & (ious[detection] >= IOU)
        free = candidates & np.isneginf(taken_at)
        if free.any():
            taken_at[np.where(free, ious[detection], -1).argmax()] = scores[detection]
        elif candidates.any():
            unmatched.append(detection)
    # With a threshold t, it is a duplicate if it and the object's own detection score at least t.
    duplicate_scores = [
        min(scores[d], taken_at[(gt_labels == labels[d]) & (ious[d] >= IOU)].max())
        for d in unmatched
    ]
    return Found(taken_at[np.isfinite(taken_at)], np.array(duplicate_scores))


def threshold(found: list[Found], share_of_recall: float) -> float | None:
    """The highest score threshold, one for all classes, that keeps `share_of_recall` (in (0, 1]) of
    the objects found without a threshold. None: nothing found.
    """
    matched = np.sort(np.concatenate([f.matched_scores for f in found] or [[]]))[::-1]
    if not len(matched):
        return None
    return float(matched[int(np.ceil(share_of_recall * len(matched) - 1e-9)) - 1])


def per_object(found: list[Found], share_of_recall: float) -> float | None:
    """Duplicates / matched objects at that threshold. None: nothing found."""
    least = threshold(found, share_of_recall)
    if least is None:
        return None
    matched = sum((f.matched_scores >= least).sum() for f in found)
    return float(sum((f.duplicate_scores >= least).sum() for f in found) / matched)
