"""COCO's numbers for stored detections; with and without NMS from one forward pass.

pycocotools is the reference. faster-coco-eval does the same in C++, and gives the same numbers.
I images, D detections of all images, K classes.
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

EVALUATORS = {  # eval.backend -> its index of a data set, its evaluation
    "pycocotools": (pycocotools.coco.COCO, COCOeval),
    "faster": (faster_coco_eval.COCO, COCOeval_faster),
}
AREA_BOUNDS = (32**2, 96**2)  # small | medium | large, square pixels at a shortest side of 512
AREAS = ("all", "small", "medium", "large")
SCORES = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)))  # of the curves


def area_ranges(area_scale: float) -> list[list[float]]:
    """COCO's all, small, medium, large, with the bounds times `area_scale`."""
    small, large = (bound * area_scale for bound in AREA_BOUNDS)
    return [[0, 1e10], [0, small], [small, large], [large, 1e10]]


class Scorer:
    """Ground truth, indexed once, against which several sets of detections are scored.

    `area_scale`: factor on the bounds of small, medium and large; 1 is COCO's own. `backend`: one
    of EVALUATORS.
    """

    def __init__(self, annotations: Annotations, area_scale: float = 1.0, backend: str = "faster"):
        self.annotations = annotations
        self.ranges = area_ranges(area_scale)
        self._index, self._evaluation = EVALUATORS[backend]
        self.truth = self._indexed(annotations.to_coco())

    def _indexed(self, data_set: dict) -> pycocotools.coco.COCO | faster_coco_eval.COCO:
        index = self._index()
        index.dataset = data_set
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index

    @without_collection()
    def load(self, predictions: Predictions) -> list[dict]:
        """COCO's results format with what the evaluations ask for beside it, as their `loadRes`
        adds it. Any part of the list can be evaluated."""
        results = predictions.to_coco(self.annotations)
        areas = predictions.to_xywh()[:, 2:].prod(axis=1).tolist()
        for number, (row, area) in enumerate(zip(results, areas, strict=True), 1):
            row |= {"id": number, "area": area, "iscrowd": 0}
        return results

    @without_collection()
    def evaluate(
        self, loaded: list[dict], only_all: bool = False
    ) -> COCOeval | COCOeval_faster | None:
        """After `accumulate`; None where there are no detections (pycocotools would raise)."""
        if not loaded:
            return None
        parts = {key: self.truth.dataset[key] for key in ("images", "categories")}
        with contextlib.redirect_stdout(io.StringIO()):
            detections = self._indexed({**parts, "annotations": loaded})
            evaluation = self._evaluation(self.truth, detections, "bbox")
            areas = slice(0, 1) if only_all else slice(None)
            evaluation.params.areaRng = self.ranges[areas]
            evaluation.params.areaRngLbl = list(AREAS[areas])
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    @without_collection()
    def score(self, predictions: Predictions) -> tuple[dict[str, float | None], dict[str, str]]:
        """All numbers of the suite in 0..100, and for each that is None the reason."""
        loaded = self.load(predictions)
        kept = {iou: _where(loaded, predictions.nms_keep[iou]) for iou in (0.5, 0.6, 0.7)}
        metrics = self._numbers(self.evaluate(loaded), "")
        metrics |= self._numbers(self.evaluate(kept[0.5]), "_nms")
        for iou, name in ((0.6, "AP_nms_06"), (0.7, "AP_nms_07")):
            metrics[name] = self._numbers(self.evaluate(kept[iou], only_all=True), "")["AP"]
        for name, ap in (("nms_gain", "AP"), ("AP50_nms_gain", "AP50")):
            without, with_nms = metrics[ap], metrics[ap + "_nms"]
            metrics[name] = None if without is None else with_nms - without
        found = duplicates.find(predictions, self.annotations)
        metrics["duplicates_per_object"] = duplicates.per_object(found, 0.9)
        metrics["duplicates_per_object_half_recall"] = duplicates.per_object(found, 0.5)
        metrics["score_threshold"] = duplicates.threshold(found, 0.9)  # of duplicates_per_object
        return metrics, {name: self._why_none(name) for name, v in metrics.items() if v is None}

    def curves(self, predictions: Predictions) -> dict[str, list]:
        """Of what the threshold of NMS, and that of the score, change.

        `nms`: rows of IoU, AP, AP50 (0..100, None without objects) with NMS at each IoU of
        `nms_keep`; `duplicates`: rows of score, duplicates, matched objects at a threshold on the
        score, all classes together; `objects`: how many there are to find.
        """
        loaded, nms = self.load(predictions), []
        for iou, mask in predictions.nms_keep.items():
            numbers = self._numbers(self.evaluate(_where(loaded, mask), only_all=True), "")
            nms.append([iou, numbers["AP"], numbers["AP50"]])
        found = duplicates.find(predictions, self.annotations)
        rows = [[t, *duplicates.counts(found, t)] for t in SCORES]
        return {"nms": nms, "duplicates": rows, "objects": int((~self.annotations.crowd).sum())}

    def _numbers(
        self, evaluation: COCOeval | COCOeval_faster | None, suffix: str
    ) -> dict[str, float | None]:
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

    def _why_none(self, metric: str) -> str:
        if metric.startswith(("duplicates", "score")):
            return "no object was found"
        area = {"APs": "small ", "APm": "medium ", "APl": "large "}.get(metric.split("_")[0], "")
        return f"there are no {area}objects to find"


def _where(rows: list[dict], mask: np.ndarray) -> list[dict]:
    return [row for row, keep in zip(rows, mask.tolist(), strict=True) if keep]


def _mean(values: np.ndarray) -> float | None:
    """Mean in 0..100 over what is defined (pycocotools marks the rest with -1)."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None
