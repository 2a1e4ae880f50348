"""What flows between the parts. The docstrings are the shape contract.

B images, P prediction slots (H·W grid points), K classes, N ground truths, M matches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from onenet.boxes import ltrb_to_xyxy

STRIDE = 4  # pixels from one grid point to the next (section 4)


@dataclass(frozen=True)
class Target:
    """The objects of one image, in the pixels of the resized, unpadded image."""

    gt_labels: Tensor  # [N] int64 in 0..K-1
    gt_xyxy: Tensor  # [N, 4] float32 pixels, x1 < x2 and y1 < y2
    size_hw: tuple[int, int]  # of the resized, unpadded image
    image_id: int  # of the annotation file
    # Regions in which a class is not learnt, because its objects are not told apart there.
    crowd_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # [C]
    crowd_xyxy: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # [C, 4] pixels

    def to(self, device) -> "Target":
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        moved: dict = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


def unpadded_sizes(targets: Sequence[Target], device: str | torch.device) -> Tensor:
    """(height, width) of each image without its padding: [B, 2] int64 pixels on the device."""
    sizes = torch.tensor([target.size_hw for target in targets]).view(-1, 2)
    return sizes.to(device, non_blocking=True)


def slots_in_crowds(points_xy: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
    """For each crowd its class, and which slots lie inside it and in no earlier crowd of the class:
    points [P, 2] pixels -> label [], [P] bool."""
    labels, points = target.crowd_labels, points_xy[:, None]
    low, high = target.crowd_xyxy[:, :2], target.crowd_xyxy[:, 2:]
    inside = ((points >= low) & (points <= high)).all(dim=2)  # [P, C]
    for crowd, label in enumerate(labels):
        earlier = inside[:, :crowd] & (labels[:crowd] == label)
        yield label, inside[:, crowd] & ~earlier.any(dim=1)


@dataclass(frozen=True)
class HeadOutput:
    """What one head predicts at every slot. A detector returns a list of these, one a head, or one
    a stage."""

    class_logits: Tensor  # [B, P, K]
    boxes_xyxy: Tensor  # [B, P, 4] pixels, x1 <= x2 and y1 <= y2, not clipped to the image
    points_xy: Tensor  # [P, 2] pixels, the grid point of each slot; NaN where slots are queries

    def boxes_at(self, image: int, slots: Tensor) -> Tensor:
        """The boxes of some slots of an image: [N] int64 -> [N, 4] pixels."""
        return self.boxes_xyxy[image, slots]


@dataclass(frozen=True)
class UndecodedOutput:
    """A HeadOutput outside training: a box is only computed when it is asked for."""

    class_logits: Tensor  # [B, P, K]
    ltrb: Tensor  # [B, P, 4] pixels from the slot's point to the sides, those below 0 count as 0
    points_xy: Tensor  # [P, 2] pixels
    grid_hw: tuple[int, int]  # slots are row after row of the grid: P = H·W

    def boxes_at(self, image: int, slots: Tensor) -> Tensor:
        return ltrb_to_xyxy(self.points_xy[slots], self.ltrb[image, slots].relu())

    @cached_property
    def boxes_xyxy(self) -> Tensor:
        return ltrb_to_xyxy(self.points_xy, self.ltrb.relu())


@dataclass(frozen=True)
class Matches:
    """Which slot is the positive sample of which object, for one image."""

    pred_idx: Tensor  # [M] int64 in 0..P-1
    gt_idx: Tensor  # [M] int64 in 0..N-1, each at most once
    conflicts: Tensor  # scalar int64: objects less the distinct cheapest slots that they ask for


@dataclass(frozen=True)
class Detections:
    """The answer for one image, best score first, in the pixels of the resized image."""

    boxes_xyxy: Tensor  # [D, 4] pixels, clipped to the image, none empty
    scores: Tensor  # [D] in 0..1, descending
    labels: Tensor  # [D] int64 in 0..K-1
