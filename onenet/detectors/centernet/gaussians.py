"""The Gaussian around an object's centre, in the unit of a cell of the map (section 3).

M objects.
"""

import torch
from torch import Tensor


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
