"""The dense head (section 4, "Head") and the cascade of heads (section 4.1, Figure 4).

B images, P = H·W slots, K classes, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.boxes import grid_points
from onenet.ops.pair_conv import pair_conv
from onenet.structures import HeadOutput, UndecodedOutput


class CascadeHead(nn.Module):
    """One prediction head, or several in a cascade, on a feature map F0 [B, C, H, W].

    One head: F1 = relu(conv(F0)). Several: F1 = relu(conv([F0, F0])), Fj = relu(conv([F0, Fj-1])),
    and each head has its own 2C -> C convolution. Two convolutions, shared by all heads, predict
    from each Fj the class logits and, through a ReLU, the distances from the grid point to the four
    sides of the box. Outside training, boxes are decoded on demand.

    `stride`: pixels between grid points. `box_unit`: pixels per unit of the box output. `prior`:
    the approximate score in (0, 1) of every class at every slot before training (as in RetinaNet).
    `box_bias`: the approximate box output, >= 0, before training; if it is well above 0, the ReLU
    does not die at a high learning rate.
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
        self.is_cascade = heads > 1
        width = channels if heads == 1 else 2 * channels
        self.features = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1) for _ in range(heads)
        )
        self.class_conv = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_conv = nn.Conv2d(channels, 4, 3, padding=1)
        for conv in [*self.features, self.class_conv, self.box_conv]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.class_conv.get_parameter("bias"), -math.log((1 - prior) / prior))
        nn.init.constant_(self.box_conv.get_parameter("bias"), box_bias)

    def forward(self, feature: Tensor, num_heads: int) -> list[HeadOutput | UndecodedOutput]:
        """Returns the outputs of the first `num_heads` heads, 1 <= num_heads <= heads, for a
        feature map [B, C, H, W]."""
        height, width = feature.shape[-2:]
        points_xy = grid_points(height, width, self.stride, device=feature.device)
        outputs: list[HeadOutput | UndecodedOutput] = []
        previous = feature
        for conv in self.features[:num_heads]:
            if self.is_cascade:
                previous = F.relu(pair_conv(conv, feature, previous), inplace=True)
            else:
                previous = F.relu(conv(feature), inplace=True)
            with torch.autocast(feature.device.type, enabled=False):
                f = previous.float()  # above 256 pixels, bfloat16 would round boxes to 2 pixels
                class_logits = _slots_of(self.class_conv(f))  # [B, P, K]
                ltrb = _slots_of(self.box_conv(f)) * self.box_unit  # [B, P, 4]
            output = UndecodedOutput(class_logits, ltrb, points_xy, (height, width))
            if self.training:
                outputs.append(HeadOutput(class_logits, output.boxes_xyxy, points_xy))
            else:
                outputs.append(output)
        return outputs

    def keep_first(self, num_heads: int) -> None:
        """Removes the other heads, which the first ones do not need."""
        self.features = self.features[:num_heads]


def _slots_of(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H·W, C]."""
    return maps.flatten(2).transpose(1, 2)
