"""CenterNet's training targets: the objects' cells, and the heatmap Y with a Gaussian around each
object (section 3).

B images, P = H·W cells of the map, K classes, M objects in the batch, Q entries of the heatmap.
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
    """The objects of a batch on the map, image by image."""

    grid_hw: tuple[int, int]  # (H, W) of the map, P = H·W
    image: Tensor  # [M] int64 in 0..B-1
    label: Tensor  # [M] int64 in 0..K-1
    cell_xy: Tensor  # [M, 2] int64, column and row of the cell that contains the centre
    slot: Tensor  # [M] int64 in 0..P-1, index of that cell
    size_wh: Tensor  # [M, 2] cells
    offset_xy: Tensor  # [M, 2] cells, in [0, 1]: from the cell's upper left corner to the centre

    def conflicts(self) -> Tensor:
        """Number of objects minus number of distinct cells of their centres: scalar int64."""
        cell = self.image * math.prod(self.grid_hw) + self.slot
        return not_first_of_group(cell).sum()


def center_targets(targets: Sequence[Target], grid_hw: tuple[int, int]) -> CenterTargets:
    """Locates the images' objects on a map of H × W cells."""
    height, width = grid_hw
    image = torch.cat([torch.full_like(t.gt_labels, i) for i, t in enumerate(targets)])
    label = torch.cat([target.gt_labels for target in targets])
    boxes = torch.cat([target.gt_xyxy for target in targets]) / STRIDE
    low, high = boxes[:, :2], boxes[:, 2:]
    center = (low + high) / 2
    # A centre that rounds to the map's right or lower border belongs to the last cell.
    x, y = center[:, 0].long().clamp(max=width - 1), center[:, 1].long().clamp(max=height - 1)
    cell_xy = torch.stack([x, y], dim=1)
    slot = y * width + x
    return CenterTargets(grid_hw, image, label, cell_xy, slot, high - low, center - cell_xy)


@dataclass(frozen=True)
class Heatmap:
    """The heatmap Y [B, P, K] as a sparse list of its non-zero entries.

    Y is 1 at an object's cell. It is also 1, but without a peak, at every cell of a crowd, because
    the class may be present there. If several entries have the same index, all but one have
    value 0.
    """

    index: tuple[Tensor, Tensor, Tensor]  # image, slot and class, [Q] int64 each
    value: Tensor  # [Q] in 0..1
    peak: Tensor  # [Q] bool: whether it is an object's cell; one entry per cell and class


def draw_heatmap(
    objects: CenterTargets,
    targets: Sequence[Target],
    points_xy: Tensor,
    num_classes: int,
    min_overlap: float,
) -> Heatmap:
    """Draws each object's Gaussian; where Gaussians of a class overlap, the maximum counts
    (section 3).

    `points_xy` [P, 2] pixels: the cells' centres. Every object gets a window large enough for an
    object that fills the map. So the number of entries is known without a synchronization.
    """
    largest = torch.tensor(objects.grid_hw, dtype=torch.float32)
    reach = int(gaussian_radius(largest, min_overlap))
    radius = gaussian_radius(objects.size_wh, min_overlap).long().clamp(max=reach)
    slot, value = gaussian_kernels(objects.cell_xy, radius, objects.grid_hw, reach)  # [M, T]
    image, label = (t[:, None].expand_as(slot) for t in (objects.image, objects.label))
    columns = [[t.flatten()] for t in (image, slot, label, value, value == 1)]
    cells = torch.arange(len(points_xy), device=slot.device)
    for number, target in enumerate(targets):
        for crowd_label, inside in slots_in_crowds(points_xy, target):
            image, label = torch.full_like(cells, number), crowd_label.expand_as(cells)
            entries = (image, cells, label, inside.to(value.dtype), torch.zeros_like(inside))
            for column, tensor in zip(columns, entries, strict=True):
                column.append(tensor)
    *index, value, peak = map(torch.cat, columns)
    image, slot, label = index
    position = (image * len(points_xy) + slot) * num_classes + label
    # Keep the highest entry at each position; of equal ones the first, so peaks win over crowds.
    redundant = not_first_of_group(position, -value)
    return Heatmap(tuple(index), value.masked_fill(redundant, 0), peak & ~redundant)


