"""The matching cost of making a slot the positive sample of an object (section 3).

P prediction slots, K classes, N objects. Each term is a pure function of slots and objects that
broadcast against each other, so it works for all pairs, [P, N], or for any subset of them. Lower is
better. `MatchingCost` sums the terms with a non-zero weight, in float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.boxes import iou_and_giou
from onenet.ops.rounding import apply_in_blocks
from onenet.structures import HeadOutput, Target


def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """C_cls of equation 3, focal: logits of the objects' classes [...] -> [...].

    The slot's focal loss as a positive sample of the class minus its loss as a negative sample. The
    paper only says focal loss; the difference comes from the released code. It can be negative, and
    falls as the logit rises.
    """
    prob = logits.sigmoid()
    positive = alpha * (1 - prob) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * prob**gamma * F.softplus(logits)
    return positive - negative


def cross_entropy_cost(logits: Tensor) -> Tensor:
    """C_cls of Algorithm 1, -log p: logits of the objects' classes [...] -> [...], >= 0."""
    return F.softplus(-logits)


def l1_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor, whwh: Tensor, l1_format: str = "cxcywh") -> Tensor:
    """C_L1 of equations 1 and 3: L1 distance between boxes, normalized by the image size.

    [..., 4], [..., 4] pixels -> [...], >= 0. `whwh` [4] or [..., 4]: width, height, width, height
    of the image in pixels. `l1_format`: `cxcywh` as in the paper, `xyxy` as in the released code.
    """
    slots = normalized_coordinates(boxes_xyxy, whwh, l1_format)
    objects = normalized_coordinates(gt_xyxy, whwh, l1_format)
    return _sum([(a - b).abs_() for a, b in zip(slots, objects, strict=True)])


