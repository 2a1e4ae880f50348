"""What CenterNet learns from: the objects' cells, and the heatmap Y around them (section 3).

B images, P = H·W cells of the map, K classes, M objects of the batch, Q entries of the heatmap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onenet.assigners import late_objects
from onenet.detectors.centernet.gaussians import gaussian_kernels, gaussian_radius
from onenet.losses import crowded
from onenet.structures import STRIDE, Target


@dataclass(frozen=True)
class CenterTargets:
    """The objects of a batch on the map, image after image."""

    grid_hw: tuple[int, int]  # of the map, P = H·W
    image: Tensor  # [M] int64 in 0..B-1
    label: Tensor  # [M] int64 in 0..K-1
    cell_xy: Tensor  # [M, 2] int64, column and row of the cell in which the centre lies
    slot: Tensor  # [M] int64 in 0..P-1, that cell
    size_wh: Tensor  # [M, 2] cells
    offset_xy: Tensor  # [M, 2] cells, in [0, 1]: from the cell's upper left corner to the centre

    def conflicts(self) -> Tensor:
        """Objects less the distinct cells that they have: scalar int64."""
        place = self.image * math.prod(self.grid_hw) + self.slot
        return late_objects(torch.zeros_like(place), place).sum()


def center_targets(targets: Sequence[Target], grid_hw: tuple[int, int]) -> CenterTargets:
    """Where the objects of the images are on a map of H × W cells."""
    height, width = grid_hw
    image = torch.cat([torch.full_like(t.gt_labels, i) for i, t in enumerate(targets)])
    label = torch.cat([target.gt_labels for target in targets])
    boxes = torch.cat([target.gt_xyxy for target in targets]) / STRIDE
    low, high = boxes[:, :2], boxes[:, 2:]
    center = (low + high) / 2
    # A centre that rounds to the border of the map belongs to the last cell.
    x, y = center[:, 0].long().clamp(max=width - 1), center[:, 1].long().clamp(max=height - 1)
    cell_xy = torch.stack([x, y], dim=1)
    slot = y * width + x
    return CenterTargets(grid_hw, image, label, cell_xy, slot, high - low, center - cell_xy)


@dataclass(frozen=True)
class Heatmap:
    """The heatmap Y [B, P, K] entry by entry, where it is not 0.

    Y is 1 at an object's cell. It is 1 all over a crowd as well, where nothing says that the class
    is absent, but without a peak. Of several entries at one place all but one have value 0.
    """

    at: tuple[Tensor, Tensor, Tensor]  # image, slot and class, [Q] int64 each
    value: Tensor  # [Q] in 0..1
    peak: Tensor  # [Q] bool: an object's cell, each cell and class once


def draw_heatmap(
    objects: CenterTargets,
    targets: Sequence[Target],
    points_xy: Tensor,
    num_classes: int,
    min_overlap: float,
) -> Heatmap:
    """Each object's Gaussian, and the maximum where those of a class overlap (section 3).

    `points_xy` [P, 2] pixels, of the cells' middles. Each object has a window in which one that
    fills the map has room, so the device need not be asked how many entries there are.
    """
    largest = torch.tensor(objects.grid_hw, dtype=torch.float32)
    reach = int(gaussian_radius(largest, min_overlap))
    radius = gaussian_radius(objects.size_wh, min_overlap).long().clamp(max=reach)
    slot, value = gaussian_kernels(objects.cell_xy, radius, objects.grid_hw, reach)  # [M, T]
    image, label = (n[:, None].expand_as(slot) for n in (objects.image, objects.label))
    columns = [[n.flatten()] for n in (image, slot, label, value, value == 1)]
    every = torch.arange(len(points_xy), device=slot.device)
    for number, target in enumerate(targets):
        for crowd, inside in crowded(points_xy, target):
            image, label = torch.full_like(every, number), crowd.expand_as(every)
            entries = (image, every, label, inside.to(value.dtype), torch.zeros_like(inside))
            for column, more in zip(columns, entries, strict=True):
                column.append(more)
    *at, value, peak = map(torch.cat, columns)
    image, slot, label = at
    place = (image * len(points_xy) + slot) * num_classes + label
    # By a higher value at its place, or by an equal one before it: peaks are the first.
    beaten = late_objects(-value, place)
    return Heatmap(tuple(at), value.masked_fill(beaten, 0), peak & ~beaten)
