"""The dense head and its cascade (section 4, "Head"; section 4.1, "Multi-head Training", Figure 4).

B images, P = H·W slots, K classes, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.boxes import grid_points
from onenet.structures import HeadOutput, UndecodedOutput


class CascadeHead(nn.Module):
    """Prediction heads in a row, which share the class and the box convolution.

    One head: F1 = relu(conv(F0)). Several: F1 = relu(conv([F0, F0])), Fj = relu(conv([F0, Fj-1])),
    where each 2C -> C convolution is the stage's own. From each Fj the shared convolutions give
    class logits and, through a ReLU, the distances from the grid point to the box's sides.
    At inference the first `infer_heads` are computed, the answer is the last one's, and boxes are
    not decoded before it is known which are wanted.

    `box_unit`: pixels that an output of 1 stands for. `prior`: the score, in 0..1, that every slot
    gives every class at the start (as in RetinaNet). `box_bias`: the output, >= 0, from which each
    side of a box starts; well above 0 its ReLU does not die at a high learning rate.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        heads: int = 1,
        stride: int = 4,
        box_unit: float = 4.0,
        prior: float = 0.01,
        box_bias: float = 0.0,
    ):
        super().__init__()
        self.stride, self.box_unit = stride, box_unit
        width = channels if heads == 1 else 2 * channels
        self.features = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1) for _ in range(heads)
        )
        self.class_conv = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_conv = nn.Conv2d(channels, 4, 3, padding=1)
        for conv in [*self.features, self.class_conv, self.box_conv]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.class_conv.bias, -math.log((1 - prior) / prior))
        nn.init.constant_(self.box_conv.bias, box_bias)

    def forward(self, feature: Tensor, num_heads: int) -> list[HeadOutput | UndecodedOutput]:
        """[B, C, H, W] -> the outputs of the first `num_heads` heads, 1 <= num_heads <= heads."""
        points_xy = grid_points(*feature.shape[-2:], self.stride, device=feature.device)
        outputs, previous = [], feature
        for conv in self.features[:num_heads]:
            previous = F.relu(_stage(conv, feature, previous), inplace=True)
            with torch.autocast(feature.device.type, enabled=False):
                answer = previous.float()  # bfloat16 would round boxes to 2 pixels above 256
                class_logits = _slots_last(self.class_conv(answer))  # [B, P, K]
                ltrb = _slots_last(self.box_conv(answer)) * self.box_unit
            output = UndecodedOutput(class_logits, ltrb, points_xy, tuple(feature.shape[-2:]))
            if self.training:
                output = HeadOutput(class_logits, output.boxes_xyxy, points_xy)
            outputs.append(output)
        return outputs


def _stage(conv: nn.Conv2d, feature: Tensor, previous: Tensor) -> Tensor:
    """The convolution of a head, of [F0, Fj-1]. Of [F0, F0] a sum of its weights gives the same by
    half the work, so that the first of several heads takes no longer than an only one."""
    if conv.in_channels == feature.shape[1]:
        return conv(feature)
    if previous is feature:
        of_map, of_previous = conv.weight.chunk(2, dim=1)
        return F.conv2d(feature, of_map + of_previous, conv.bias, padding=conv.padding)
    return conv(torch.cat([feature, previous], dim=1))


def _slots_last(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H·W, C]."""
    return maps.flatten(2).transpose(1, 2)
