"""COCO's numbers for stored detections, by pycocotools; with and without NMS from one forward pass.

I images, D detections of all images, K classes.
"""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from onenet import duplicates
from onenet.data.annotations import Annotations

AREA_BOUNDS = (32**2, 96**2)  # small | medium | large, square pixels at a shortest side of 512
AREAS = ("all", "small", "medium", "large")
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Predictions:
    """All detections of a data set, in pixels of the original images; the rows of an image stand
    together, best score first."""

    image: np.ndarray  # [D] int64 in 0..I-1
    boxes_xyxy: np.ndarray  # [D, 4] float64
    scores: np.ndarray  # [D] float64 in 0..1
    labels: np.ndarray  # [D] int64 in 0..K-1
    nms_keep: dict[float, np.ndarray]  # IoU threshold -> [D] bool: what class-wise NMS leaves

    def to_coco(self, annotations: Annotations) -> list[dict]:
        """COCO's results format."""
        corner, side = self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        rows = zip(
            annotations.image_ids[self.image].tolist(),
            np.round(np.hstack([corner, side]), 3).tolist(),
            self.scores.tolist(),
            np.asarray(annotations.category_ids)[self.labels].tolist(),
            strict=True,
        )
        keys = ("image_id", "bbox", "score", "category_id")
        return [dict(zip(keys, row, strict=True)) for row in rows]


def area_ranges(area_scale: float) -> list[list[float]]:
    """COCO's all, small, medium, large, with the bounds times `area_scale`."""
    small, large = (bound * area_scale for bound in AREA_BOUNDS)
    return [[0, 1e10], [0, small], [small, large], [large, 1e10]]


class Scorer:
    """Ground truth, indexed once, against which several sets of detections are scored.

    `area_scale`: factor on the bounds of small, medium and large; 1 is COCO's own.
    """

    def __init__(self, annotations: Annotations, area_scale: float = 1.0):
        self.annotations = annotations
        self.ranges = area_ranges(area_scale)
        self.truth = COCO()
        self.truth.dataset = annotations.to_coco()
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth.createIndex()

    def evaluate(self, results: list[dict], only_all: bool = False) -> COCOeval | None:
        """COCOeval after `accumulate`; None where there are no detections (it would raise)."""
        if not results:
            return None
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, self.truth.loadRes(results), "bbox")
            areas = slice(0, 1) if only_all else slice(None)
            evaluation.params.areaRng = self.ranges[areas]
            evaluation.params.areaRngLbl = list(AREAS[areas])
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def score(self, predictions: Predictions) -> tuple[dict[str, float | None], dict[str, str]]:
        """All numbers of the suite in 0..100, and for each that is None the reason."""
        results = predictions.to_coco(self.annotations)
        kept = {
            iou: [r for r, keep in zip(results, mask, strict=True) if keep]
            for iou, mask in predictions.nms_keep.items()
        }
        metrics = self._numbers(self.evaluate(results), "")
        metrics |= self._numbers(self.evaluate(kept[0.5]), "_nms")
        for iou, name in ((0.6, "AP_nms_06"), (0.7, "AP_nms_07")):
            metrics[name] = self._numbers(self.evaluate(kept[iou], only_all=True), "")["AP"]
        for name, ap in (("nms_gain", "AP"), ("AP50_nms_gain", "AP50")):
            without, with_nms = metrics[ap], metrics[ap + "_nms"]
            metrics[name] = None if without is None else with_nms - without
        found = [
            self._match_image(predictions, image, rows)
            for image, rows in enumerate(_rows_of_images(predictions.image, len(self.annotations)))
        ]
        metrics["duplicates_per_object"] = duplicates.per_object(found, 0.9)
        metrics["duplicates_per_object_half_recall"] = duplicates.per_object(found, 0.5)
        metrics["score_threshold"] = duplicates.threshold(found, 0.9)  # of duplicates_per_object
        return metrics, {name: self._why_none(name) for name, v in metrics.items() if v is None}

    def _numbers(self, evaluation: COCOeval | None, suffix: str) -> dict[str, float | None]:
        """AP and AR by name. An area without objects has no AP: None."""
        if evaluation is None:
            areas = self.annotations.areas[~self.annotations.crowd]
            has = [bool(((areas >= low) & (areas <= high)).any()) for low, high in self.ranges]
            zero = dict(zip(("AP", "APs", "APm", "APl"), has, strict=True))
            zero |= {"AP50": has[0], "AP75": has[0], "AR100": has[0]}
            return {name + suffix: 0.0 if there else None for name, there in zero.items()}
        precision = evaluation.eval["precision"][..., -1]  # [T, R, K, areas] at 100 detections
        recall = evaluation.eval["recall"][..., -1]  # [T, K, areas]
        numbers = {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
            "AR100": _mean(recall[..., 0]),
        }
        for area in range(1, precision.shape[-1]):
            numbers["AP" + AREAS[area][0]] = _mean(precision[..., area])
        return {name + suffix: value for name, value in numbers.items()}

    def _match_image(self, predictions: Predictions, image: int, rows: slice) -> duplicates.Found:
        truth = self.annotations.rows(image)
        single = ~self.annotations.crowd[truth]
        return duplicates.find(
            predictions.scores[rows],
            predictions.labels[rows],
            _pairwise_iou(predictions.boxes_xyxy[rows], self.annotations.boxes_xyxy[truth][single]),
            self.annotations.labels[truth][single],
        )

    def _why_none(self, metric: str) -> str:
        if metric.startswith(("duplicates", "score")):
            return "no object was found"
        area = {"APs": "small ", "APm": "medium ", "APl": "large "}.get(metric.split("_")[0], "")
        return f"there are no {area}objects to find"


def _mean(values: np.ndarray) -> float | None:
    """Mean in 0..100 over what is defined (pycocotools marks the rest with -1)."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None


def _rows_of_images(image: np.ndarray, count: int) -> list[slice]:
    first = np.searchsorted(image, np.arange(count + 1))
    return [slice(a, b) for a, b in zip(first[:-1], first[1:], strict=True)]


def _pairwise_iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """[D, 4], [N, 4] -> [D, N]."""
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    area_a = (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(-1)
    area_b = (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(-1)
    return overlap / np.maximum(area_a[:, None] + area_b[None] - overlap, 1e-12)
