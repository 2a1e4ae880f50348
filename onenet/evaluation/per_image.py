"""What recomputing AP and AP50 takes, image by image, in well under 100 KB for a proxy run.

For each class the detections stand in the order in which COCOeval ranks them; of each there is its
image and, in a bit an IoU threshold, whether it is a true positive. Detections ranked below the
last true positive of their class change no AP and are left out. `recompute` needs numpy only, so
that analysis can resample images (a bootstrap) without pycocotools.
"""

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.overlaps import Overlaps, find_overlaps, greedy, turns
from onenet.evaluation.predictions import Predictions

RECALLS = np.linspace(0, 1, 101)
IOUS = 10
THRESHOLDS = np.linspace(0.5, 0.95, IOUS)


def pack(annotations: Annotations, predictions: Predictions) -> dict[str, np.ndarray]:
    """The arrays of per_image.npz, with a prefix `raw_` before NMS and `nms_` after it (0.5).

    `objects` [I, K] uint16: objects to find; and for both prefixes, over the D' detections kept:
    `image` [D'] uint16 or uint32, `label` [D'] uint8 or uint16, `hits` [D'] uint16: bit t is set
    for a true positive at the t-th threshold of 0.5, 0.55, ..., 0.95; the bits above these ten hold
    the number of thresholds, from the lowest up, at which it lies in a crowd: there it is not
    counted, unless it is a true positive.
    """
    objects = np.zeros((len(annotations), len(annotations.category_ids)), dtype=np.uint16)
    single = ~annotations.crowd
    image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    np.add.at(objects, (image_of[single], annotations.labels[single]), 1)
    arrays = {"objects": objects}
    overlaps = _overlaps(annotations, predictions)
    turn = turns(predictions.image, predictions.scores)
    for prefix, kept in (("raw", np.ones(len(turn), bool)), ("nms", predictions.nms_keep[0.5])):
        of_kept = overlaps[kept[overlaps.detection]]
        got = greedy(of_kept, turn, THRESHOLDS, shared=annotations.crowd)
        packed = _pack(got, kept, annotations, predictions)
        arrays |= {f"{prefix}_{name}": array for name, array in packed.items()}
    return arrays


def _overlaps(annotations: Annotations, predictions: Predictions) -> Overlaps:
    """What overlaps by COCOeval's IoU: of the boxes as they are stored, in a crowd the share of the
    detection. A detection's objects stand in the order in which COCOeval would give it them."""
    found = find_overlaps(predictions, annotations, predictions.to_xywh())
    crowd = annotations.crowd[found.object]
    return found[np.lexsort((-found.object, -found.iou, crowd, found.detection))]


def _pack(
    got: np.ndarray, kept: np.ndarray, annotations: Annotations, predictions: Predictions
) -> dict[str, np.ndarray]:
    """`got` [T, D]: the object of each detection or -1; `kept` [D]: which of them there are."""
    images, classes = len(annotations), len(annotations.category_ids)
    matched = np.flatnonzero((got >= 0).any(axis=0))
    hit = got[:, matched] >= 0
    ignored = hit & annotations.crowd[got[:, matched]]
    hits = np.zeros(got.shape[1], dtype=np.int64)
    hits[matched] = ((hit & ~ignored) << np.arange(IOUS)[:, None]).sum(axis=0)
    hits[matched] |= (ignored * np.arange(1, IOUS + 1)[:, None]).max(axis=0) << IOUS
    place = np.argsort(np.argsort(annotations.image_ids))  # COCOeval sorts the images by their ids
    label, image = predictions.labels, predictions.image
    order = np.lexsort((place[image], -predictions.scores, label))  # as COCOeval ranks them
    order = order[kept[order]]
    last = np.full(classes, -1)  # of each class, the last true positive
    true = np.flatnonzero(hits[order] & 0x3FF)
    np.maximum.at(last, label[order[true]], true)
    order = order[np.arange(len(order)) <= last[label[order]]]
    return {
        "image": image[order].astype(np.uint16 if images < 2**16 else np.uint32),
        "label": label[order].astype(np.uint8 if classes < 2**8 else np.uint16),
        "hits": hits[order].astype(np.uint16),
    }


def recompute(
    arrays: dict[str, np.ndarray], prefix: str, weights: np.ndarray | None = None
) -> tuple[float | None, float | None]:
    """AP and AP50, 0..100, of the detections before (`raw`) or after NMS (`nms`).

    `weights` [I]: how often each image counts; all once if None. None, None: no objects.
    """
    objects = arrays["objects"].astype(np.int64)
    if weights is None:
        weights = np.ones(len(objects), dtype=np.int64)
    total = weights @ objects  # [K]
    label, hits = arrays[f"{prefix}_label"], arrays[f"{prefix}_hits"]
    counts, at_iou = weights[arrays[f"{prefix}_image"]], np.arange(IOUS)[:, None]
    precisions = []
    for k in np.flatnonzero(total):
        rows = label == k
        true = (hits[rows] >> at_iou & 1).astype(bool)  # [T, D]
        counted = true | (at_iou >= hits[rows] >> IOUS)
        tp, seen = ((which * counts[rows]).cumsum(axis=1) for which in (true, counted))
        precision = tp / np.maximum(seen, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for recall, at in zip(tp / total[k], envelope, strict=True):
            rank = np.searchsorted(recall, RECALLS, side="left")
            reached = rank < len(at)
            precisions.append(np.where(reached, at[np.minimum(rank, len(at) - 1)], 0).mean()
                              if len(at) else 0.0)  # fmt: skip
    if not precisions:
        return None, None
    table = np.array(precisions).reshape(-1, IOUS)
    return 100 * float(table.mean()), 100 * float(table[:, 0].mean())
