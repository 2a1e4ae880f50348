"""Top-down paths from strides 4..32 to one map of stride 4 (section 4, "Backbone").

B images, C channels, H and W the size of the input image.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4


class FPN(nn.Module):
    """Feature pyramid network with lateral connections, of which the finest map is kept.

    Maps of strides 4, 8, 16, 32, [B, C_i, H/2^i, W/2^i] -> [B, channels, H/4, W/4].
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.channels = channels
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        top = self.laterals[-1](maps[-1])
        for lateral, finer in zip(self.laterals[-2::-1], maps[-2::-1], strict=True):
            top = lateral(finer) + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return self.output(top)


class Deconv(nn.Module):
    """CenterNet's upsampling path, as the released OneNet uses it, with plain convolutions.

    Three stages double the resolution: 3×3 convolution, 4×4 transposed convolution of stride 2,
    then the lateral map is added. They have 4, 2 and 1 times `channels` (256, 128, 64 in the
    released code); a 3×3 convolution ends the path.
    Maps of strides 4, 8, 16, 32, [B, C_i, H/2^i, W/2^i] -> [B, channels, H/4, W/4].
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.channels = channels
        widths = [4 * channels, 2 * channels, channels]
        below = [in_channels[-1], *widths[:-1]]
        self.upsamplings = nn.ModuleList(map(_upsampling, below, widths))
        self.laterals = nn.ModuleList(
            nn.Conv2d(c, width, 1) for c, width in zip(in_channels[-2::-1], widths, strict=True)
        )
        self.output = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        top = maps[-1]
        stages = zip(self.upsamplings, self.laterals, maps[-2::-1], strict=True)
        for upsampling, lateral, finer in stages:
            top = upsampling(top) + lateral(finer)
        return self.output(top)


def _upsampling(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


NECKS = {"fpn": FPN, "deconv": Deconv}