def normalized_coordinates(boxes_xyxy: Tensor, whwh: Tensor, l1_format: str) -> list[Tensor]:
    """The coordinates that the L1 terms compare, in image fractions: [..., 4] -> 4 × [...]."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    coordinates = x1, y1, x2, y2
    if l1_format == "cxcywh":
        coordinates = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return [value / unit for value, unit in zip(coordinates, whwh.unbind(-1), strict=True)]


def iou_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """C_iou of equation 1, 1 - IoU: [..., 4], [..., 4] pixels -> [...], in [0, 1]."""
    return 1 - iou_and_giou(boxes_xyxy, gt_xyxy)[0]


def giou_cost(boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """C_giou of equation 3, 1 - GIoU: [..., 4], [..., 4] pixels -> [...], in [0, 2]."""
    return 1 - iou_and_giou(boxes_xyxy, gt_xyxy)[1]


def center_cost(points_xy: Tensor, gt_xyxy: Tensor, whwh: Tensor) -> Tensor:
    """The pre-defined location cost (section 5.2; Point Assignment in Figure 2b): L1 distance from
    the slot's grid point to the object's centre, normalized by the image size.

    [..., 2], [..., 4] pixels -> [...], >= 0. `whwh`: see `l1_cost`.
    """
    centers = normalized_coordinates(gt_xyxy, whwh, "cxcywh")[:2]
    points = [xy / unit for xy, unit in zip(points_xy.unbind(-1), whwh.unbind(-1), strict=False)]
    return _sum([(a - b).abs_() for a, b in zip(points, centers, strict=True)])


@dataclass(frozen=True)
class Pairs:
    """Slots and objects that broadcast against each other, float32. Fastest if each coordinate is
    contiguous in memory."""

    logits: Tensor  # [...] of the object's class at the slot
    boxes_xyxy: Tensor  # [..., 4] of the slot, pixels
    points_xy: Tensor  # [..., 2] grid point of the slot, pixels
    gt_xyxy: Tensor  # [..., 4] of the object, pixels
    whwh: Tensor  # [4] or [..., 4] width, height, width, height of the object's image, pixels


@dataclass(frozen=True)
class CostWeights:
    """The coefficients λ of equations 1 to 3; `center` weighs the pre-defined location cost.
    A term with weight 0 is not computed."""

    cls: float = 2.0
    l1: float = 5.0
    iou: float = 0.0
    giou: float = 2.0
    center: float = 0.0


@dataclass(frozen=True)
class MatchingCost:
    """C = λ_cls C_cls + C_loc (equation 2), where C_loc is the weighted sum of all other terms.

    `cls_form`: `focal` (equation 3) or `cross_entropy` (Algorithm 1). `alpha`, `gamma`: parameters
    of the focal form. `l1_format`: see `l1_cost`. `own`: user-defined terms as (name, weight,
    function). The function maps Pairs to costs [...]; each cost may depend on its own pair only.
    """

    weights: CostWeights = CostWeights()
    cls_form: str = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"
    own: tuple[tuple[str, float, Callable[[Pairs], Tensor]], ...] = ()

    def class_cost(self, logits: Tensor) -> Tensor:
        """C_cls: logits of the objects' classes [...] -> [...]. Equal logits have equal costs."""
        term = cross_entropy_cost
        if self.cls_form == "focal":
            term = partial(focal_cost, alpha=self.alpha, gamma=self.gamma)
        return apply_in_blocks(term, logits)

    def terms(
        self, pairs: Pairs, class_cost: Tensor | None = None
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Yields the name, weight and unweighted cost [...] of each active term.

        `class_cost` [...]: C_cls, if it has been computed already.
        """
        boxes, gt, whwh, w = pairs.boxes_xyxy, pairs.gt_xyxy, pairs.whwh, self.weights
        if w.cls:
            yield "cls", w.cls, self.class_cost(pairs.logits) if class_cost is None else class_cost
        if w.l1:
            yield "l1", w.l1, l1_cost(boxes, gt, whwh, self.l1_format)
        if w.iou:
            yield "iou", w.iou, iou_cost(boxes, gt)
        if w.giou:
            yield "giou", w.giou, giou_cost(boxes, gt)
        if w.center:
            yield "center", w.center, center_cost(pairs.points_xy, gt, whwh)
        for name, weight, cost in self.own:
            yield name, weight, cost(pairs)

    def of(self, pairs: Pairs, class_cost: Tensor | None = None) -> Tensor:
        """The cost of each pair: [...]. See `terms`; `class_cost` is overwritten."""
        return _sum([term.mul_(weight) for _, weight, term in self.terms(pairs, class_cost)])

    @torch.no_grad()
    def __call__(self, output: HeadOutput, image: int, target: Target) -> Tensor:
        """The cost matrix of one image of the batch: [P, N].

        Raises FloatingPointError, naming image, object and term, if a cost is not finite, which
        `torch.min` might silently pick. A logit of -inf is allowed: its slot costs +inf.
        """
        pairs = all_pairs(output, image, target)
        total = self.of(pairs)
        if not torch.isfinite(total).all():
            self._raise_if_not_finite(pairs, total, target)
        return total

    def _raise_if_not_finite(self, pairs: Pairs, total: Tensor, target: Target) -> None:
        allowed = pairs.logits == -torch.inf
        for name, _, term in self.terms(pairs):
            mask = ~torch.isfinite(term)
            if name == "cls":
                mask &= ~allowed
            if mask.any():
                gt = int(mask.any(dim=0).nonzero()[0])
                raise FloatingPointError(
                    f"matching cost '{name}' is not finite for object {gt} of image "
                    f"{target.image_id} at {int(mask[:, gt].sum())} of {len(term)} slots"
                )
        if (~torch.isfinite(total) & ~allowed).any():
            raise FloatingPointError(
                f"the summed matching cost overflows in image {target.image_id}"
            )


def all_pairs(output: HeadOutput, image: int, target: Target) -> Pairs:
    """All pairs of a slot and an object of one image of the batch: [P, N]."""
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
    """Adds the terms in their order, so that every caller gets the same rounding."""
    total, *rest = terms
    for term in rest:
        total = total + term
    return total
