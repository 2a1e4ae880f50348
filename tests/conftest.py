"""Shared by the tests: one thread, and small hand-made objects, predictions and data sets.

Run: pytest
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from onenet.assigners import Matcher
from onenet.boxes import grid_points
from onenet.costs import CostWeights, Pairs
from onenet.data.annotations import Annotations
from onenet.evaluation.predict import NMS_IOUS
from onenet.evaluation.predictions import Predictions
from onenet.postprocess import nms_masks
from onenet.structures import Detections, HeadOutput, Matches, Target

torch.set_num_threads(1)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests run on the CPU even beside a GPU

SLOWEST = ("faults", "cli", "rehearsal", "loop", "hydra_app", "detectors", "distributed", "search")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the files that take longest first, so that no core idles at the end."""
    rank = {f"test_{name}.py": number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, size_hw: tuple[int, int], generator: torch.Generator) -> Tensor:
    """[count, 4] pixels inside the image, not empty."""
    height, width = size_hw
    corners = torch.rand(2, count, 2, generator=generator) * torch.tensor([width, height])
    low, high = corners.amin(0), corners.amax(0)
    return torch.cat([low, high + 0.5], dim=1)


def make_target(labels: Sequence[int], boxes_xyxy, size_hw=(40, 60), image_id: int = 1) -> Target:
    return Target(
        gt_labels=torch.tensor(list(labels), dtype=torch.int64),
        gt_xyxy=torch.as_tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4),
        size_hw=size_hw,
        image_id=image_id,
    )


def random_target(count: int, classes: int, size_hw, generator, image_id: int = 1) -> Target:
    labels = torch.randint(classes, (count,), generator=generator).tolist()
    return make_target(labels, random_boxes(count, size_hw, generator), size_hw, image_id)


def random_output(images: int, classes: int, generator, grid_hw=(3, 5), stride=12) -> HeadOutput:
    """Logits around zero and boxes around the points of a small grid."""
    points = grid_points(*grid_hw, stride)
    sides = 10 * torch.rand(images, len(points), 4, generator=generator)
    boxes = torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=-1)
    logits = 3 * torch.randn(images, len(points), classes, generator=generator)
    return HeadOutput(logits, boxes, points)


class GivenCost:
    """A matching cost that takes the class logits as its matrix."""

    # It has no lower bound.
    cls_form, weights, own = "cross_entropy", CostWeights(cls=-1.0), ()

    def class_cost(self, logits: Tensor) -> Tensor:
        return logits

    def of(self, pairs: Pairs, class_cost: Tensor | None = None) -> Tensor:
        return pairs.logits

    def __call__(self, output: HeadOutput, image: int, target: Target) -> Tensor:
        return output.class_logits[image][:, target.gt_labels]


def assign(matcher: Matcher, cost: Tensor, **settings) -> Matches:
    """The matches of `min_cost` or `hungarian` for the cost matrix [P, N]."""
    slots, objects = cost.shape
    output = HeadOutput(cost[None], torch.zeros(1, slots, 4), torch.zeros(slots, 2))
    boxes = torch.tensor([[0.0, 0, 1, 1]]).expand(objects, 4)
    (matches,) = matcher(GivenCost(), output, [make_target(range(objects), boxes)], **settings)
    return matches


def on_each_matrix(assigner: Callable[[Tensor], Matches]) -> Matcher:
    """A matcher that calls the assigner with the cost matrix of each image."""
    return lambda cost, output, targets: [
        assigner(cost(output, image, target)) for image, target in enumerate(targets)
    ]


def make_annotations(
    sizes_hw: Sequence[tuple[int, int]],
    objects: Sequence[Sequence[tuple]],
    classes: int = 3,
    image_ids: Sequence[int] | None = None,
) -> Annotations:
    """`objects`: per image, its (label, box) or (label, box, is_crowd)."""
    rows = [row for of_image in objects for row in of_image]
    boxes = np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4)
    return Annotations(
        category_ids=[3 * k + 2 for k in range(classes)],  # with gaps, as in COCO
        category_names=[f"class {k}" for k in range(classes)],
        image_ids=np.arange(1, len(objects) + 1) if image_ids is None else np.array(image_ids),
        sizes_hw=np.array(sizes_hw, dtype=np.int64),
        first=np.cumsum([0] + [len(of_image) for of_image in objects]),
        boxes_xyxy=boxes,
        labels=np.array([row[0] for row in rows], dtype=np.int64),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        crowd=np.array([len(row) > 2 and row[2] for row in rows], dtype=bool),
    )


class Pictures:
    """An in-memory image source."""

    def __init__(self, annotations: Annotations, pixels: Sequence[np.ndarray] | None = None):
        self.annotations = annotations
        self.pixels = pixels or [
            np.random.default_rng(i).integers(0, 256, (*hw, 3), dtype=np.uint8)
            for i, hw in enumerate(annotations.sizes_hw)
        ]

    def read(self, image: int) -> np.ndarray:
        return self.pixels[image]


def make_predictions(image, boxes_xyxy, scores, labels) -> Predictions:
    """Predictions from rows in any order; NMS runs on each image."""
    order = np.lexsort((-np.asarray(scores), image))
    image, scores, labels = (np.asarray(column)[order] for column in (image, scores, labels))
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)[order]
    keep = np.zeros((len(NMS_IOUS), len(image)), dtype=bool)
    for i in np.unique(image):
        rows = image == i
        columns = (torch.from_numpy(column[rows]) for column in (boxes, scores, labels))
        detections = Detections(*columns)
        [keep[:, rows]] = nms_masks([detections], NMS_IOUS)
    return Predictions(
        image.astype(np.int64),
        boxes,
        scores.astype(np.float64),
        labels.astype(np.int64),
        dict(zip(NMS_IOUS, keep, strict=True)),
    )
