"""Per-image data from which AP and AP50 can be recomputed: well under 100 KB for a proxy run.

The detections of each class are stored in the order in which COCOeval ranks them, each with its
image and one bit per IoU threshold: is it a true positive? Detections ranked below the last true
positive of their class do not change AP and are omitted. `recompute` needs only numpy, so the
analysis can bootstrap over images without pycocotools.

I images, K classes, D detections, T IoU thresholds.
"""

import numpy as np

from onenet.data.annotations import Annotations
from onenet.evaluation.overlaps import Overlaps, find_overlaps, match_greedily, ranks
from onenet.evaluation.predictions import Predictions

RECALLS = np.linspace(0, 1, 101)
IOUS = 10
THRESHOLDS = np.linspace(0.5, 0.95, IOUS)


def pack(annotations: Annotations, predictions: Predictions) -> dict[str, np.ndarray]:
    """Returns the arrays of per_image.npz, prefixed `raw_` before NMS and `nms_` after it (0.5).

    `objects` [I, K] uint16: the number of objects, without crowds. For each prefix, over the D'
    detections stored: `image` [D'] uint16 or uint32, `label` [D'] uint8 or uint16, `hits` [D']
    uint16. Bit t of `hits` is set for a true positive at the t-th threshold of 0.5, 0.55, ...,
    0.95. The bits above these ten hold the number of thresholds, counted from the lowest, at which
    the detection lies in a crowd; there it is ignored unless it is a true positive.
    """
    objects = np.zeros((len(annotations), len(annotations.category_ids)), dtype=np.uint16)
    single = ~annotations.crowd
    image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    np.add.at(objects, (image_of[single], annotations.labels[single]), 1)
    arrays = {"objects": objects}
    overlaps = _overlaps(annotations, predictions)
    rank = ranks(predictions.image, predictions.scores)
    for prefix, mask in (("raw", np.ones(len(rank), bool)), ("nms", predictions.nms_keep[0.5])):
        pairs = overlaps[mask[overlaps.detection]]
        matches = match_greedily(pairs, rank, THRESHOLDS, annotations.crowd)
        columns = _pack(matches, mask, annotations, predictions)
        arrays |= {f"{prefix}_{name}": array for name, array in columns.items()}
    return arrays


def _overlaps(annotations: Annotations, predictions: Predictions) -> Overlaps:
    """Returns the overlaps of the boxes as stored, by COCOeval's IoU.

    The objects of a detection are in the order in which COCOeval would match them to it.
    """
    overlaps = find_overlaps(predictions, annotations, predictions.to_xywh())
    crowd = annotations.crowd[overlaps.object]
    return overlaps[np.lexsort((-overlaps.object, -overlaps.iou, crowd, overlaps.detection))]


def _pack(
    matches: np.ndarray, mask: np.ndarray, annotations: Annotations, predictions: Predictions
) -> dict[str, np.ndarray]:
    """Returns `image`, `label` and `hits` (see `pack`) of the detections in `mask` [D].

    `matches` [T, D]: the object matched to each detection, or -1.
    """
    images, classes = len(annotations), len(annotations.category_ids)
    columns = np.flatnonzero((matches >= 0).any(axis=0))  # the detections with a match
    is_matched = matches[:, columns] >= 0
    in_crowd = is_matched & annotations.crowd[matches[:, columns]]
    hits = np.zeros(matches.shape[1], dtype=np.int64)
    hits[columns] = ((is_matched & ~in_crowd) << np.arange(IOUS)[:, None]).sum(axis=0)
    hits[columns] |= (in_crowd * np.arange(1, IOUS + 1)[:, None]).max(axis=0) << IOUS
    position = np.argsort(np.argsort(annotations.image_ids))  # COCOeval sorts images by id
    label, image = predictions.labels, predictions.image
    order = np.lexsort((position[image], -predictions.scores, label))  # COCOeval's ranking
    order = order[mask[order]]
    last = np.full(classes, -1)  # last true positive of each class
    true_positives = np.flatnonzero(hits[order] & 0x3FF)
    np.maximum.at(last, label[order[true_positives]], true_positives)
    order = order[np.arange(len(order)) <= last[label[order]]]
    return {
        "image": image[order].astype(np.uint16 if images < 2**16 else np.uint32),
        "label": label[order].astype(np.uint8 if classes < 2**8 else np.uint16),
        "hits": hits[order].astype(np.uint16),
    }


def recompute(
    arrays: dict[str, np.ndarray], prefix: str, weights: np.ndarray | None = None
) -> tuple[float | None, float | None]:
    """Returns AP and AP50 in 0..100, before (`raw`) or after (`nms`) NMS.

    `weights` [I]: how often each image counts, by default once. Both are None without objects.
    """
    table = by_class(arrays, prefix, weights)
    table = table[np.isfinite(table).all(axis=1)]
    return (float(table.mean()), float(table[:, 0].mean())) if len(table) else (None, None)


def by_class(
    arrays: dict[str, np.ndarray], prefix: str, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the AP of each class at each of THRESHOLDS, 0..100; NaN for classes without objects:
    [K, T]. Arguments as for `recompute`."""
    objects = arrays["objects"].astype(np.int64)
    if weights is None:
        weights = np.ones(len(objects), dtype=np.int64)
    total = weights @ objects  # [K]
    label, hits = arrays[f"{prefix}_label"], arrays[f"{prefix}_hits"]
    row_weights, bits = weights[arrays[f"{prefix}_image"]], np.arange(IOUS)[:, None]
    precisions = np.full((len(total), IOUS), np.nan)
    for k in np.flatnonzero(total):
        rows = label == k
        is_tp = (hits[rows] >> bits & 1).astype(bool)  # [T, D]
        is_counted = is_tp | (bits >= hits[rows] >> IOUS)
        tp, tp_and_fp = ((m * row_weights[rows]).cumsum(axis=1) for m in (is_tp, is_counted))
        precision = tp / np.maximum(tp_and_fp, 1)
        envelopes = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for t, (recall, envelope) in enumerate(zip(tp / total[k], envelopes, strict=True)):
            rank = np.searchsorted(recall, RECALLS, side="left")
            end = len(envelope)
            precisions[k, t] = (np.where(rank < end, envelope[np.minimum(rank, end - 1)], 0).mean()
                                if end else 0.0)  # fmt: skip
    return 100 * precisions
