"""Where the positions of all feature levels lie in the image, and which of them are padding.

B images, L levels, S positions of all levels together: level by level from the finest, each row by
row. Normalized coordinates are (x, y) as shares of the unpadded image's width and height.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from onenet.boxes import grid_points


def valid_cells(height: int, width: int, stride: int, sizes_hw: Tensor) -> Tensor:
    """The cells of a map that see some of the image: sizes [B, 2] pixels -> [B, height, width]
    bool. The others are padding."""
    ys = torch.arange(height, device=sizes_hw.device) * stride
    xs = torch.arange(width, device=sizes_hw.device) * stride
    inside_y, inside_x = ys < sizes_hw[:, :1], xs < sizes_hw[:, 1:]
    return inside_y[:, :, None] & inside_x[:, None, :]


class LevelGeometry:
    """The geometry of L feature maps of a batch.

    `shapes_hw`: cells of each map. `strides`: pixels of a cell. `sizes_hw`: [B, 2] int64, pixels of
    each image without padding.
    """

    def __init__(
        self, shapes_hw: Sequence[tuple[int, int]], strides: Sequence[int], sizes_hw: Tensor
    ):
        self.shapes_hw, self.strides, self.sizes_hw = list(shapes_hw), list(strides), sizes_hw
        self.lengths = [height * width for height, width in shapes_hw]
        self.image_wh = sizes_hw.flip(1).float()  # [B, 2] pixels

    @cached_property
    def cells_wh(self) -> Tensor:
        """Columns and rows of each map: [L, 2]."""
        cells = torch.tensor([(w, h) for h, w in self.shapes_hw], dtype=torch.float32)
        return cells.to(self.sizes_hw.device, non_blocking=True)

    @cached_property
    def points_xy(self) -> Tensor:
        """The centre of each position's cell: [S, 2] pixels."""
        maps = zip(self.shapes_hw, self.strides, strict=True)
        return torch.cat(
            [grid_points(*hw, stride, device=self.sizes_hw.device) for hw, stride in maps]
        )

    @cached_property
    def reference_points(self) -> Tensor:
        """The same, normalized: [B, S, 2]. In padding above 1."""
        return self.points_xy / self.image_wh[:, None]

    @cached_property
    def padding(self) -> Tensor:
        """Which positions see nothing of the image: [B, S] bool."""
        maps = zip(self.shapes_hw, self.strides, strict=True)
        valid = [valid_cells(*hw, stride, self.sizes_hw).flatten(1) for hw, stride in maps]
        return ~torch.cat(valid, dim=1)

    @cached_property
    def valid_ratios(self) -> Tensor:
        """The share of each map's width and height that the image takes: [B, L, 2], in 0..1.

        A normalized coordinate times this ratio is a share of the padded map. The released code
        counts whole cells; here the image's border may lie inside a cell.
        """
        cells = [self.image_wh / stride for stride in self.strides]  # L × [B, 2]
        return torch.stack(cells, dim=1) / self.cells_wh
