"""The training loss: focal loss over all slots, L1 and GIoU over the positives (section 4).

B images, P prediction slots, K classes, N ground truths, M matches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.assigners import Assigner
from onenet.boxes import iou_and_giou
from onenet.costs import MatchingCost, normalized
from onenet.structures import HeadOutput, Matches, Target


@dataclass(frozen=True)
class LossWeights:
    """Section 5: λ_cls, λ_L1, λ_giou = 2, 5, 2. Apart from the weights of the matching cost."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum over all elements of the focal loss: [...], [...] of 0 and 1 -> scalar."""
    prob = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = prob + targets - 2 * prob * targets  # 1 - p of the true answer
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return (weight * wrong**gamma * cross_entropy).sum()


@dataclass(frozen=True)
class DetectionLoss:
    """Matches each head's predictions with the objects and sums the losses over the heads."""

    matching_cost: MatchingCost
    assigner: Assigner
    weights: LossWeights = LossWeights()
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"

    def match(self, output: HeadOutput, targets: Sequence[Target]) -> list[Matches]:
        """The positive samples of each image, by its own predictions; float32 in any autocast."""
        with torch.autocast(output.class_logits.device.type, enabled=False):
            return [
                self.assigner(self.matching_cost(output, image, target))
                if len(target.gt_labels)
                else _no_matches(target)
                for image, target in enumerate(targets)
            ]

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        targets: Sequence[Target],
        num_objects: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to minimise, and its parts for the log.

        The parts are weighted and summed over heads: `loss_cls`, `loss_l1`, `loss_giou`, each
        divided by the number of objects of the batch (at least 1), which is `num_objects` where
        these are only some of its images; and the counts `objects` and `conflicts` over all heads.
        """
        if num_objects is None:
            num_objects = sum(len(t.gt_labels) for t in targets)
        num_objects = max(1, num_objects)
        sums = dict.fromkeys(("loss_cls", "loss_l1", "loss_giou"), 0.0)
        conflicts = torch.zeros((), dtype=torch.int64)
        for output in outputs:
            matches = self.match(output, targets)
            for name, value in self.parts(output, targets, matches).items():
                sums[name] = sums[name] + value / num_objects
            conflicts = conflicts + sum(m.conflicts for m in matches)
        total = sums["loss_cls"] + sums["loss_l1"] + sums["loss_giou"]
        objects = torch.tensor(len(outputs) * sum(len(t.gt_labels) for t in targets))
        return total, {**sums, "objects": objects, "conflicts": conflicts}

    def parts(
        self, output: HeadOutput, targets: Sequence[Target], matches: Sequence[Matches]
    ) -> dict[str, Tensor]:
        """The weighted sums of one head's losses, not yet divided by the number of objects."""
        rows = list(zip(targets, matches, strict=True))
        image = torch.cat([torch.full_like(m.pred_idx, i) for i, m in enumerate(matches)])  # [M]
        slot = torch.cat([m.pred_idx for m in matches])
        labels = torch.cat([t.gt_labels[m.gt_idx] for t, m in rows])
        gt = torch.cat([t.gt_xyxy[m.gt_idx] for t, m in rows])  # [M, 4]
        whwh = gt.new_tensor([2 * t.size_hw[::-1] for t in targets])[image]

        is_class = torch.zeros_like(output.class_logits, dtype=torch.float32)  # [B, P, K]
        is_class[image, slot, labels] = 1
        focal = self._focal(output, targets, is_class)
        boxes = output.boxes_xyxy[image, slot].float()  # [M, 4]
        difference = normalized(boxes, whwh, self.l1_format) - normalized(gt, whwh, self.l1_format)
        l1 = difference.abs().sum()
        giou = (1 - iou_and_giou(boxes, gt)[1]).sum()
        w = self.weights
        return {"loss_cls": w.cls * focal, "loss_l1": w.l1 * l1, "loss_giou": w.giou * giou}

    def _focal(self, output: HeadOutput, targets: Sequence[Target], is_class: Tensor) -> Tensor:
        """Sum of the focal loss, less that of negatives inside crowds of their class."""
        logits = output.class_logits.float()
        total = sigmoid_focal_loss(logits, is_class, self.alpha, self.gamma)
        for image, target in enumerate(targets):
            if len(target.crowd_labels):
                crowded = in_crowd(output.points_xy, target, logits.shape[-1])
                ignored = logits[image][crowded & (is_class[image] == 0)]
                nothing = torch.zeros_like(ignored)
                total = total - sigmoid_focal_loss(ignored, nothing, self.alpha, self.gamma)
        return total


def in_crowd(points_xy: Tensor, target: Target, num_classes: int) -> Tensor:
    """Which slots lie inside a crowd of which class: [P, 2] pixels -> [P, K] bool."""
    low, high = target.crowd_xyxy[:, :2], target.crowd_xyxy[:, 2:]
    points = points_xy[:, None]
    inside = ((points >= low) & (points <= high)).all(dim=2)  # [P, C]
    mask = torch.zeros(len(points_xy), num_classes, dtype=torch.bool, device=points_xy.device)
    for crowd, label in enumerate(target.crowd_labels.tolist()):
        mask[:, label] |= inside[:, crowd]
    return mask


def _no_matches(target: Target) -> Matches:
    nothing = torch.zeros(0, dtype=torch.int64, device=target.gt_labels.device)
    return Matches(nothing, nothing, torch.zeros((), dtype=torch.int64, device=nothing.device))
