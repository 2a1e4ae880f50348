"""Matching costs: how expensive it is to make a slot the positive sample of an object (section 3).

P prediction slots, K classes, N ground truths. Every term is a pure function to [P, N], lower is
better; `MatchingCost` sums those whose weight is not zero, in float32 and without a gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.boxes import iou_and_giou, xyxy_to_cxcywh
from onenet.structures import HeadOutput, Target


def focal_cost(
    class_logits: Tensor, gt_labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of calling the slot positive for the object's class, less that of calling it
    negative (C_cls of equation 3): [P, K], [N] -> [P, N]. May be below zero.
    """
    classes, column = gt_labels.unique(return_inverse=True)  # each class present is computed once
    logits = class_logits[:, classes]
    prob = logits.sigmoid()
    positive = alpha * (1 - prob) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * prob**gamma * F.softplus(logits)
    return (positive - negative)[:, column]


def cross_entropy_cost(class_logits: Tensor, gt_labels: Tensor) -> Tensor:
    """-log p(class of the object) (Algorithm 1): [P, K], [N] -> [P, N], >= 0."""
    return F.softplus(-class_logits[:, gt_labels])


def l1_cost(
    boxes_xyxy: Tensor, gt_xyxy: Tensor, size_hw: tuple[int, int], l1_format: str = "cxcywh"
) -> Tensor:
    """L1 distance of the boxes, normalized by the image (C_L1 of equations 1 and 3):
    [P, 4], [N, 4] pixels -> [P, N], >= 0.

    `l1_format`: `cxcywh` as in the paper, `xyxy` as in its released code.
    """
    height, width = size_hw
    whwh = boxes_xyxy.new_tensor([width, height, width, height])
    slots = normalized(boxes_xyxy, whwh, l1_format)
    objects = normalized(gt_xyxy, whwh, l1_format)
    return torch.cdist(slots, objects, p=1)


def normalized(boxes_xyxy: Tensor, whwh: Tensor, l1_format: str) -> Tensor:
    """The four numbers that the L1 terms compare, as shares of the image: [..., 4] -> [..., 4].

    `whwh` [4] or [..., 4]: width, height, width, height of the image, pixels.
    """
    boxes = xyxy_to_cxcywh(boxes_xyxy) if l1_format == "cxcywh" else boxes_xyxy
    return boxes / whwh


def iou_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """1 - IoU (C_iou of equation 1): [P, 4], [N, 4] pixels -> [P, N], in [0, 1]."""
    return 1 - iou_and_giou(boxes_xyxy[:, None], gt_xyxy[None])[0]


def giou_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """1 - GIoU (C_giou of equation 3): [P, 4], [N, 4] pixels -> [P, N], in [0, 2]."""
    return 1 - iou_and_giou(boxes_xyxy[:, None], gt_xyxy[None])[1]


def center_cost(points_xy: Tensor, gt_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """L1 distance from grid point to object centre, normalized by the image: the pre-defined
    location cost of section 5.2, Point Assignment of Figure 2b. [P, 2], [N, 4] -> [P, N], >= 0.
    """
    height, width = size_hw
    scale = points_xy.new_tensor([width, height])
    centers = (gt_xyxy[:, :2] + gt_xyxy[:, 2:]) / 2
    return torch.cdist(points_xy / scale, centers / scale, p=1)


@dataclass(frozen=True)
class CostWeights:
    """The coefficients λ of equations 1-3. A zero switches the term off: it is not computed."""

    cls: float = 2.0
    l1: float = 5.0
    iou: float = 0.0
    giou: float = 2.0
    center: float = 0.0


@dataclass(frozen=True)
class MatchingCost:
    """C = λ_cls C_cls + C_loc (equation 2), of one image, as a callable.

    `cls_form`: `focal` (equation 3) or `cross_entropy` (Algorithm 1).
    """

    weights: CostWeights = CostWeights()
    cls_form: str = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"

    def terms(self, output: HeadOutput, image: int, target: Target):
        """Yields (name, weight, [P, N]) of each term that is switched on, for one image."""
        logits = output.class_logits[image].detach().float()
        boxes = output.boxes_xyxy[image].detach().float()
        labels, gt, size, w = target.gt_labels, target.gt_xyxy, target.size_hw, self.weights
        if w.cls and self.cls_form == "focal":
            yield "cls", w.cls, focal_cost(logits, labels, self.alpha, self.gamma)
        if w.cls and self.cls_form == "cross_entropy":
            yield "cls", w.cls, cross_entropy_cost(logits, labels)
        if w.l1:
            yield "l1", w.l1, l1_cost(boxes, gt, size, self.l1_format)
        if w.iou:
            yield "iou", w.iou, iou_cost(boxes, gt)
        if w.giou:
            yield "giou", w.giou, giou_cost(boxes, gt)
        if w.center:
            yield "center", w.center, center_cost(output.points_xy, gt, size)

    @torch.no_grad()
    def __call__(self, output: HeadOutput, image: int, target: Target) -> Tensor:
        """[P, N] for one image of the batch.

        Raises FloatingPointError, naming image, object and term, where a term is not finite:
        `torch.min` would silently pick a NaN.
        """
        total = sum(weight * term for _, weight, term in self.terms(output, image, target))
        if not torch.isfinite(total).all():
            self._name_the_culprit(output, image, target)
        return total

    def _name_the_culprit(self, output: HeadOutput, image: int, target: Target) -> None:
        for name, _, term in self.terms(output, image, target):
            bad = ~torch.isfinite(term)
            if bad.any():
                gt = int(bad.any(dim=0).nonzero()[0])
                raise FloatingPointError(
                    f"matching cost '{name}' is not finite for object {gt} of image "
                    f"{target.image_id} at {int(bad[:, gt].sum())} of {len(term)} slots"
                )
        raise FloatingPointError(f"the summed matching cost overflows in image {target.image_id}")
