"""Multi-scale deformable attention (section 4.1, equation 3), and the geometry of its feature maps:
the positions of all levels in the image, which of them are padding, and their encoding.

B images, Q queries, M attention heads, L levels, S positions of all levels together (from the
finest level on, each in row-major order), N sampling points per head and level ("K" in the paper),
D channels per head, C = M · D. Normalized coordinates are (x, y) as fractions of the unpadded
image's width and height.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.boxes import grid_points

TEMPERATURE = 10000


def valid_cells(height: int, width: int, stride: int, sizes_hw: Tensor) -> Tensor:
    """Which cells of a map overlap the image: sizes [B, 2] pixels -> [B, height, width] bool. The
    others are padding."""
    ys = torch.arange(height, device=sizes_hw.device) * stride
    xs = torch.arange(width, device=sizes_hw.device) * stride
    inside_y, inside_x = ys < sizes_hw[:, :1], xs < sizes_hw[:, 1:]
    return inside_y[:, :, None] & inside_x[:, None, :]


class LevelGeometry:
    """The geometry of the L feature maps of a batch.

    `shapes_hw`: (height, width) of each map in cells. `strides`: pixels per cell. `sizes_hw`:
    [B, 2] int64, size of each unpadded image in pixels.
    """

    def __init__(
        self, shapes_hw: Sequence[tuple[int, int]], strides: Sequence[int], sizes_hw: Tensor
    ):
        self.shapes_hw, self.strides, self.sizes_hw = list(shapes_hw), list(strides), sizes_hw
        self.lengths = [height * width for height, width in shapes_hw]
        self.image_wh = sizes_hw.flip(1).float()  # [B, 2] pixels

    @cached_property
    def cells_wh(self) -> Tensor:
        """Numbers of columns and rows of each map: [L, 2]."""
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
        """The same, normalized: [B, S, 2]. Above 1 in the padding."""
        return self.points_xy / self.image_wh[:, None]

    @cached_property
    def padding(self) -> Tensor:
        """Which positions do not overlap the image: [B, S] bool."""
        maps = zip(self.shapes_hw, self.strides, strict=True)
        valid = [valid_cells(*hw, stride, self.sizes_hw).flatten(1) for hw, stride in maps]
        return ~torch.cat(valid, dim=1)

    @cached_property
    def valid_ratios(self) -> Tensor:
        """The fraction of each map's width and height that the image covers: [B, L, 2], in 0..1.

        A normalized coordinate times this ratio is a fraction of the padded map. The released code
        counts whole cells; here the image's border may lie inside a cell.
        """
        cells = [self.image_wh / stride for stride in self.strides]  # L × [B, 2]
        return torch.stack(cells, dim=1) / self.cells_wh


def sine_encoding(coordinates: Tensor, features: int) -> Tensor:
    """Encodes normalized coordinates: [..., N] -> [..., N · features], coordinate by coordinate.

    `features`: features per coordinate, even. Features 2i and 2i + 1 of a coordinate x are the sine
    and the cosine of 2π x / 10000^(2i / features).
    """
    pairs = torch.arange(features // 2, device=coordinates.device, dtype=torch.float32)
    frequencies = 2 * math.pi * TEMPERATURE ** (-2 * pairs / features)
    angles = coordinates[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def deformable_sampling(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The sums of equation 3 over levels and points: weighted bilinear samples.

    values [B, S, C], locations [B, Q, M, L, N, 2] as (x, y) fractions of the maps' width and
    height, weights [B, Q, M, L, N] -> [B, Q, C]. Outside of a map all values are 0.
    """
    images, queries, heads, levels, points, _ = locations.shape
    channels = values.transpose(1, 2).contiguous()  # [B, C, S]
    maps = channels.view(images * heads, -1, channels.shape[-1])  # [B·M, D, S]
    maps = maps.split([height * width for height, width in shapes_hw], dim=2)
    # Queries last, to make the contiguous dimension of samples and weights long.
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [L, B·M, N, Q, 2]
    weights = weights.permute(3, 0, 2, 4, 1).reshape(levels, images * heads, 1, points, queries)
    total = 0
    for level, shape_hw in enumerate(shapes_hw):
        feature = maps[level].unflatten(2, shape_hw)  # [B·M, D, H, W]
        samples = F.grid_sample(feature, grids[level], mode="bilinear", align_corners=False)
        total = total + (samples * weights[level]).sum(dim=2)  # [B·M, D, Q]
    return total.view(images, -1, queries).transpose(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    """Each query attends to `points` locations on every level, around its reference.

    Two linear layers predict from the query the locations' offsets from its reference and their
    weights. If the reference is a point, offsets are in cells of the level; if it is a box, in
    units of half its size divided by `points` (appendix A.4). Values in the padding are 0. Offsets,
    weights and samples are float32, also under autocast.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_projection = nn.Linear(dim, dim)
        self.output_projection = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes attention weights as equal, and spreads the heads' directions over the
        circle, with point n of each head n cells from the reference (appendix A.4)."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)  # [M, 2]
        distances = torch.arange(1, self.points + 1)[:, None]  # [N, 1]
        offsets = directions[:, None, None] * distances  # [M, 1, N, 2]
        offsets = offsets.expand(self.heads, self.levels, self.points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, queries: Tensor, references: Tensor, tokens: Tensor, geometry: LevelGeometry
    ) -> Tensor:
        """Attends from queries [B, Q, C] to tokens [B, S, C] -> [B, Q, C].

        `references`: normalized points [B, Q, 2] as (x, y), or boxes [B, Q, 4] as (cx, cy, w, h).
        """
        values = self.value_projection(tokens).masked_fill(geometry.padding[..., None], 0)
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.float()
            weights = self.attention_weights(queries).unflatten(2, (self.heads, -1)).softmax(-1)
            weights = weights.unflatten(3, (self.levels, self.points))
            locations = self.sampling_locations(queries, references, geometry)
            attended = deformable_sampling(values.float(), geometry.shapes_hw, locations, weights)
        return self.output_projection(attended)

    def sampling_locations(
        self, queries: Tensor, references: Tensor, geometry: LevelGeometry
    ) -> Tensor:
        """Where each query samples, in fractions of the padded maps: [B, Q, M, L, N, 2]."""
        offsets = self.sampling_offsets(queries)
        offsets = offsets.unflatten(2, (self.heads, self.levels, self.points, 2))
        ratios = geometry.valid_ratios[:, None]  # [B, 1, L, 2]
        centers = references[:, :, None, :2] * ratios  # [B, Q, L, 2]
        if references.shape[-1] == 2:
            unit = 1 / geometry.cells_wh  # [L, 2]
            return centers[:, :, None, :, None] + offsets * unit[:, None]
        unit = references[:, :, None, 2:] * ratios * (0.5 / self.points)  # [B, Q, L, 2]
        return centers[:, :, None, :, None] + offsets * unit[:, :, None, :, None]
