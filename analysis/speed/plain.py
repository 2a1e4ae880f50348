"""Straightforward matching and loss, as in the released code: the baselines for our versions, with
the same results.
"""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from onenet.costs import MatchingCost
from onenet.structures import HeadOutput, Target

ALPHA, GAMMA = 0.25, 2.0
CLS, L1, GIOU = 2.0, 5.0, 2.0


@torch.no_grad()
def match(
    output: HeadOutput, targets: Sequence[Target], gather_first: bool = False
) -> list[Tensor]:
    """Returns the cheapest slot of each object, for each image. Computes the focal cost of all K
    classes before it gathers the columns of the objects; uses torch.cdist and torchvision's GIoU.

    `gather_first`: gather the columns before computing the focal cost.
    """
    return [
        _cost(output.class_logits[i], output.boxes_xyxy[i], target, gather_first).min(dim=0).indices
        for i, target in enumerate(targets)
    ]


@torch.no_grad()
def hungarian(cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]) -> list[Tensor]:
    """The slots of each image's objects: scipy on the whole cost matrix."""
    assignments = []
    for image, target in enumerate(targets):
        slots, objects = linear_sum_assignment(cost(output, image, target).numpy())
        assignments.append(torch.from_numpy(slots[objects.argsort()]))
    return assignments


def _cost(logits: Tensor, boxes: Tensor, target: Target, gather_first: bool) -> Tensor:
    columns = target.gt_labels
    if gather_first:
        logits, columns = logits[:, columns], slice(None)
    prob = logits.sigmoid()
    positive = ALPHA * (1 - prob) ** GAMMA * -(prob + 1e-8).log()
    negative = (1 - ALPHA) * prob**GAMMA * -(1 - prob + 1e-8).log()
    class_cost = (positive - negative)[:, columns]
    height, width = target.size_hw
    unit = boxes.new_tensor([width, height, width, height])
    l1_cost = torch.cdist(_cxcywh(boxes) / unit, _cxcywh(target.gt_xyxy) / unit, p=1)
    giou_cost = 1 - generalized_box_iou(boxes, target.gt_xyxy)
    return CLS * class_cost + L1 * l1_cost + GIOU * giou_cost


def _cxcywh(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def focal_loss(
    class_logits: Tensor,
    image: Tensor,
    slot: Tensor,
    label: Tensor,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
) -> Tensor:
    """torchvision's focal loss with one-hot targets: logits [B, P, K], indices of positives [M]."""
    one_hot = torch.zeros_like(class_logits)
    one_hot[image, slot, label] = 1
    return sigmoid_focal_loss(class_logits, one_hot, alpha, gamma, reduction="sum")


def loss(outputs: Sequence[HeadOutput], targets: Sequence[Target]) -> Tensor:
    """The training loss of section 4, with the plain matching."""
    total = torch.zeros(())
    objects = sum(len(target.gt_labels) for target in targets)
    for output in outputs:
        slots = match(output, targets)
        slot = torch.cat(slots)
        image = torch.cat([torch.full_like(s, i) for i, s in enumerate(slots)])
        label = torch.cat([target.gt_labels for target in targets])
        gt = torch.cat([target.gt_xyxy for target in targets])
        unit = gt.new_tensor([2 * target.size_hw[::-1] for target in targets])[image]
        boxes = output.boxes_xyxy[image, slot]
        l1 = (_cxcywh(boxes) / unit - _cxcywh(gt) / unit).abs().sum()
        giou = generalized_box_iou_loss(boxes, gt, reduction="sum")
        total = total + CLS * focal_loss(output.class_logits, image, slot, label)
        total = total + L1 * l1 + GIOU * giou
    return total / objects
