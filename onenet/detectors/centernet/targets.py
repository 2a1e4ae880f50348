"""What CenterNet learns from: the objects' cells, and the heatmap Y, a Gaussian around each
(section 3).

B images, P = H·W cells of the map, K classes, M objects of the batch, Q entries of the heatmap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onenet.ops.groups import not_first_of_group
from onenet.structures import STRIDE, Target, slots_in_crowds


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
        return not_first_of_group(place).sum()


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
        for crowd, inside in slots_in_crowds(points_xy, target):
            image, label = torch.full_like(every, number), crowd.expand_as(every)
            entries = (image, every, label, inside.to(value.dtype), torch.zeros_like(inside))
            for column, more in zip(columns, entries, strict=True):
                column.append(more)
    *at, value, peak = map(torch.cat, columns)
    image, slot, label = at
    place = (image * len(points_xy) + slot) * num_classes + label
    # By a higher value at its place, or by an equal one before it: peaks are the first.
    beaten = not_first_of_group(place, -value)
    return Heatmap(tuple(at), value.masked_fill(beaten, 0), peak & ~beaten)


def gaussian_radius(size_wh: Tensor, min_overlap: float) -> Tensor:
    """How far both corners of a box may be off if its IoU is to stay at least `min_overlap`:
    sizes [..., 2] -> [...], in the same unit (CornerNet, arXiv 1808.01244, section 3.2).

    Of a box w × h with its corners off by r in x and in y, the IoU t is lowest in one of three
    cases. Each is a quadratic equation in r; r is its smallest positive solution.

    1. One corner moves in and one out. The box is shifted, (w - r)(h - r) is shared:
       t = shared / (2wh - shared), so r² - (w + h) r + wh (1 - t) / (1 + t) = 0.
    2. Both move in: t = (w - 2r)(h - 2r) / wh, so 4 r² - 2 (w + h) r + wh (1 - t) = 0.
    3. Both move out: t = wh / ((w + 2r)(h + 2r)), so 4t r² + 2t (w + h) r - wh (1 - t) = 0.

    The code released with CornerNet, CenterNet and CenterNet-better differs: it takes the larger
    solutions in cases 1 and 2 and forgets the factor of r² in the divisors of 2 and 3. Case 3 times
    4t is what it uses then: about 0.27 of a square's side in place of 0.08. A `min_overlap` of 0.2
    gives squares the radius that the released code gives them at 0.7.
    """
    total, area, t = size_wh.sum(dim=-1), size_wh.prod(dim=-1), min_overlap
    # 2c / (-b ± root): the usual formula subtracts what is nearly equal in a narrow box.
    shift = area * (1 - t) / (1 + t)
    shifted = 2 * shift / (total + (total**2 - 4 * shift).sqrt())
    change = area * (1 - t)
    inside = change / (total + (total**2 - 4 * change).sqrt())
    outside = change / (t * total + ((t * total) ** 2 + 4 * t * change).sqrt())
    return torch.stack([shifted, inside, outside]).amin(dim=0)


def gaussian_kernels(
    cell_xy: Tensor, radius: Tensor, grid_hw: tuple[int, int], reach: int
) -> tuple[Tensor, Tensor]:
    """The kernel of each object in the window of 2·reach + 1 cells squared around its own cell.

    exp(-(dx² + dy²) / 2σ²) at cells at most `radius` off in x and in y, else 0. It is 1 at the
    object's cell only. σ is a sixth of the diameter 2·radius + 1, as in the released code.
    `cell_xy` [M, 2] int64, column and row, on the map; `radius` [M] int64 in 0..reach ->
    slots [M, T] int64 on the map, values [M, T] in 0..1, T = (2·reach + 1)². Cells of the window
    that are not on the map have value 0 at a slot that is.
    """
    height, width = grid_hw
    steps = torch.arange(-reach, reach + 1, device=cell_xy.device)
    sigma = (2 * radius[:, None] + 1) / 6
    profile = torch.exp(-(steps**2) / (2 * sigma**2))  # [M, 2·reach + 1]
    profile = profile.masked_fill(steps.abs() > radius[:, None], 0)
    (columns, across), (rows, down) = (
        _on_map(cell_xy[:, axis, None] + steps, profile, cells)
        for axis, cells in enumerate((width, height))
    )
    slots = rows[:, :, None] * width + columns[:, None]
    values = down[:, :, None] * across[:, None]
    return slots.flatten(1), values.flatten(1)


def _on_map(places: Tensor, profile: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Places along an axis moved into 0..cells-1, and the profile, which is 0 where they were."""
    outside = (places < 0) | (places >= cells)
    return places.clamp(0, cells - 1), profile.masked_fill(outside, 0)
