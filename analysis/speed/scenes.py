"""Synthetic predictions and objects with the sizes of COCO's, for timing. Seeded."""

import torch
from torch import Tensor

from onenet.boxes import grid_points
from onenet.structures import HeadOutput, Target

STRIDE = 4
MAP_HW = (128, 214)  # for an image of 512×853


def scene(
    images: int,
    objects: int,
    map_hw: tuple[int, int] = MAP_HW,
    classes: int = 80,
    scattered: bool = False,
) -> tuple[HeadOutput, list[Target]]:
    """Predictions like those of a network during training. Each grid point predicts the box of the
    nearest object, with noise on each side (standard deviation: 8 pixels). Scores are around 0.01
    (standard deviation of the logit: 1), and around 0.25 for the object's class near its centre.

    `scattered`: each slot predicts a box of random size, so that neighbours are unrelated, unlike
    in any network.
    """
    generator = torch.Generator().manual_seed(0)
    points = grid_points(*map_hw, STRIDE)
    logits = torch.randn(images, len(points), classes, generator=generator) - 4.6
    boxes, targets, size_hw = [], [], (STRIDE * map_hw[0], STRIDE * map_hw[1])
    for image in range(images):
        gt = _objects(objects, size_hw, generator)
        labels = torch.randint(0, classes, (objects,), generator=generator)
        centers = (gt[:, :2] + gt[:, 2:]) / 2
        distance, nearest = torch.cdist(points, centers).min(dim=1)
        near = distance < 3 * STRIDE
        logits[image, near, labels[nearest[near]]] += 3.5
        around = gt[nearest] + 8 * torch.randn(len(points), 4, generator=generator)
        if scattered:
            around = points.repeat(1, 2) + 30 * torch.randn(len(points), 4, generator=generator)
        low = torch.minimum(around[:, :2], points)
        boxes.append(torch.cat([low, torch.maximum(around[:, 2:], points)], dim=1))
        targets.append(Target(labels, gt, size_hw, image))
    return HeadOutput(logits, torch.stack(boxes), points), targets


def _objects(count: int, size_hw: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes [count, 4] in pixels, inside the image, with log-normal sides around 80 pixels."""
    width_height = torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float32)
    center = torch.rand(count, 2, generator=generator) * width_height
    side = 80 * torch.exp(0.7 * torch.randn(count, 2, generator=generator))
    low = (center - side / 2).clamp(min=0)
    return torch.cat([low, torch.minimum(center + side / 2, width_height).maximum(low + 2)], dim=1)


def one_box(output: HeadOutput, targets: list[Target]) -> HeadOutput:
    """Every slot predicts one box with one score: nothing tells slots apart."""
    boxes = torch.tensor([100.0, 100.0, 300.0, 260.0]).expand_as(output.boxes_xyxy).clone()
    return HeadOutput(torch.full_like(output.class_logits, -4.6), boxes, output.points_xy)


def no_area(output: HeadOutput, targets: list[Target]) -> HeadOutput:
    """Every box is its slot's point: no IoU tells slots apart."""
    boxes = output.points_xy.repeat(1, 2).expand_as(output.boxes_xyxy).clone()
    return HeadOutput(output.class_logits, boxes, output.points_xy)


def fresh(output: HeadOutput, targets: list[Target]) -> HeadOutput:
    """A network at its start: every score near the prior of 0.01, boxes of about 16 pixels."""
    generator = torch.Generator().manual_seed(1)
    logits = 0.05 * torch.randn(output.class_logits.shape, generator=generator) - 4.6
    sides = 8 * torch.exp(0.1 * torch.randn(output.boxes_xyxy.shape, generator=generator))
    low, high = output.points_xy - sides[..., :2], output.points_xy + sides[..., 2:]
    return HeadOutput(logits, torch.cat([low, high], dim=-1), output.points_xy)


def one_good_slot_a_tile(output: HeadOutput, targets: list[Target]) -> HeadOutput:
    """Every sixteenth slot has a perfect box of some object and a high score for its class; each
    tile of consecutive slots looks promising to every bound."""
    boxes, logits = output.boxes_xyxy.clone(), output.class_logits.clone()
    slots = torch.arange(0, boxes.shape[1], 16)
    for image, target in enumerate(targets):
        gt = torch.arange(len(slots)) % len(target.gt_labels)
        boxes[image, slots] = target.gt_xyxy[gt]
        logits[image, slots] = -4.6
        logits[image, slots, target.gt_labels[gt]] = 2.0
    return HeadOutput(logits, boxes, output.points_xy)


WORST = (one_box, no_area, fresh, one_good_slot_a_tile)  # for a search that skips slots
