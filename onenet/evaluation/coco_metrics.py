"""All numbers of a set of detections: COCO's, TIDE's errors and duplicates, without and with NMS.

One forward pass serves both: NMS is a mask over the detections. T IoU thresholds, R levels of
recall, K classes, A ranges of areas, M limits on the detections of an image.
"""

from typing import NamedTuple

import numpy as np

from onenet.config.options import TIDE
from onenet.data.annotations import Annotations
from onenet.evaluation import duplicates
from onenet.evaluation.evaluators import AREAS, EVALUATORS, HotcocoEvaluator
from onenet.evaluation.predictions import Predictions
from onenet.system.memory import without_collection

AREA_BOUNDS = (32**2, 96**2)  # small | medium | large, square pixels at a shortest side of 512
SCORES = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)))  # of the curves
NMS_IOU = 0.5  # of the metrics with the suffix _nms

Numbers = dict[str, float | None]  # None where undefined


class Scores(NamedTuple):
    """What is known of a set of detections.

    `metrics` are in 0..100 but for the duplicates per object and the score threshold; `notes` say
    why one is None. Of `curves`, `nms` has rows of IoU, AP, AP50 with NMS at each IoU of
    `Predictions.nms_keep`; `duplicates` has rows of score, duplicates, matched objects for
    thresholds on the score, all classes together; `objects` is how many there are to find.
    """

    metrics: Numbers
    notes: dict[str, str]
    curves: dict[str, list | int]


def area_ranges(area_scale: float) -> list[list[float]]:
    """COCO's all, small, medium, large, with the bounds times `area_scale`."""
    small, large = (bound * area_scale for bound in AREA_BOUNDS)
    return [[0, 1e10], [0, small], [small, large], [large, 1e10]]


class Scorer:
    """Scores sets of detections against one ground truth.

    `area_scale`: factor on the bounds of small, medium and large; 1 is COCO's own. `backend`: one
    of EVALUATORS. TIDE's errors are hotcoco's in any case.
    """

    def __init__(self, annotations: Annotations, area_scale: float = 1.0, backend: str = "hotcoco"):
        self.annotations = annotations
        self.ranges = area_ranges(area_scale)
        self._evaluator = EVALUATORS[backend](annotations)
        self._hotcoco = (
            self._evaluator
            if isinstance(self._evaluator, HotcocoEvaluator)
            else HotcocoEvaluator(annotations)
        )

    @without_collection()
    def score(self, predictions: Predictions) -> Scores:
        """Evaluates the detections as they are, and with NMS at each IoU of `nms_keep`."""
        loaded = self._evaluator.load(predictions)
        keep = predictions.nms_keep
        with_nms = {iou: self._coco(loaded[mask], iou != NMS_IOU) for iou, mask in keep.items()}
        metrics = self._coco(loaded)
        metrics |= {f"{name}_nms": value for name, value in with_nms[NMS_IOU].items()}
        metrics |= {"AP_nms_06": with_nms[0.6]["AP"], "AP_nms_07": with_nms[0.7]["AP"]}
        for gain, name in (("nms_gain", "AP"), ("AP50_nms_gain", "AP50")):
            before, after = metrics[name], metrics[f"{name}_nms"]
            metrics[gain] = None if before is None or after is None else after - before
        rows = self._hotcoco.load(predictions)
        metrics |= self._tide(rows)
        metrics |= {f"{name}_nms": v for name, v in self._tide(rows[keep[NMS_IOU]]).items()}
        matching = duplicates.find(predictions, self.annotations)
        metrics["duplicates_per_object"] = duplicates.per_object(matching, 0.9)
        metrics["duplicates_per_object_half_recall"] = duplicates.per_object(matching, 0.5)
        metrics["score_threshold"] = duplicates.threshold(matching, 0.9)  # of the former
        curves: dict[str, list | int] = {
            "nms": [[iou, numbers["AP"], numbers["AP50"]] for iou, numbers in with_nms.items()],
            "duplicates": [[least, *duplicates.counts(matching, least)] for least in SCORES],
            "objects": int((~self.annotations.crowd).sum()),
        }
        notes = {name: self._why_none(name) for name, v in metrics.items() if v is None}
        return Scores(metrics, notes, curves)

    def by_class(self, predictions: Predictions, metric: str = "AP") -> list[tuple]:
        """AP, or AP50, of each class without and with NMS, in 0..100; None without objects."""
        loaded, ious = self._evaluator.load(predictions), {"AP": slice(None), "AP50": slice(1)}
        columns = []
        for detections in (loaded, loaded[predictions.nms_keep[NMS_IOU]]):
            if not len(detections):
                columns.append([0.0] * len(self.annotations.category_ids))
                continue
            precision = self._evaluator.evaluate(detections, self.ranges[:1]).precision
            of_classes = precision[ious[metric], :, :, 0, -1].transpose(2, 0, 1)
            columns.append([_mean(values) for values in of_classes])
        return [*zip(*columns, strict=True)]

    def _coco(self, detections: np.ndarray, only_all: bool = False) -> Numbers:
        """AP and AR by name. An area without objects has none. `only_all`: no areas."""
        if not len(detections):  # pycocotools would raise
            return self._without_detections()
        ranges = self.ranges[:1] if only_all else self.ranges
        evaluated = self._evaluator.evaluate(detections, ranges)
        precision, recall = evaluated.precision[..., -1], evaluated.recall[..., -1]  # at 100
        numbers = {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
            "AR100": _mean(recall[..., 0]),
        }
        for area in range(1, precision.shape[-1]):
            numbers["AP" + AREAS[area][0]] = _mean(precision[..., area])
        return numbers

    def _without_detections(self) -> Numbers:
        areas = self.annotations.areas[~self.annotations.crowd]
        there = [bool(((areas >= low) & (areas <= high)).any()) for low, high in self.ranges]
        names = (("AP", "AP50", "AP75", "AR100"), ("APs",), ("APm",), ("APl",))
        return {
            name: 0.0 if has_objects else None
            for of_area, has_objects in zip(names, there, strict=True)
            for name in of_area
        }

    def _tide(self, detections: np.ndarray) -> Numbers:
        """dAP_cls, ..., dAP_miss: what AP50 lacks for each kind of error."""
        if not len(detections) or self.annotations.crowd.all():
            return {f"dAP_{error}": None for error in TIDE}
        errors = self._hotcoco.tide(detections)
        return {f"dAP_{error}": 100 * errors[error.capitalize()] for error in TIDE}

    def _why_none(self, metric: str) -> str:
        if metric.startswith(("duplicates", "score")):
            return "no object was found"
        if metric.startswith("dAP") and not self.annotations.crowd.all():
            return "there are no detections"
        area = {"APs": "small ", "APm": "medium ", "APl": "large "}.get(metric.split("_")[0], "")
        return f"there are no {area}objects to find"


def _mean(values: np.ndarray) -> float | None:
    """Mean in 0..100 over what is defined (pycocotools marks the rest with -1)."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None
