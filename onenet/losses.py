"""The training loss (section 4, "Training"): focal loss over all slots, L1 and GIoU loss over the
positive samples, summed over the heads (section 4.1).

B images, P prediction slots, K classes, M matches in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from onenet.assigners import Matcher
from onenet.boxes import iou_and_giou
from onenet.costs import MatchingCost, normalized_coordinates
from onenet.ops.focal import focal_loss
from onenet.ops.groups import not_first_of_group
from onenet.structures import HeadOutput, Matches, Target, slots_in_crowds


@dataclass(frozen=True)
class LossWeights:
    """λ_cls, λ_L1, λ_giou of the loss (section 5); the matching cost has its own."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class DetectionLoss:
    """Matches each head's predictions with the objects and sums the losses over the heads.

    `alpha`, `gamma`: parameters of the focal loss. `l1_format`: see `costs.l1_cost`.
    """

    names: ClassVar[tuple[str, ...]] = ("loss_cls", "loss_l1", "loss_giou")
    matching_cost: MatchingCost
    matcher: Matcher
    weights: LossWeights = LossWeights()
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"

    def match(self, output: HeadOutput, targets: Sequence[Target]) -> list[Matches]:
        """Returns the positive samples of each image, matched by one head's predictions. Computes
        in float32, also under autocast."""
        with torch.autocast(output.class_logits.device.type, enabled=False):
            return self.matcher(self.matching_cost, output, targets)

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        targets: Sequence[Target],
        num_objects: int | None = None,
        lap: Callable[[str], None] = lambda part: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the total loss to minimise, and its parts for the log.

        The parts are `loss_cls`, `loss_l1` and `loss_giou`, weighted, summed over the heads and
        divided by the number of objects (at least 1), and the counts `objects` and `conflicts`,
        summed over the heads. `num_objects`: objects in the whole batch, if `targets` are only a
        micro-batch of it. `lap` is called with "match" after the matching.
        """
        if num_objects is None:
            num_objects = sum(len(target.gt_labels) for target in targets)
        num_objects = max(1, num_objects)
        matches = [self.match(output, targets) for output in outputs]
        lap("match")
        sums: dict[str, Any] = dict.fromkeys((*self.names, "conflicts"), 0)
        for output, head_matches in zip(outputs, matches, strict=True):
            for name, value in self.parts(output, targets, head_matches).items():
                sums[name] = sums[name] + value / num_objects
            sums["conflicts"] = sums["conflicts"] + sum(m.conflicts for m in head_matches)
        total = sum(sums[name] for name in self.names)
        objects = torch.tensor(len(outputs) * sum(len(target.gt_labels) for target in targets))
        return total, {**sums, "objects": objects}

    def parts(
        self, output: HeadOutput, targets: Sequence[Target], matches: Sequence[Matches]
    ) -> dict[str, Tensor]:
        """Returns one head's weighted losses, a scalar for each of `names`, before the division by
        the number of objects."""
        image = torch.cat([torch.full_like(m.pred_idx, i) for i, m in enumerate(matches)])  # [M]
        slot = torch.cat([m.pred_idx for m in matches])
        pairs = list(zip(targets, matches, strict=True))
        label = torch.cat([t.gt_labels[m.gt_idx] for t, m in pairs])
        gt = torch.cat([t.gt_xyxy[m.gt_idx] for t, m in pairs])  # [M, 4]
        whwh = gt.new_tensor([2 * t.size_hw[::-1] for t in targets])[image]

        boxes = output.boxes_xyxy[image, slot].float()  # [M, 4]
        coordinates = (normalized_coordinates(b, whwh, self.l1_format) for b in (boxes, gt))
        l1 = sum((a - b).abs().sum() for a, b in zip(*coordinates, strict=True))
        giou = (1 - iou_and_giou(boxes, gt)[1]).sum()
        focal = self._focal(output, targets, image, slot, label)
        w = self.weights
        return {"loss_cls": w.cls * focal, "loss_l1": w.l1 * l1, "loss_giou": w.giou * giou}

    def _focal(
        self,
        output: HeadOutput,
        targets: Sequence[Target],
        image: Tensor,
        slot: Tensor,
        label: Tensor,
    ) -> Tensor:
        """Returns the focal loss summed over all slots and classes.

        Entry (image, slot, label) [M] of each match is positive, all others are negative. Two
        objects of one class that share a slot count as one positive. Negatives inside a crowd of
        their class are ignored. `focal_loss` takes every entry as a negative and is corrected here:
        `positives` adds an entry's positive loss, `negatives` (-1) subtracts its negative loss.
        """
        logits = output.class_logits
        entry = (image * logits.shape[1] + slot) * logits.shape[2] + label
        positive = (~not_first_of_group(entry)).float()
        indices, positives, negatives = [(image, slot, label)], [positive], [-positive]
        for index, target in enumerate(targets):
            for crowd_label, inside in slots_in_crowds(output.points_xy, target):
                num_matches = torch.zeros_like(inside, dtype=torch.float32)  # [P]
                num_matches.index_add_(0, slot, ((image == index) & (label == crowd_label)).float())
                slots = torch.arange(len(inside), device=slot.device)
                labels = crowd_label.expand_as(slots)
                indices.append((torch.full_like(slots, index), slots, labels))
                positives.append(torch.zeros_like(num_matches))
                negatives.append(-(inside & (num_matches == 0)).float())
        images, slots, labels = (torch.cat(columns) for columns in zip(*indices, strict=True))
        return focal_loss(
            logits,
            (images, slots, labels),
            torch.cat(positives),
            torch.cat(negatives),
            self.alpha,
            self.gamma,
        )
