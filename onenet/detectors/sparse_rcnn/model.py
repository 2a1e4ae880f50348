"""Sparse R-CNN (section 3, Figure 3): backbone, FPN, learned proposals, a cascade of stages."""

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from onenet.detectors.sparse_rcnn.pyramid import Pyramid
from onenet.detectors.sparse_rcnn.stage import Stage
from onenet.structures import HeadOutput


class SparseRCNN(nn.Module):
    """From images to predictions at a few learned proposals, N an image.

    A proposal is a box and a feature, both learned and the same for all images (section 3.1). Each
    stage predicts from them and hands the new boxes and features to the next (section 3.2). Boxes
    are detached between stages, features are not.

    `dim`: channels of the pyramid and of a proposal's feature. `proposals`: N. `feedforward`:
    hidden channels. `dynamic_dim`: hidden channels of the dynamic convolutions. `pooled`: bins
    along each side of a region. `class_layers`, `box_layers`: of the towers, >= 0. `canonical`:
    pixels, the side of a box that is pooled from stride 16. `dropout`: in [0, 1). `prior`: in
    (0, 1), the score that proposals give every class at the start, but for random weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        dim: int = 256,
        proposals: int = 100,
        stages: int = 6,
        attention_heads: int = 8,
        feedforward: int = 2048,
        dynamic_dim: int = 64,
        pooled: int = 7,
        class_layers: int = 1,
        box_layers: int = 3,
        canonical: float = 224.0,
        dropout: float = 0.0,
        prior: float = 0.01,
    ):
        super().__init__()
        settings = {
            "num_classes": num_classes,
            "dim": dim,
            "attention_heads": attention_heads,
            "feedforward": feedforward,
            "dynamic_dim": dynamic_dim,
            "pooled": pooled,
            "class_layers": class_layers,
            "box_layers": box_layers,
            "canonical": canonical,
            "dropout": dropout,
            "prior": prior,
        }
        _check(proposals=proposals, stages=stages, **settings)
        self.backbone = backbone
        self.pyramid = FeaturePyramidNetwork(backbone.feature_info.channels(), dim)
        self.proposal_boxes = nn.Embedding(proposals, 4)  # (cx, cy, w, h) in units of the image
        self.proposal_features = nn.Embedding(proposals, dim)
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))
        self.stages = nn.ModuleList(Stage(**settings) for _ in range(stages))

    def initial_boxes(self, sizes_hw: Tensor) -> Tensor:
        """The learned boxes in images of these sizes, [B, 2] pixels -> [B, N, 4] pixels."""
        center, side = self.proposal_boxes.weight.split(2, dim=1)
        half = side.abs() / 2  # abs: training can take a side below 0
        boxes = torch.cat([center - half, center + half], dim=1)
        return boxes * sizes_hw.flip(1).repeat(1, 2)[:, None]

    def forward(
        self, images: Tensor, sizes_hw: Tensor | None = None, num_heads: int | None = None
    ) -> list[HeadOutput]:
        """Normalized images [B, 3, H, W], H and W multiples of 32 -> one output a stage in
        training, else the last stage's only.

        `sizes_hw` [B, 2]: of the unpadded images, in pixels; None: no padding. `num_heads` is of
        OneNet's cascade and ignored. Slots are proposals, so their `points_xy` are NaN.
        """
        maps = self.pyramid({str(level): m for level, m in enumerate(self.backbone(images))})
        pyramid = Pyramid.of(list(maps.values()))
        if sizes_hw is None:
            size_hw = torch.tensor(images.shape[-2:])
            sizes_hw = size_hw.to(images.device, non_blocking=True).expand(len(images), 2)
        boxes = self.initial_boxes(sizes_hw)
        features = self.proposal_features.weight.expand(len(images), -1, -1)
        points = boxes.new_full((boxes.shape[1], 2), torch.nan)
        outputs = []
        for stage in self.stages:
            class_logits, boxes, features = stage(pyramid, boxes, features)
            outputs.append(HeadOutput(class_logits, boxes, points))
            boxes = boxes.detach()
        return outputs if self.training else outputs[-1:]


def _check(**settings: float) -> None:
    """Raises ValueError, which names the argument, if no model can be built of these settings."""
    for name in settings.keys() - {"canonical", "dropout", "prior"}:
        least = 0 if name in ("class_layers", "box_layers") else 1
        _require(settings[name] >= least, f"{name}={settings[name]} must be at least {least}")
    dim, heads = settings["dim"], settings["attention_heads"]
    _require(dim % heads == 0, f"attention_heads={heads} must divide dim={dim}")
    _require(settings["canonical"] > 0, f"canonical={settings['canonical']} must be above 0")
    _require(0 <= settings["dropout"] < 1, f"dropout={settings['dropout']} must be in [0, 1)")
    _require(0 < settings["prior"] < 1, f"prior={settings['prior']} must be between 0 and 1")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
