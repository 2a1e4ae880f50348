"""The data types passed between the parts. Their comments define the shapes.

B images, P prediction slots (H·W grid points), K classes, N objects, M matches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from onenet.boxes import ltrb_to_xyxy

STRIDE = 4  # pixels between grid points (section 4)


@dataclass(frozen=True)
class Target:
    """The objects of one image, in pixels of the resized, unpadded image."""

    gt_labels: Tensor  # [N] int64 in 0..K-1
    gt_xyxy: Tensor  # [N, 4] float32 pixels, x1 < x2 and y1 < y2
    size_hw: tuple[int, int]  # (height, width) of the resized, unpadded image, pixels
    image_id: int  # as in the annotation file
    # Regions in which a class is not learnt, as its objects are not annotated one by one there.
    crowd_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # [C]
    crowd_xyxy: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # [C, 4] pixels

    def to(self, device) -> "Target":
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        copies: dict = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **copies)


def unpadded_sizes(targets: Sequence[Target], device: str | torch.device) -> Tensor:
    """(height, width) of each image without padding: [B, 2] int64 pixels, on the device."""
    sizes = torch.tensor([target.size_hw for target in targets]).view(-1, 2)
    return sizes.to(device, non_blocking=True)


def slots_in_crowds(points_xy: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields for each crowd its class, and which slots lie inside it but not inside an earlier
    crowd of its class: points [P, 2] pixels -> label [], [P] bool."""
    labels, points = target.crowd_labels, points_xy[:, None]
    low, high = target.crowd_xyxy[:, :2], target.crowd_xyxy[:, 2:]
    inside = ((points >= low) & (points <= high)).all(dim=2)  # [P, C]
    for crowd, label in enumerate(labels):
        earlier = inside[:, :crowd] & (labels[:crowd] == label)
        yield label, inside[:, crowd] & ~earlier.any(dim=1)


@dataclass(frozen=True)
class HeadOutput:
    """The predictions of one head at every slot. A detector returns a list of these, one per head
    or stage."""

    class_logits: Tensor  # [B, P, K]
    boxes_xyxy: Tensor  # [B, P, 4] pixels, x1 <= x2 and y1 <= y2, not clipped to the image
    points_xy: Tensor  # [P, 2] pixels, the grid point of each slot; NaN if slots are queries

    def boxes_at(self, image: int | Tensor, slots: Tensor) -> Tensor:
        """The boxes at the given slots of an image: [N] int64 -> [N, 4] pixels.

        For a batch, `image` is [B, 1] int64 and `slots` [B, N]: -> [B, N, 4].
        """
        return self.boxes_xyxy[image, slots]


@dataclass(frozen=True)
class UndecodedOutput:
    """A HeadOutput for use outside training, which decodes boxes on demand."""

    class_logits: Tensor  # [B, P, K]
    ltrb: Tensor  # [B, P, 4] pixels from the slot's point to the sides; negative values count as 0
    points_xy: Tensor  # [P, 2] pixels
    grid_hw: tuple[int, int]  # slots are the cells of the grid in row-major order: P = H·W

    def boxes_at(self, image: int | Tensor, slots: Tensor) -> Tensor:
        return ltrb_to_xyxy(self.points_xy[slots], self.ltrb[image, slots].relu())

    @cached_property
    def boxes_xyxy(self) -> Tensor:
        return ltrb_to_xyxy(self.points_xy, self.ltrb.relu())


@dataclass(frozen=True)
class Matches:
    """Which slot is the positive sample of which object, for one image."""

    pred_idx: Tensor  # [M] int64 in 0..P-1
    gt_idx: Tensor  # [M] int64 in 0..N-1, each at most once
    conflicts: Tensor  # scalar int64: number of objects minus number of distinct cheapest slots


@dataclass(frozen=True)
class Detections:
    """The detections in one image, highest score first, in pixels of the resized image."""

    boxes_xyxy: Tensor  # [D, 4] pixels, clipped to the image, none empty
    scores: Tensor  # [D] in 0..1, descending
    labels: Tensor  # [D] int64 in 0..K-1
