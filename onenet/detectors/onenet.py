"""OneNet (section 4, Figure 3): backbone, top-down neck to stride 4, a small convolutional head."""

import torch
from torch import Tensor, nn

from onenet.heads import CascadeHead
from onenet.necks import STRIDE
from onenet.structures import HeadOutput, UndecodedOutput

PIXEL_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
PIXEL_STD = (0.229, 0.224, 0.225)


class OneNet(nn.Module):
    """From images to dense predictions. Plain arguments: it can be built without a config."""

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        num_classes: int,
        heads: int = 1,
        box_unit: float = 4.0,
        prior: float = 0.01,
        box_bias: float = 0.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = CascadeHead(
            neck.channels, num_classes, heads, STRIDE, box_unit, prior, box_bias
        )

    def forward(
        self, images: Tensor, num_heads: int | None = None
    ) -> list[HeadOutput | UndecodedOutput]:
        """Normalized images [B, 3, H, W], H and W multiples of 32 -> one output a head.

        `num_heads`: how many of the heads to compute (all if None).
        """
        heads = len(self.head.features) if num_heads is None else num_heads
        return self.head(self.neck(self.backbone(images)), heads)


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB [..., 3, H, W] -> float32 with ImageNet's mean and deviation."""
    mean = torch.tensor(PIXEL_MEAN, device=images.device)[:, None, None] * 255
    std = torch.tensor(PIXEL_STD, device=images.device)[:, None, None] * 255
    return images.float().sub_(mean).div_(std)
