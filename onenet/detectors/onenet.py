"""OneNet (section 4, Figure 3): backbone, top-down neck to stride 4, small convolutional head."""

from torch import Tensor, nn

from onenet.heads import CascadeHead
from onenet.structures import STRIDE, HeadOutput, UndecodedOutput


class OneNet(nn.Module):
    """Maps images to dense predictions. It can be built from plain arguments, without a config."""

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
        """Returns one output per head for normalized images [B, 3, H, W], H and W multiples of 32.

        `sizes_hw` [B, 2], the sizes of the unpadded images, is not used: slots in the padding are
        predicted, too. `num_heads`: number of heads to compute (None: all).
        """
        heads = len(self.head.features) if num_heads is None else num_heads
        return self.head(self.neck(self.backbone(images)), heads)