def gaussian_radius(size_wh: Tensor, min_overlap: float) -> Tensor:
    """The distance that both corners of a box may move while the IoU stays at least `min_overlap`:
    sizes [..., 2] -> [...], in the same unit (CornerNet, arXiv 1808.01244, section 3.2).

    If the corners of a box w × h move by r in x and y, the IoU t is lowest in one of three cases.
    Each gives a quadratic equation in r; its smallest positive solution is r.

    1. One corner moves in and one out. The box is shifted, and its intersection with the original
       is i = (w - r)(h - r): t = i / (2wh - i), so r² - (w + h) r + wh (1 - t) / (1 + t) = 0.
    2. Both move in: t = (w - 2r)(h - 2r) / wh, so 4 r² - 2 (w + h) r + wh (1 - t) = 0.
    3. Both move out: t = wh / ((w + 2r)(h + 2r)), so 4t r² + 2t (w + h) r - wh (1 - t) = 0.

    The code released with CornerNet, CenterNet and CenterNet-better differs: it takes the larger
    solutions in cases 1 and 2 and omits the factor of r² from the divisors in cases 2 and 3. Its
    minimum is then case 3 times 4t, about 0.27 of a square's side instead of 0.08. For squares,
    `min_overlap` 0.2 gives the radius that the released code gives at 0.7.
    """
    total, area, t = size_wh.sum(dim=-1), size_wh.prod(dim=-1), min_overlap
    # 2c / (-b ± root), because the usual formula subtracts nearly equal numbers for narrow boxes.
    shift = area * (1 - t) / (1 + t)
    shifted = 2 * shift / (total + (total**2 - 4 * shift).sqrt())
    change = area * (1 - t)
    inside = change / (total + (total**2 - 4 * change).sqrt())
    outside = change / (t * total + ((t * total) ** 2 + 4 * t * change).sqrt())
    return torch.stack([shifted, inside, outside]).amin(dim=0)


def gaussian_kernels(
    cell_xy: Tensor, radius: Tensor, grid_hw: tuple[int, int], reach: int
) -> tuple[Tensor, Tensor]:
    """Each object's kernel in a window of 2·reach + 1 cells squared around the object's cell.

    exp(-(dx² + dy²) / 2σ²) at cells within `radius` in x and in y, else 0. It is 1 only at the
    object's cell. σ is a sixth of the diameter 2·radius + 1, as in the released code.
    `cell_xy` [M, 2] int64, column and row on the map; `radius` [M] int64 in 0..reach ->
    slots [M, T] int64 on the map, values [M, T] in 0..1, T = (2·reach + 1)². Cells of the window
    outside the map get value 0 and are moved to a slot on the map.
    """
    height, width = grid_hw
    steps = torch.arange(-reach, reach + 1, device=cell_xy.device)
    sigma = (2 * radius[:, None] + 1) / 6
    profile = torch.exp(-(steps**2) / (2 * sigma**2))  # [M, 2·reach + 1]
    profile = profile.masked_fill(steps.abs() > radius[:, None], 0)
    (columns, profile_x), (rows, profile_y) = (
        _clip_to_map(cell_xy[:, axis, None] + steps, profile, length)
        for axis, length in enumerate((width, height))
    )
    slots = rows[:, :, None] * width + columns[:, None]
    values = profile_y[:, :, None] * profile_x[:, None]
    return slots.flatten(1), values.flatten(1)


def _clip_to_map(cells: Tensor, profile: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Clips cells along an axis to 0..length-1, and sets the profile to 0 at those outside."""
    outside = (cells < 0) | (cells >= length)
    return cells.clamp(0, length - 1), profile.masked_fill(outside, 0)
