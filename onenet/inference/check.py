"""The check of an export: does it detect what the run's own network detects?

Both get the same pixels. D detections of an image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from onenet.data.annotations import Annotations
from onenet.data.augment import whole_view
from onenet.data.loading import pad, resample
from onenet.data.sizes import ImageSize
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import NMS_IOUS, concatenate, in_original_pixels
from onenet.inference.detector import TrainedDetector
from onenet.inference.formats import Runner
from onenet.postprocess import nms_masks
from onenet.runs.evaluations import default_evaluation
from onenet.structures import Detections
from onenet.system.plural import plural

FEW_IMAGES = 50
BOX_TOLERANCE = 0.1  # pixels of the network's input
SCORE_TOLERANCE = 1e-3
AP_TOLERANCE = 0.05
TIE = 1e-4  # detections this close to the last score may be in one top 100 and not in the other


@dataclass
class Verdict:
    """`differences` has the largest ones, of matched detections. `unmatched`: detections that only
    one of both has, without ties at the end of the top 100. `ap`: metric -> (network, export)."""

    images: int = 0
    shrunk: int = 0  # images that were scaled down to fit the graph
    detections: int = 0
    unmatched: int = 0
    differences: dict[str, float] = field(default_factory=lambda: {"box": 0.0, "score": 0.0})
    ap: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """What does not agree, a phrase each."""
        problems = [] if self.images else ["no image could be compared"]
        if self.unmatched:
            problems.append(f"{plural(self.unmatched, 'detection')} without a counterpart")
        for name, most in (("box", BOX_TOLERANCE), ("score", SCORE_TOLERANCE)):
            if not self.differences[name] <= most:  # NaN is a difference, too
                problems.append(
                    f"a {name} differs by {self.differences[name]:.3g} (at most {most})"
                )
        for metric, (network, export) in self.ap.items():
            one, other = (np.nan if v is None else v for v in (network, export))
            if (network is None) != (export is None) or abs(one - other) > AP_TOLERANCE:
                problems.append(f"{metric} is {export}, not {network}")
        return problems

    def lines(self) -> list[str]:
        """The verdict in words, for the screen."""
        box, score = self.differences["box"], self.differences["score"]
        lines = [
            f"{plural(self.images, 'image')}, {plural(self.detections, 'detection')}: boxes differ "
            f"by at most {box:.2g} px, scores by {score:.2g}"
        ]
        lines += [
            f"{metric}: {network:.2f} by the network, {export:.2f} by the export"
            for metric, (network, export) in self.ap.items()
            if network is not None and export is not None
        ]
        if not self.ap:
            lines.append("AP was not compared: the images have no annotations")
        if self.shrunk:
            lines.append(
                f"{plural(self.shrunk, 'image')} had to be scaled down to the size of the export, "
                "which costs AP: --dynamic takes every size"
            )
        if self.images < FEW_IMAGES:
            lines.append(f"fewer than {FEW_IMAGES} images: the check is weak")
        return [*lines, *(f"FAILED: {problem}" for problem in self.problems)]


def compare(
    detector: TrainedDetector,
    run: Runner,
    inputs: Iterable["Input"],
    annotations: Annotations | None = None,
) -> Verdict:
    """Compares the detector's network with the exported one on each input.

    `annotations`: of the inputs, to compare AP.
    """
    verdict, columns = Verdict(), ({}, {})
    with torch.inference_mode():
        for each in inputs:
            expected = detector.top_detections(detector.network, each.images, each.size_hw)
            actual = clipped(run(each.images), each.size_hw)
            count_differences(verdict, expected, actual)
            verdict.shrunk += each.is_shrunk
            for of_images, detections in zip(columns, (expected, actual), strict=True):
                [masks] = nms_masks([detections], NMS_IOUS)
                arrays = in_original_pixels(detections, each.size_hw, each.original_hw)
                of_images[each.number] = (*arrays, masks)
    verdict.images = len(columns[0])
    if annotations is not None and columns[0]:
        spec = default_evaluation(detector.config)
        scorer = Scorer(annotations, spec.area_scale, detector.config.eval.backend)
        scores = [scorer.score(concatenate(of_images)).metrics for of_images in columns]
        verdict.ap = {m: (scores[0][m], scores[1][m]) for m in ("AP", "AP_nms")}
    return verdict


def clipped(outputs: tuple[Tensor, Tensor, Tensor], size_hw: tuple[int, int]) -> Detections:
    """Returns the exported outputs of one image as detections: clipped to the image without its
    padding, without empty boxes."""
    boxes, scores, labels = (each[0] for each in outputs)
    limits = torch.tensor([*size_hw[::-1]] * 2, dtype=boxes.dtype)
    boxes = boxes.minimum(limits)
    mask = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & (scores > 0)
    return Detections(boxes[mask], scores[mask], labels[mask])


def count_differences(verdict: Verdict, expected: Detections, actual: Detections) -> None:
    """Matches detections of one class, one to one, the nearest first, and notes what differs."""
    box = (expected.boxes_xyxy[:, None] - actual.boxes_xyxy).abs().amax(dim=2)  # [D, D']
    score = (expected.scores[:, None] - actual.scores).abs()
    distance = box + score
    distance[expected.labels[:, None] != actual.labels] = torch.inf
    pairs = match_nearest(distance.numpy(), 10 * BOX_TOLERANCE)
    rows, columns = pairs[:, 0], pairs[:, 1]
    for name, values in (("box", box), ("score", score)):
        largest = float(values[rows, columns].max()) if len(pairs) else 0.0
        verdict.differences[name] = max(verdict.differences[name], largest)
    lowest = min(s.scores.min().item() if len(s.scores) else 0.0 for s in (expected, actual))
    unmatched = [
        *np.delete(expected.scores.numpy(), rows),
        *np.delete(actual.scores.numpy(), columns),
    ]
    verdict.unmatched += sum(not value <= lowest + TIE for value in unmatched)
    verdict.detections += len(expected.scores)


def match_nearest(distance: np.ndarray, most: float) -> np.ndarray:
    """Returns one-to-one pairs [M, 2] of rows and columns of the matrix, the nearest first, none
    further apart than `most`."""
    pairs = []
    rows, columns = np.nonzero(distance <= most)
    order = np.argsort(distance[rows, columns], kind="stable")
    used_rows, used_columns = set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Input:
    """One image as the network gets it."""

    number: int  # among the images
    images: Tensor  # [1, 3, H, W] uint8
    size_hw: tuple[int, int]  # without padding
    original_hw: tuple[int, int]
    is_shrunk: bool = False  # to fit the graph


def inputs_of(
    pictures: Iterable[np.ndarray], size: ImageSize, graph_hw: tuple[int, int] | None
) -> Iterator[Input]:
    """Yields images, [H, W, 3] uint8, resized and padded as in evaluation.

    `graph_hw`: the only size that the export takes; larger images are scaled down to fit.
    """
    for number, pixels in enumerate(pictures):
        view, shrink = whole_view(pixels.shape[:2], size), 1.0
        if graph_hw is not None:
            (height, width), (most_height, most_width) = view.size_hw, graph_hw
            shrink = min(1.0, most_height / height, most_width / width)
            size_hw = max(1, int(height * shrink + 1e-6)), max(1, int(width * shrink + 1e-6))
            view = replace(view, size_hw=size_hw)
        images = pad([resample(pixels, view)], graph_hw or (1, 1))
        yield Input(number, images, view.size_hw, pixels.shape[:2], shrink < 1)
