"""What recomputing AP and AP50 takes, image by image, in well under 100 KB for a proxy run.

For each class the detections stand in the order in which COCOeval ranks them; of each there is its
image and, in a bit an IoU threshold, whether it is a true positive. Detections ranked below the
last true positive of their class change no AP and are left out. `recompute` needs numpy only, so
that analysis can resample images (a bootstrap) without pycocotools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

    from onenet.scoring import Predictions, Scorer

RECALLS = np.linspace(0, 1, 101)
IOUS = 10  # 0.5, 0.55, ..., 0.95


def pack(scorer: Scorer, predictions: Predictions) -> dict[str, np.ndarray]:
    """The arrays of per_image.npz, with a prefix `raw_` before NMS and `nms_` after it (0.5).

    `objects` [I, K] uint16: objects to find; and for both prefixes, over the D' detections kept:
    `image` [D'] uint16 or uint32, `label` [D'] uint8 or uint16, `hits` [D'] uint16: bit t is set
    for a true positive at the t-th threshold of 0.5, 0.55, ..., 0.95; the bits above these ten hold
    the number of thresholds, from the lowest up, at which it lies in a crowd: there it is not
    counted, unless it is a true positive.
    """
    annotations = scorer.annotations
    images, classes = len(annotations), len(annotations.category_ids)
    objects = np.zeros((images, classes), dtype=np.uint16)
    single = ~annotations.crowd
    image_of = np.repeat(np.arange(images), np.diff(annotations.first))
    np.add.at(objects, (image_of[single], annotations.labels[single]), 1)
    arrays = {"objects": objects}
    results = predictions.to_coco(annotations)
    after = [r for r, keep in zip(results, predictions.nms_keep[0.5], strict=True) if keep]
    for prefix, rows in (("raw", results), ("nms", after)):
        packed = _pack(scorer.evaluate(rows, only_all=True), annotations.image_ids, classes)
        arrays |= {f"{prefix}_{name}": array for name, array in packed.items()}
    return arrays


def _pack(
    evaluation: COCOeval | None, image_ids: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    images, kept = len(image_ids), {"image": [], "label": [], "hits": []}
    by_id = np.argsort(image_ids)  # COCOeval sorts the images by their ids
    for label in range(classes if evaluation is not None else 0):
        of_images = enumerate(evaluation.evalImgs[label * images : (label + 1) * images])
        found = [(image, e) for image, e in of_images if e is not None and len(e["dtScores"])]
        if not found:
            continue
        image = np.repeat([by_id[i] for i, _ in found], [len(e["dtScores"]) for _, e in found])
        scores = np.concatenate([e["dtScores"] for _, e in found])
        matched = np.concatenate([e["dtMatches"] for _, e in found], axis=1) > 0  # [T, D]
        ignored = np.concatenate([e["dtIgnore"] for _, e in found], axis=1).astype(bool)
        hits = ((matched & ~ignored) << np.arange(IOUS)[:, None]).sum(axis=0)
        hits |= (ignored * np.arange(1, IOUS + 1)[:, None]).max(axis=0) << IOUS
        order = np.argsort(-scores, kind="mergesort")  # as COCOeval ranks them
        last = np.flatnonzero(hits[order] & 0x3FF)
        order = order[: last[-1] + 1 if len(last) else 0]
        kept["image"].append(image[order])
        kept["label"].append(np.full(len(order), label))
        kept["hits"].append(hits[order])
    types = {
        "image": np.uint16 if images < 2**16 else np.uint32,
        "label": np.uint8 if classes < 2**8 else np.uint16,
        "hits": np.uint16,
    }
    return {name: np.concatenate(parts or [[]]).astype(types[name]) for name, parts in kept.items()}


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
