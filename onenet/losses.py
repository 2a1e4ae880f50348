"""The training loss: focal loss over all slots, L1 and GIoU over the positives (section 4).

B images, P prediction slots, K classes, N ground truths, M matches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from onenet.assigners import Matcher, late_objects
from onenet.boxes import iou_and_giou
from onenet.costs import MatchingCost, normalized
from onenet.ops.focal import focal_loss
from onenet.structures import HeadOutput, Matches, Target


@dataclass(frozen=True)
class LossWeights:
    """Section 5: λ_cls, λ_L1, λ_giou = 2, 5, 2. Apart from the weights of the matching cost."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


class Loss(Protocol):
    """What training minimises. `names`: the parts of which the total is the sum."""

    names: tuple[str, ...]

    def match(self, output, targets: Sequence[Target]) -> list[Matches]:
        """The positive samples of each image."""

    def __call__(
        self,
        outputs: Sequence,
        targets: Sequence[Target],
        num_objects: int | None = None,
        lap: Callable[[str], None] = lambda part: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and its parts for the log with the counts `objects` and `conflicts`."""


@dataclass(frozen=True)
class DetectionLoss:
    """Matches each head's predictions with the objects and sums the losses over the heads."""

    names: ClassVar[tuple[str, ...]] = ("loss_cls", "loss_l1", "loss_giou")
    matching_cost: MatchingCost
    matcher: Matcher
    weights: LossWeights = LossWeights()
    alpha: float = 0.25
    gamma: float = 2.0
    l1_format: str = "cxcywh"

    def match(self, output: HeadOutput, targets: Sequence[Target]) -> list[Matches]:
        """The positive samples of each image, by its own predictions; float32 in any autocast."""
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

        The parts are weighted and summed over heads: `loss_cls`, `loss_l1`, `loss_giou`, each
        divided by the number of objects of the batch (at least 1), which is `num_objects` where
        these are only some of its images; and the counts `objects` and `conflicts` over all heads.
        `lap` is called with "match" when the matching is done.
        """
        if num_objects is None:
            num_objects = sum(len(t.gt_labels) for t in targets)
        num_objects = max(1, num_objects)
        sums = dict.fromkeys((*self.names, "conflicts"), 0)
        matches = [self.match(output, targets) for output in outputs]
        lap("match")
        for output, of_images in zip(outputs, matches, strict=True):
            for name, value in self.parts(output, targets, of_images).items():
                sums[name] = sums[name] + value / num_objects
            sums["conflicts"] = sums["conflicts"] + sum(m.conflicts for m in of_images)
        total = sum(sums[name] for name in self.names)
        objects = torch.tensor(len(outputs) * sum(len(t.gt_labels) for t in targets))
        return total, {**sums, "objects": objects}

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

        boxes = output.boxes_xyxy[image, slot].float()  # [M, 4]
        numbers = (normalized(b, whwh, self.l1_format) for b in (boxes, gt))
        l1 = sum((a - b).abs().sum() for a, b in zip(*numbers, strict=True))
        giou = (1 - iou_and_giou(boxes, gt)[1]).sum()
        focal = self._focal(output, targets, image, slot, labels)
        w = self.weights
        return {"loss_cls": w.cls * focal, "loss_l1": w.l1 * l1, "loss_giou": w.giou * giou}

    def _focal(
        self,
        output: HeadOutput,
        targets: Sequence[Target],
        image: Tensor,
        slot: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Sum of the focal loss, given the matches' image, slot and label, [M] each; a match that
        two objects share counts once. Negatives inside crowds of their class are left out."""
        logits = output.class_logits
        place = (image * logits.shape[1] + slot) * logits.shape[2] + labels
        positive = (~late_objects(torch.zeros_like(place), place)).float()
        at, positives, negatives = [(image, slot, labels)], [positive], [-positive]
        for number, target in enumerate(targets):
            for label, ignored in crowded(output.points_xy, target):
                matched = torch.zeros_like(ignored, dtype=torch.float32)
                matched.index_add_(0, slot, ((image == number) & (labels == label)).float())
                every = torch.arange(len(ignored), device=slot.device)
                at.append((torch.full_like(every, number), every, label.expand_as(every)))
                positives.append(torch.zeros_like(matched))
                negatives.append(-(ignored & (matched == 0)).float())
        at = [torch.cat(part) for part in zip(*at, strict=True)]
        return focal_loss(
            logits, at, torch.cat(positives), torch.cat(negatives), self.alpha, self.gamma
        )


def crowded(points_xy: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
    """For each crowd its class and which slots lie inside it, but in no earlier crowd of the same
    class: points [P, 2] pixels -> label [], [P] bool."""
    labels, points = target.crowd_labels, points_xy[:, None]
    low, high = target.crowd_xyxy[:, :2], target.crowd_xyxy[:, 2:]
    inside = ((points >= low) & (points <= high)).all(dim=2)  # [P, C]
    for crowd, label in enumerate(labels):
        earlier = inside[:, :crowd] & (labels[:crowd] == label)
        yield label, inside[:, crowd] & ~earlier.any(dim=1)
