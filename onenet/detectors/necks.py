"""Top-down paths from maps of strides 4 to 32 to one map of stride 4 (section 4, "Backbone").

B images, C channels, H and W the size of the input image.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

TAPS = 9  # kernel positions of a 3×3 convolution


class FPN(nn.Module):
    """Feature pyramid network with lateral connections that returns the finest map only.

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


class ModulatedDeformConv(nn.Conv2d):
    """3×3 convolution at sampling positions predicted from its input (deformable convolution v2).

    Another 3×3 convolution predicts 27 values per output position. The first 18 are offsets of the
    9 taps (in row-major order), in cells of the map, in torchvision's order: dy of tap 0, dx of tap
    0, dy of tap 1, ... The other 9 are logits of the taps' weights in 0..1. The input is sampled
    bilinearly and is 0 outside the map. All 27 values are initially 0, which gives half the output
    of a plain convolution.

    Sampling and summation use the parameters' type, also under autocast, as torchvision has no
    bfloat16 kernel. [B, in_channels, H, W] -> [B, out_channels, H, W].
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self.taps = nn.Conv2d(in_channels, 3 * TAPS, 3, padding=1)
        nn.init.zeros_(self.taps.weight)
        nn.init.zeros_(self.taps.bias)

    def forward(self, feature: Tensor) -> Tensor:
        taps = self.taps(feature)
        with torch.autocast(feature.device.type, enabled=False):
            feature, taps = feature.to(self.weight.dtype), taps.to(self.weight.dtype)
            offset, logits = taps.split([2 * TAPS, TAPS], dim=1)
            return deform_conv2d(
                feature, offset, self.weight, self.bias, padding=self.padding, mask=logits.sigmoid()
            )


def _conv3x3(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)


class Deconv(nn.Module):
    """CenterNet's upsampling path, as in the released OneNet.

    Each of three stages doubles the resolution: a 3×3 convolution, a 4×4 transposed convolution of
    stride 2, and the addition of the lateral map. The stages have 4, 2 and 1 times `channels`
    channels (256, 128, 64 in the released code). A final 3×3 convolution follows. `convolution`
    builds a stage's 3×3 convolution from its numbers of input and output channels: a plain one, or
    a deformable one as in the released code.
    Maps of strides 4, 8, 16, 32, [B, C_i, H/2^i, W/2^i] -> [B, channels, H/4, W/4].
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        convolution: Callable[[int, int], nn.Module] = _conv3x3,
    ):
        super().__init__()
        self.channels = channels
        widths = [4 * channels, 2 * channels, channels]
        input_widths = [in_channels[-1], *widths[:-1]]
        self.upsamplings = nn.ModuleList(
            _upsampling(convolution(c, width), width)
            for c, width in zip(input_widths, widths, strict=True)
        )
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


def _upsampling(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(
        convolution,
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


NECKS = {
    "fpn": FPN,
    "deconv": Deconv,
    "deconv_dcn": partial(Deconv, convolution=ModulatedDeformConv),
}


def make_neck(
    name: str, in_channels: Sequence[int], channels: int, init: str = "default"
) -> nn.Module:
    """Returns one of NECKS. `init`: with `default`, each module initializes its own weights; with
    `xavier`, as in the released code, all weights are Xavier-uniform, including those that predict
    the taps of deformable convolutions."""
    neck = NECKS[name](in_channels, channels)
    if init == "xavier":
        for parameter in neck.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    return neck
