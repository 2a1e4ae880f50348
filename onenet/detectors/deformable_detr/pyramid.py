"""The multi-scale feature maps (section 4.1, appendix A.2): no FPN, one width for all levels.

B images, L levels, S positions of all levels, C channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onenet.detectors.deformable_detr.geometry import LevelGeometry, valid_cells


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalization over the cells of the image alone; padding becomes 0.

    With the statistics of the padded map, as in the released code, an image's answer would depend
    on the larger images of its batch.
    """

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """[B, C, H, W] and which cells are no padding [B, H, W] bool -> [B, C, H, W] float32."""
        with torch.autocast(maps.device.type, enabled=False):
            groups = maps.float().unflatten(1, (self.num_groups, -1))  # [B, G, C/G, H, W]
            inside = valid[:, None, None].float()
            every = (2, 3, 4)
            count = inside.sum(every, keepdim=True) * groups.shape[2]
            mean = (groups * inside).sum(every, keepdim=True) / count
            centered = (groups - mean) * inside
            variance = centered.square().sum(every, keepdim=True) / count
            normed = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
            scaled = normed * self.weight[:, None, None] + self.bias[:, None, None]
            return scaled * inside[:, 0]


class MultiScaleMaps(nn.Module):
    """From the backbone's maps to L levels of C channels.

    Levels start at the backbone's map of `finest_stride` pixels and double the stride. Those that
    the backbone has are projected by 1×1 convolutions; the first coarser one is a 3×3 convolution
    of stride 2 on the backbone's last map, each further one on the level before it. All end in a
    group normalization.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, levels: int, finest_stride: int):
        super().__init__()
        self.skipped = int(math.log2(finest_stride)) - 2  # backbone maps that are too fine
        self.strides = [finest_stride * 2**level for level in range(levels)]
        used = in_channels[self.skipped :]
        self.laterals = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in used)
        widths = [used[-1]] + [dim] * levels
        self.coarser = nn.ModuleList(
            nn.Conv2d(c, dim, 3, stride=2, padding=1) for c in widths[: levels - len(used)]
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(math.gcd(32, dim), dim) for _ in range(levels))
        for conv in [*self.laterals, *self.coarser]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], sizes_hw: Tensor) -> tuple[Tensor, LevelGeometry]:
        """Maps of strides 4, 8, 16, 32, sizes [B, 2] pixels -> tokens [B, S, C] float32."""
        maps = list(maps[self.skipped :])
        levels = [
            norm(conv(feature), self._valid(feature, stride, sizes_hw))
            for conv, norm, feature, stride in zip(
                self.laterals, self.norms, maps, self.strides, strict=False
            )
        ]
        last = len(maps) - 1
        below = maps[-1] * self._valid(maps[-1], self.strides[last], sizes_hw)[:, None]
        for conv, norm, stride in zip(
            self.coarser, self.norms[last + 1 :], self.strides[last + 1 :], strict=True
        ):
            feature = conv(below)
            below = norm(feature, self._valid(feature, stride, sizes_hw))
            levels.append(below)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        shapes_hw = [tuple(level.shape[-2:]) for level in levels]
        return tokens, LevelGeometry(shapes_hw, self.strides, sizes_hw)

    @staticmethod
    def _valid(feature: Tensor, stride: int, sizes_hw: Tensor) -> Tensor:
        return valid_cells(*feature.shape[-2:], stride, sizes_hw)
