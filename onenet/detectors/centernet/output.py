"""CenterNet's predictions (section 4), and how they are decoded to boxes.

B images, P = H·W cells of the map, K classes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onenet.structures import STRIDE


@dataclass(frozen=True)
class CenterOutput:
    """The predictions at every cell (slot) of the map. Boxes are decoded on demand."""

    class_logits: Tensor  # [B, P, K], logits of the heatmap Ŷ
    size_wh: Tensor  # [B, P, 2] pixels; negative values count as 0
    offset_xy: Tensor  # [B, P, 2] cells, from the cell's upper left corner to the centre; unbounded
    points_xy: Tensor  # [P, 2] pixels, the centre of each cell
    grid_hw: tuple[int, int]  # slots are the cells of the map in row-major order

    def boxes_at(self, image: int | Tensor, slots: Tensor) -> Tensor:
        """See `HeadOutput.boxes_at`."""
        return decode(
            self.points_xy[slots], self.offset_xy[image, slots], self.size_wh[image, slots]
        )

    @cached_property
    def boxes_xyxy(self) -> Tensor:
        """All boxes: [B, P, 4] pixels, x1 <= x2 and y1 <= y2, not clipped to the image."""
        return decode(self.points_xy, self.offset_xy, self.size_wh)


def decode(points_xy: Tensor, offset_xy: Tensor, size_wh: Tensor) -> Tensor:
    """Decodes boxes (section 4, "From points to bounding boxes"): [P, 2] pixels, [..., P, 2] cells,
    [..., P, 2] pixels -> [..., P, 4] pixels."""
    center = points_xy + (offset_xy - 0.5) * STRIDE
    half = size_wh.relu() / 2
    return torch.cat([center - half, center + half], dim=-1)
