"""COCO's evaluation by one of three packages, which give the same numbers.

pycocotools is the reference. hotcoco (Rust) equals it to the last bit, faster-coco-eval (C++) up to
rounding. D detections and N objects of all images, K classes, A ranges of areas.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import faster_coco_eval
import hotcoco
import numpy as np
import pycocotools.coco
from faster_coco_eval import COCOeval_faster
from pycocotools.cocoeval import COCOeval

from onenet.data.annotations import Annotations
from onenet.evaluation.predictions import Predictions, to_xywh

AREAS = ("all", "small", "medium", "large")
AreaRange = Sequence[float]  # least and largest area of an object, square pixels


@dataclass(frozen=True)
class Accumulated:
    """What `COCOeval.accumulate` computes, -1 where it is undefined: for T IoU thresholds, R levels
    of recall, and M limits on the detections of an image (1, 10, 100)."""

    precision: np.ndarray  # [T, R, K, A, M]
    recall: np.ndarray  # [T, K, A, M]


class Evaluator(Protocol):
    """Indexes the ground truth once, and evaluates any number of sets of detections against it."""

    def __init__(self, annotations: Annotations): ...

    def load(self, predictions: Predictions) -> np.ndarray:
        """Returns the detections as `evaluate` takes them: [D] or [D, 7], to be masked by row."""

    def evaluate(self, detections: np.ndarray, ranges: Sequence[AreaRange]) -> Accumulated:
        """Evaluates at least one detection, for the first len(ranges) of AREAS."""


class HotcocoEvaluator:
    """eval.backend=hotcoco"""

    def __init__(self, annotations: Annotations):
        self._annotations = annotations
        self._category_ids = np.asarray(annotations.category_ids, dtype=np.int64)
        header = annotations.coco_header()
        self._truth = hotcoco.COCO.from_arrays(
            header["images"],
            header["categories"],
            np.repeat(annotations.image_ids, np.diff(annotations.first)),
            self._category_ids[annotations.labels],
            to_xywh(annotations.boxes_xyxy),
            ids=np.arange(1, 1 + len(annotations.labels)),
            area=annotations.areas,
            iscrowd=annotations.crowd,
        )

    def load(self, predictions: Predictions) -> np.ndarray:
        """[D, 7] float64: image id, x, y, width, height, score, category id."""
        image_ids = self._annotations.image_ids[predictions.image]
        category_ids = self._category_ids[predictions.labels]
        return np.column_stack([image_ids, predictions.to_xywh(), predictions.scores, category_ids])

    def evaluate(self, detections: np.ndarray, ranges: Sequence[AreaRange]) -> Accumulated:
        evaluation = self._evaluation(detections, ranges)
        evaluation.evaluate()
        evaluation.accumulate()
        return Accumulated(evaluation.eval["precision"], evaluation.eval["recall"])

    def tide(self, detections: np.ndarray) -> dict[str, float]:
        """Returns by how much AP50 (0..1) would rise without each kind of error: Cls, Loc, Both,
        Dupe, Bkg, Miss (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
        Errors", 2020), with a foreground IoU of 0.5 and a background IoU of 0.1."""
        evaluation = self._evaluation(detections, [[0, 1e10]])
        evaluation.evaluate()
        return evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"]

    def _evaluation(self, detections: np.ndarray, ranges: Sequence[AreaRange]) -> hotcoco.COCOeval:
        evaluation = hotcoco.COCOeval(self._truth, self._truth.load_res(detections), "bbox")
        params = evaluation.params
        params.areaRng, params.areaRngLbl = [*ranges], [*AREAS[: len(ranges)]]
        evaluation.params = params
        return evaluation


class _Reference:
    """pycocotools, or a package with its interface."""

    index: Callable[[], Any]
    evaluation: Callable[..., Any]

    def __init__(self, annotations: Annotations):
        self._annotations = annotations
        self._truth = self._indexed(annotations.to_coco())

    def load(self, predictions: Predictions) -> np.ndarray:
        """[D] of dictionaries: COCO's results format, with what `loadRes` adds to it."""
        results = predictions.to_coco(self._annotations)
        areas = predictions.to_xywh()[:, 2:].prod(axis=1).tolist()
        for number, (row, area) in enumerate(zip(results, areas, strict=True), 1):
            row |= {"id": number, "area": area, "iscrowd": 0}
        return np.array(results, dtype=object)

    def evaluate(self, detections: np.ndarray, ranges: Sequence[AreaRange]) -> Accumulated:
        parts = {key: self._truth.dataset[key] for key in ("images", "categories")}
        with contextlib.redirect_stdout(io.StringIO()):
            index = self._indexed({**parts, "annotations": detections.tolist()})
            evaluation = self.evaluation(self._truth, index, "bbox")
            evaluation.params.areaRng = [*ranges]
            evaluation.params.areaRngLbl = [*AREAS[: len(ranges)]]
            evaluation.evaluate()
            evaluation.accumulate()
        return Accumulated(evaluation.eval["precision"], evaluation.eval["recall"])

    def _indexed(self, data_set: dict) -> Any:
        index = self.index()
        index.dataset = data_set
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index


class FasterEvaluator(_Reference):
    """eval.backend=faster"""

    index, evaluation = faster_coco_eval.COCO, COCOeval_faster


class PycocotoolsEvaluator(_Reference):
    """eval.backend=pycocotools"""

    index, evaluation = pycocotools.coco.COCO, COCOeval


EVALUATORS: dict[str, type[Evaluator]] = {  # eval.backend
    "hotcoco": HotcocoEvaluator,
    "faster": FasterEvaluator,
    "pycocotools": PycocotoolsEvaluator,
}
