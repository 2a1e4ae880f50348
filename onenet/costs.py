"""Matching costs: how expensive it is to make a slot the positive sample of an object (section 3).

P prediction slots, K classes, N ground truths. Every term is a pure function of pairs of a slot and
an object that broadcast against each other, lower is better; `MatchingCost` sums those whose weight
is not zero, in float32 and without a gradient. What depends on all pairs is [P, N].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.boxes import iou_and_giou
from onenet.structures import HeadOutput, Target


def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of calling the slot positive for the object's class, less that of calling it
    negative (C_cls of equation 3): logits of that class [...] -> [...]. May be below zero; falls
    as the logit rises.
    """
    prob = logits.sigmoid()
    positive = alpha * (1 - prob) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * prob**gamma * F.softplus(logits)
    return positive - negative


def cross_entropy_cost(logits: Tensor) -> Tensor:
    """-log p(class of the object) (Algorithm 1): its logits [...] -> [...], >= 0."""
    return F.softplus(-logits)


def l1_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor, whwh: Tensor, l1_format: str = "cxcywh") -> Tensor:
    """L1 distance of the boxes, normalized by the image (C_L1 of equations 1 and 3):
    [..., 4], [..., 4] pixels -> [...], >= 0.

    `whwh` [4] or [..., 4]: width, height, width, height of the image, pixels. `l1_format`: `cxcywh`
    as in the paper, `xyxy` as in its released code.
    """
    slots = normalized(boxes_xyxy, whwh, l1_format)
    objects = normalized(gt_xyxy, whwh, l1_format)
    return _sum([(a - b).abs_() for a, b in zip(slots, objects, strict=True)])


def normalized(boxes_xyxy: Tensor, whwh: Tensor, l1_format: str) -> list[Tensor]:
    """The four numbers that the L1 terms compare, as shares of the image: [..., 4] -> 4 × [...]."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    numbers = x1, y1, x2, y2
    if l1_format == "cxcywh":
        numbers = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return [number / unit for number, unit in zip(numbers, whwh.unbind(-1), strict=True)]


def iou_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """1 - IoU (C_iou of equation 1): [..., 4], [..., 4] pixels -> [...], in [0, 1]."""
    return 1 - iou_and_giou(boxes_xyxy, gt_xyxy)[0]


def giou_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """1 - GIoU (C_giou of equation 3): [..., 4], [..., 4] pixels -> [...], in [0, 2]."""
    return 1 - iou_and_giou(boxes_xyxy, gt_xyxy)[1]


def center_cost(points_xy: Tensor, gt_xyxy: Tensor, whwh: Tensor) -> Tensor:
    """L1 distance from grid point to object centre, normalized by the image: the pre-defined
    location cost of section 5.2, Point Assignment of Figure 2b. [..., 2], [..., 4] -> [...], >= 0.
    """
    centers = normalized(gt_xyxy, whwh, "cxcywh")[:2]
    points = [xy / unit for xy, unit in zip(points_xy.unbind(-1), whwh.unbind(-1), strict=False)]
    return _sum([(a - b).abs_() for a, b in zip(points, centers, strict=True)])


@dataclass(frozen=True)
class Pairs:
    """Slots and objects that broadcast against each other, float32. Fast where every coordinate is
    contiguous."""

    logits: Tensor  # [...] of the object's class at the slot
    boxes_xyxy: Tensor  # [..., 4] of the slot, pixels
    points_xy: Tensor  # [..., 2] of the slot, pixels
    gt_xyxy: Tensor  # [..., 4] of the object, pixels
    whwh: Tensor  # [4] or [..., 4] of the object's image, pixels


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
    """C = λ_cls C_cls + C_loc (equation 2).

    `cls_form`: `focal` (equation 3) or `cross_entropy` (Algorithm 1).
    """

    weights: CostWeights = CostWeights()
    cls_form: str = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"

    def class_cost(self, logits: Tensor) -> Tensor:
        """C_cls, falling: logits of the objects' classes [...] -> [...]."""
        # The last few entries of an array are computed by other instructions, which round exp and
        # log otherwise. Filled up, equal logits have equal costs wherever they stand.
        flat = logits.flatten()
        if missing := -len(flat) % 64:
            flat = F.pad(flat, (0, missing))
        if self.cls_form == "focal":
            cost = focal_cost(flat, self.alpha, self.gamma)
        else:
            cost = cross_entropy_cost(flat)
        return cost[: logits.numel()].view(logits.shape)

    def terms(self, pairs: Pairs):
        """Yields (name, weight, [...]) of each term that is switched on."""
        boxes, gt, whwh, w = pairs.boxes_xyxy, pairs.gt_xyxy, pairs.whwh, self.weights
        if w.cls:
            yield "cls", w.cls, self.class_cost(pairs.logits)
        if w.l1:
            yield "l1", w.l1, l1_cost(boxes, gt, whwh, self.l1_format)
        if w.iou:
            yield "iou", w.iou, iou_cost(boxes, gt)
        if w.giou:
            yield "giou", w.giou, giou_cost(boxes, gt)
        if w.center:
            yield "center", w.center, center_cost(pairs.points_xy, gt, whwh)

    def of(self, pairs: Pairs) -> Tensor:
        """The cost of each pair: [...]."""
        return _sum([term.mul_(weight) for _, weight, term in self.terms(pairs)])

    @torch.no_grad()
    def __call__(self, output: HeadOutput, image: int, target: Target) -> Tensor:
        """[P, N] for one image of the batch.

        Raises FloatingPointError, naming image, object and term, where a term is not finite:
        `torch.min` would silently pick a NaN.
        """
        pairs = all_pairs(output, image, target)
        total = self.of(pairs)
        if not torch.isfinite(total).all():
            self._name_the_culprit(pairs, target)
        return total

    def _name_the_culprit(self, pairs: Pairs, target: Target) -> None:
        for name, _, term in self.terms(pairs):
            bad = ~torch.isfinite(term)
            if bad.any():
                gt = int(bad.any(dim=0).nonzero()[0])
                raise FloatingPointError(
                    f"matching cost '{name}' is not finite for object {gt} of image "
                    f"{target.image_id} at {int(bad[:, gt].sum())} of {len(term)} slots"
                )
        raise FloatingPointError(f"the summed matching cost overflows in image {target.image_id}")


def all_pairs(output: HeadOutput, image: int, target: Target) -> Pairs:
    """Every slot of the image with every object: [P, N]."""
    height, width = target.size_hw
    gt = target.gt_xyxy
    return Pairs(
        logits=output.class_logits[image].detach()[:, target.gt_labels].float(),
        boxes_xyxy=output.boxes_xyxy[image].detach().float()[:, None],
        points_xy=output.points_xy[:, None],
        gt_xyxy=gt[None],
        whwh=gt.new_tensor([width, height, width, height]),
    )


def _sum(terms: list[Tensor]) -> Tensor:
    """One after the other, in this order; the first may be overwritten."""
    total, *others = terms
    for term in others:
        total = total + term
    return total
