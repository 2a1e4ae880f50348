"""The training loss (section 4, "Training"): focal loss over all slots, L1 and GIoU loss over the
positive samples; summed over the heads (section 4.1).

B images, P prediction slots, K classes, M matches of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from onenet.assigners import Matcher
from onenet.boxes import iou_and_giou
from onenet.costs import MatchingCost, normalized
from onenet.ops.focal import focal_loss
from onenet.ops.groups import not_first_of_group
from onenet.structures import HeadOutput, Matches, Target, slots_in_crowds


@dataclass(frozen=True)
class LossWeights:
    """λ_cls, λ_L1, λ_giou of the loss (section 5), separate from those of the matching cost."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class DetectionLoss:
    """Matches the predictions of each head with the objects, and sums the losses over the heads.

    `alpha`, `gamma`: of the focal loss. `l1_format`: see `costs.l1_cost`.
    """

    names: ClassVar[tuple[str, ...]] = ("loss_cls", "loss_l1", "loss_giou")
    matching_cost: MatchingCost
    matcher: Matcher
    weights: LossWeights = LossWeights()
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"

    def match(self, output: HeadOutput, targets: Sequence[Target]) -> list[Matches]:
        """The positive samples of each image, from one head's own predictions. Float32, also under
        autocast."""
        with torch.autocast(output.class_logits.device.type, enabled=False):
            return self.matcher(self.matching_cost, output, targets)

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        targets: Sequence[Target],
        num_objects: int | None = None,
        lap: Callable[[str], None] = lambda part: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to minimise, and its parts for the log.

        Parts: `loss_cls`, `loss_l1` and `loss_giou`, weighted, summed over the heads, divided by
        the number of objects (at least 1); and over all heads the counts `objects` and `conflicts`.
        `num_objects`: of the whole batch, where `targets` are only some of its images. `lap` is
        called with "match" when the matching is done.
        """
        if num_objects is None:
            num_objects = sum(len(target.gt_labels) for target in targets)
        num_objects = max(1, num_objects)
        matches = [self.match(output, targets) for output in outputs]
        lap("match")
        sums: dict[str, Any] = dict.fromkeys((*self.names, "conflicts"), 0)
        for output, of_images in zip(outputs, matches, strict=True):
            for name, value in self.parts(output, targets, of_images).items():
                sums[name] = sums[name] + value / num_objects
            sums["conflicts"] = sums["conflicts"] + sum(match.conflicts for match in of_images)
        total = sum(sums[name] for name in self.names)
        objects = torch.tensor(len(outputs) * sum(len(target.gt_labels) for target in targets))
        return total, {**sums, "objects": objects}

    def parts(
        self, output: HeadOutput, targets: Sequence[Target], matches: Sequence[Matches]
    ) -> dict[str, Tensor]:
        """One head's weighted losses, a scalar for each of `names`, not yet divided by the number
        of objects."""
        rows = list(zip(targets, matches, strict=True))
        image = torch.cat([torch.full_like(m.pred_idx, i) for i, m in enumerate(matches)])  # [M]
        slot = torch.cat([m.pred_idx for m in matches])
        label = torch.cat([t.gt_labels[m.gt_idx] for t, m in rows])
        gt = torch.cat([t.gt_xyxy[m.gt_idx] for t, m in rows])  # [M, 4]
        whwh = gt.new_tensor([2 * t.size_hw[::-1] for t in targets])[image]

        boxes = output.boxes_xyxy[image, slot].float()  # [M, 4]
        numbers = (normalized(b, whwh, self.l1_format) for b in (boxes, gt))
        l1 = sum((a - b).abs().sum() for a, b in zip(*numbers, strict=True))
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
        """The focal loss of all slots and classes, summed.

        Entry (image, slot, label) [M] of each match is positive, all others are negative. Two
        objects of one class that share a slot make it positive once. A negative inside a crowd of
        its class is left out. `focal_loss` counts every entry as negative; the entries listed
        here correct that: `positives` adds, `negatives` (-1) takes away.
        """
        logits = output.class_logits
        entry = (image * logits.shape[1] + slot) * logits.shape[2] + label
        positive = (~not_first_of_group(entry)).float()
        at, positives, negatives = [(image, slot, label)], [positive], [-positive]
        for number, target in enumerate(targets):
            for crowd_label, inside in slots_in_crowds(output.points_xy, target):
                matched = torch.zeros_like(inside, dtype=torch.float32)
                matched.index_add_(0, slot, ((image == number) & (label == crowd_label)).float())
                every = torch.arange(len(inside), device=slot.device)
                at.append((torch.full_like(every, number), every, crowd_label.expand_as(every)))
                positives.append(torch.zeros_like(matched))
                negatives.append(-(inside & (matched == 0)).float())
        images, slots, labels = (torch.cat(part) for part in zip(*at, strict=True))
        return focal_loss(
            logits,
            (images, slots, labels),
            torch.cat(positives),
            torch.cat(negatives),
            self.alpha,
            self.gamma,
        )
