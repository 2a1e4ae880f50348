"""COCO metrics of stored detections, with and without NMS from one forward pass.

pycocotools is the reference; faster-coco-eval is a C++ version that returns the same numbers.
K classes, T IoU thresholds, R recall levels.
"""

import contextlib
import io

import faster_coco_eval
import numpy as np
import pycocotools.coco
from faster_coco_eval import COCOeval_faster
from pycocotools.cocoeval import COCOeval

from onenet.data.annotations import Annotations
from onenet.evaluation import duplicates
from onenet.evaluation.predictions import Predictions
from onenet.system.memory import without_collection

EVALUATORS = {  # eval.backend -> (index of a data set, evaluation)
    "pycocotools": (pycocotools.coco.COCO, COCOeval),
    "faster": (faster_coco_eval.COCO, COCOeval_faster),
}
AREA_BOUNDS = (32**2, 96**2)  # small | medium | large, in square pixels at a shortest side of 512
AREAS = ("all", "small", "medium", "large")
SCORES = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)))  # thresholds of the curves


def area_ranges(area_scale: float) -> list[list[float]]:
    """Returns COCO's ranges all, small, medium and large with their bounds times `area_scale`."""
    small, large = (bound * area_scale for bound in AREA_BOUNDS)
    return [[0, 1e10], [0, small], [small, large], [large, 1e10]]


class Scorer:
    """Scores sets of detections against one ground truth, which is indexed only once.

    `area_scale` multiplies the bounds of small, medium and large; 1 gives COCO's. `backend` is a
    key of EVALUATORS.
    """

    def __init__(self, annotations: Annotations, area_scale: float = 1.0, backend: str = "faster"):
        self.annotations = annotations
        self.ranges = area_ranges(area_scale)
        self._index, self._evaluation = EVALUATORS[backend]
        self.truth = self._build_index(annotations.to_coco())

    def _build_index(self, data_set: dict) -> pycocotools.coco.COCO | faster_coco_eval.COCO:
        index = self._index()
        index.dataset = data_set
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index

    @without_collection()
    def load(self, predictions: Predictions) -> list[dict]:
        """Returns COCO's results format plus the keys that the backends' `loadRes` would add.

        Any subset of the list can be passed to `evaluate`.
        """
        results = predictions.to_coco(self.annotations)
        areas = predictions.to_xywh()[:, 2:].prod(axis=1).tolist()
        for number, (row, area) in enumerate(zip(results, areas, strict=True), 1):
            row |= {"id": number, "area": area, "iscrowd": 0}
        return results

    @without_collection()
    def evaluate(
        self, results: list[dict], by_area: bool = True
    ) -> COCOeval | COCOeval_faster | None:
        """Returns the accumulated evaluation; None without detections (pycocotools would raise).

        `by_area`: also evaluate small, medium and large objects separately.
        """
        if not results:
            return None
        header = {key: self.truth.dataset[key] for key in ("images", "categories")}
        with contextlib.redirect_stdout(io.StringIO()):
            detections = self._build_index({**header, "annotations": results})
            evaluation = self._evaluation(self.truth, detections, "bbox")
            areas = slice(None) if by_area else slice(0, 1)
            evaluation.params.areaRng = self.ranges[areas]
            evaluation.params.areaRngLbl = list(AREAS[areas])
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    @without_collection()
    def score(self, predictions: Predictions) -> tuple[dict[str, float | None], dict[str, str]]:
        """Returns all metrics of the suite, and for each metric that is None the reason.

        AP and AR are in 0..100.
        """
        results = self.load(predictions)
        after_nms = {iou: _select(results, predictions.nms_keep[iou]) for iou in (0.5, 0.6, 0.7)}
        metrics = self._metrics(self.evaluate(results), "")
        metrics |= self._metrics(self.evaluate(after_nms[0.5]), "_nms")
        for iou, name in ((0.6, "AP_nms_06"), (0.7, "AP_nms_07")):
            metrics[name] = self._metrics(self.evaluate(after_nms[iou], by_area=False), "")["AP"]
        for name, ap in (("nms_gain", "AP"), ("AP50_nms_gain", "AP50")):
            before, after = metrics[ap], metrics[ap + "_nms"]
            metrics[name] = None if before is None else after - before
        matching = duplicates.find(predictions, self.annotations)
        metrics["duplicates_per_object"] = duplicates.per_object(matching, 0.9)
        metrics["duplicates_per_object_half_recall"] = duplicates.per_object(matching, 0.5)
        metrics["score_threshold"] = duplicates.threshold(matching, 0.9)  # for the 0.9 above
        return metrics, {name: self._why_none(name) for name, v in metrics.items() if v is None}

    def curves(self, predictions: Predictions) -> dict[str, list]:
        """Returns how the metrics vary with the threshold of NMS and with that on the score.

        `nms`: rows of IoU, AP, AP50 (0..100, None without objects) with NMS at each IoU of
        `nms_keep`. `duplicates`: rows of score threshold, duplicates, matched objects, over all
        classes. `objects`: the number of objects, without crowds.
        """
        results, nms = self.load(predictions), []
        for iou, mask in predictions.nms_keep.items():
            metrics = self._metrics(self.evaluate(_select(results, mask), by_area=False), "")
            nms.append([iou, metrics["AP"], metrics["AP50"]])
        matching = duplicates.find(predictions, self.annotations)
        rows = [[t, *duplicates.counts(matching, t)] for t in SCORES]
        return {"nms": nms, "duplicates": rows, "objects": int((~self.annotations.crowd).sum())}

    def _metrics(
        self, evaluation: COCOeval | COCOeval_faster | None, suffix: str
    ) -> dict[str, float | None]:
        """Returns AP and AR by name; None for an area range without objects."""
        if evaluation is None:
            areas = self.annotations.areas[~self.annotations.crowd]
            flags = [bool(((areas >= low) & (areas <= high)).any()) for low, high in self.ranges]
            has_objects = dict(zip(("AP", "APs", "APm", "APl"), flags, strict=True))
            has_objects |= dict.fromkeys(("AP50", "AP75", "AR100"), flags[0])
            return {name + suffix: 0.0 if flag else None for name, flag in has_objects.items()}
        precision = evaluation.eval["precision"][..., -1]  # [T, R, K, areas] at 100 detections
        recall = evaluation.eval["recall"][..., -1]  # [T, K, areas]
        metrics = {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
            "AR100": _mean(recall[..., 0]),
        }
        for area in range(1, precision.shape[-1]):
            metrics["AP" + AREAS[area][0]] = _mean(precision[..., area])
        return {name + suffix: value for name, value in metrics.items()}

    def _why_none(self, metric: str) -> str:
        if metric.startswith(("duplicates", "score")):
            return "no object was found"
        area = {"APs": "small ", "APm": "medium ", "APl": "large "}.get(metric.split("_")[0], "")
        return f"there are no {area}objects to find"


def _select(rows: list[dict], mask: np.ndarray) -> list[dict]:
    return [row for row, keep in zip(rows, mask.tolist(), strict=True) if keep]


def _mean(values: np.ndarray) -> float | None:
    """Returns the mean in 0..100, ignoring the -1 that marks undefined values in pycocotools."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None
