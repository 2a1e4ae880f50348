"""OneNet (section 4, Figure 3): backbone, top-down neck to stride 4, a small convolutional head."""

from torch import Tensor, nn

from onenet.heads import CascadeHead
from onenet.structures import STRIDE, HeadOutput, UndecodedOutput


class OneNet(nn.Module):
    """From images to dense predictions. Plain arguments: it can be built without a config."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        neck: nn.Module,
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
        self, images: Tensor, sizes_hw: Tensor | None = None, num_heads: int | None = None
    ) -> list[HeadOutput | UndecodedOutput]:
        """Normalized images [B, 3, H, W], H and W multiples of 32 -> one output a head.

        `sizes_hw` [B, 2], of the unpadded images, changes nothing here: all slots are predicted,
        also those in the padding. `num_heads`: how many of the heads to compute (all if None).
        """
        heads = len(self.head.features) if num_heads is None else num_heads
        return self.head(self.neck(self.backbone(images)), heads)
