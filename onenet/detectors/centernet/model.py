"""CenterNet (sections 3 and 4): three small heads on a neck's map of stride 4.

B images, P = H·W cells of the map, K classes, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.boxes import grid_points
from onenet.detectors.centernet.loss import CenterNetLoss
from onenet.detectors.centernet.output import CenterOutput
from onenet.structures import STRIDE


class CenterNet(nn.Module):
    """Maps images to a heatmap of centres, and a size and an offset at every cell.

    `neck`: from detectors.necks. `width`: channels inside each head. `prior`: the approximate
    initial score, in (0, 1), of every class at every cell (as in RetinaNet). All other weights have
    PyTorch's default initialization. The model is trained by its own `loss`, without matching;
    `min_overlap` determines the Gaussians of that loss.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        neck: nn.Module,
        width: int = 64,
        prior: float = 0.1,
        min_overlap: float = 0.7,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heatmap = CenterNetHead(neck.channels, width, num_classes)
        self.size = CenterNetHead(neck.channels, width, 2)
        self.offset = CenterNetHead(neck.channels, width, 2)
        nn.init.constant_(self.heatmap.output.bias, -math.log((1 - prior) / prior))
        self.loss = CenterNetLoss(min_overlap=min_overlap)

    def forward(
        self, images: Tensor, sizes_hw: Tensor | None = None, num_heads: int | None = None
    ) -> list[CenterOutput]:
        """Returns a single output for normalized images [B, 3, H, W], H and W multiples of 32.

        `sizes_hw` [B, 2] int64: sizes of the unpadded images in pixels (None: no padding). In
        evaluation, the logits of cells in the padding are -inf; in training, these cells are
        predicted and learn that they are background. `num_heads` only applies to OneNet's cascade
        and is ignored.
        """
        feature = self.neck(self.backbone(images))
        grid_hw = tuple(feature.shape[-2:])
        class_logits = self.heatmap(feature)
        if sizes_hw is not None and not self.training:
            outside = cells_outside(sizes_hw, grid_hw)[:, :, None]
            class_logits = class_logits.masked_fill(outside, -torch.inf)
        size_wh = self.size(feature) * STRIDE  # the head predicts cells
        points_xy = grid_points(*grid_hw, STRIDE, device=feature.device)
        return [CenterOutput(class_logits, size_wh, self.offset(feature), points_xy, grid_hw)]


class CenterNetHead(nn.Module):
    """3×3 convolution, ReLU, 1×1 convolution (section 4): [B, C, H, W] -> [B, P, outputs].

    The output is float32, also under autocast: above 256 pixels, bfloat16 would round sizes to 2
    pixels.
    """

    def __init__(self, channels: int, width: int, outputs: int):
        super().__init__()
        self.features = nn.Conv2d(channels, width, 3, padding=1)
        self.output = nn.Conv2d(width, outputs, 1)

    def forward(self, feature: Tensor) -> Tensor:
        hidden = F.relu(self.features(feature), inplace=True)
        with torch.autocast(feature.device.type, enabled=False):
            return self.output(hidden.float()).flatten(2).transpose(1, 2)


def cells_outside(sizes_hw: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Which cells lie entirely in the padding: [B, 2] pixels -> [B, P] bool."""
    top, left = (torch.arange(n, device=sizes_hw.device) * STRIDE for n in grid_hw)
    below, right = top >= sizes_hw[:, :1], left >= sizes_hw[:, 1:]
    return (below[:, :, None] | right[:, None]).flatten(1)
