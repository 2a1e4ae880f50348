"""Times COCO's 12 metrics without and with NMS: two runs of pycocotools against our scoring.

N: objects of all images; D: detections of all images.
"""

import contextlib
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from analysis.speed.timing import Timing, least_seconds, row
from onenet.data.annotations import Annotations
from onenet.evaluation.coco_metrics import area_ranges
from onenet.evaluation.evaluators import Accumulated, HotcocoEvaluator
from onenet.evaluation.predictions import MAX_DETECTIONS, Predictions
from onenet.postprocess import nms_keep
from onenet.structures import Detections

CLASSES = 80
SIZE_WH = np.array([640, 480])
OBJECTS = 7.4  # per image, on average
TOLERANCE = 1e-9


def rows(images: int = 5000) -> list[Timing]:
    """Raises AssertionError if the two give different metrics."""
    annotations, predictions = synthetic(images)
    return [row("eval", *seconds(annotations, predictions), "s", images=images)]


def growth(counts: tuple[int, ...] = (250, 500, 1000, 2000)) -> list[tuple[int, float, float]]:
    """(images, seconds of the plain version, seconds of ours)."""
    return [(images, *seconds(*synthetic(images))) for images in counts]


def seconds(annotations: Annotations, predictions: Predictions) -> list[float]:
    """Returns the seconds of the plain version and of ours, and asserts that they agree."""
    numbers = {}

    def run_plain() -> None:
        results = predictions.to_coco(annotations)
        keep = predictions.nms_keep[0.5].tolist()
        after_nms = [row for row, is_kept in zip(results, keep, strict=True) if is_kept]
        numbers["plain"] = plain_pycocotools(annotations.to_coco(), [results, after_nms])

    def run_ours() -> None:
        numbers["ours"] = ours(annotations, predictions)

    best = least_seconds(run_plain, run_ours, rounds=2, warmup=0)
    difference = np.abs(numbers["plain"] - numbers["ours"]).max()
    assert difference <= TOLERANCE, f"the metrics differ by {difference}"
    return best


def plain_pycocotools(
    truth: dict, result_sets: list[list[dict]], area_scale: float = 1.0
) -> np.ndarray:
    """The metrics [sets of results, 12], computed as in pycocotools' example."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        numbers = []
        for results in result_sets:
            evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
            evaluation.params.areaRng = area_ranges(area_scale)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers.append(evaluation.stats)
    return np.array(numbers)


def ours(annotations: Annotations, predictions: Predictions) -> np.ndarray:
    """[without and with NMS, 12], by what a run's evaluation calls."""
    evaluator = HotcocoEvaluator(annotations)
    loaded, ranges = evaluator.load(predictions), area_ranges(1.0)
    parts = loaded, loaded[predictions.nms_keep[0.5]]
    return np.array([twelve_numbers(evaluator.evaluate(part, ranges)) for part in parts])


def twelve_numbers(evaluated: Accumulated) -> np.ndarray:
    """[12]: what `COCOeval.summarize` prints, in its order; -1 where undefined."""
    precision, recall = evaluated.precision, evaluated.recall
    values = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    values += [precision[..., area, 2] for area in (1, 2, 3)]
    values += [recall[..., 0, limit] for limit in (0, 1, 2)]
    values += [recall[..., area, 2] for area in (1, 2, 3)]
    defined = [part[part > -1] for part in values]
    return np.array([part.mean() if part.size else -1 for part in defined])


# --- data ---


def synthetic(images: int, seed: int = 0) -> tuple[Annotations, Predictions]:
    """Random images with objects of up to three classes, 1 % of them crowds. Of 100 detections per
    image, about 60 are noisy boxes of objects, mostly with the right class; the others are random.
    An image's detections have 19 classes on average."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()
    counts = np.minimum(rng.geometric(1 / (1 + OBJECTS), images) - 1, 60)
    image_classes = rng.choice(CLASSES, (images, 3), p=frequency)
    image = np.repeat(np.arange(images), counts)
    boxes = _boxes(rng, len(image))
    annotations = Annotations(
        category_ids=(1 + np.arange(CLASSES) * 9 // 8).tolist(),  # with gaps, as COCO's
        category_names=[f"class {k}" for k in range(CLASSES)],
        image_ids=1 + rng.permutation(600_000)[:images],
        sizes_hw=np.tile(SIZE_WH[::-1], (images, 1)),
        first=np.concatenate([[0], counts.cumsum()]),
        boxes_xyxy=boxes,
        labels=image_classes[image, rng.integers(0, 3, len(image))],
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.uniform(0.5, 1, len(image)),
        crowd=rng.random(len(image)) < 0.01,
    )
    count = images * MAX_DETECTIONS
    candidates = np.repeat(image_classes, MAX_DETECTIONS, axis=0)
    guesses = np.where(
        rng.random(count) < 0.5,
        candidates[np.arange(count), rng.integers(0, 3, count)],
        rng.choice(CLASSES, count, p=frequency),
    )
    return annotations, _detections(rng, annotations, guesses)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random boxes [count, 4] xyxy, with sides that are log-uniform."""
    sides = np.exp(rng.uniform(np.log(8), np.log(320), (count, 2)))
    corner = rng.random((count, 2)) * (SIZE_WH - sides)
    return np.hstack([corner, corner + sides])


def _detections(
    rng: np.random.Generator, annotations: Annotations, guesses: np.ndarray
) -> Predictions:
    """`guesses` [D]: the labels of detections that do not take the label of an object."""
    image = np.repeat(np.arange(len(annotations)), MAX_DETECTIONS)
    count = np.diff(annotations.first)[image]
    on_object = (count > 0) & (rng.random(len(image)) < 0.6)
    nth = (rng.random(len(image)) * count).astype(int)
    row = np.minimum(annotations.first[image] + nth, len(annotations.labels) - 1)
    box = annotations.boxes_xyxy[row]
    noise = rng.normal(0, rng.choice([0.02, 0.08, 0.2], (len(image), 1)), (len(image), 4))
    near = box + noise * np.tile(box[:, 2:] - box[:, :2], 2)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    correct = on_object & (rng.random(len(image)) < 0.8)
    scores = rng.beta(1, 6, len(image)) + on_object * rng.beta(1.2, 3, len(image)) / 2
    scores = scores.clip(0, 1).astype(np.float32).astype(np.float64)  # precision of a network
    order = np.lexsort((-scores, image))
    boxes = np.where(on_object[:, None], near, _boxes(rng, len(image)))[order]
    labels = np.where(correct, annotations.labels[row], guesses)[order]
    keep = []
    for rows in np.split(np.arange(len(image)), len(annotations)):
        columns = (torch.from_numpy(column[rows]) for column in (boxes, scores[order], labels))
        keep.append(nms_keep(Detections(*columns)).numpy())
    return Predictions(image, boxes, scores[order], labels, {0.5: np.concatenate(keep)})
