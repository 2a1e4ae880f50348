"""Sparse R-CNN (Sun et al., 2021, arXiv 2011.12450; section 3, Figures 3 and 4): backbone, FPN,
learned proposals, and a cascade of stages that refine them.

B images, N proposals, C channels of a proposal feature, S = `pooled`, K classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from onenet.ops.roi_align import Pyramid, pyramid_roi_align
from onenet.structures import HeadOutput

CENTER_WEIGHT, SIZE_WEIGHT = 2.0, 1.0  # (2, 2, 1, 1) in Sparse R-CNN
MAX_LOG_SCALE = math.log(100_000 / 16)  # log of the largest factor of a side in one stage
MAX_COORDINATE = 1e6  # pixels; beyond it, areas would overflow after a few stages


class SparseRCNN(nn.Module):
    """Maps images to predictions at N learned proposals per image.

    A proposal is a box and a feature, both learned and the same for all images (section 3.1). Each
    stage predicts from them and passes the new boxes and features to the next stage (section 3.2).
    Boxes are detached between stages, features are not.

    `dim`: channels of the pyramid and of proposal features. `proposals`: N. `feedforward`: hidden
    channels of the feedforward nets. `dynamic_dim`: hidden channels of the dynamic convolutions.
    `pooled`: bins along each side of a region. `class_layers`, `box_layers`: layers of the towers,
    >= 0. `canonical`: side of a box, in pixels, that is pooled from stride 16. `dropout`: in
    [0, 1). `prior`: approximate initial score of every class at every proposal, in (0, 1).
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
        self.proposal_boxes = nn.Embedding(proposals, 4)  # (cx, cy, w, h), image fractions
        self.proposal_features = nn.Embedding(proposals, dim)
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))
        self.stages = nn.ModuleList(Stage(**settings) for _ in range(stages))

    def initial_boxes(self, sizes_hw: Tensor) -> Tensor:
        """Scales the learned boxes to the images' sizes: [B, 2] pixels -> [B, N, 4] pixels."""
        center, side = self.proposal_boxes.weight.split(2, dim=1)
        half = side.abs() / 2  # abs, because training can make a side negative
        boxes = torch.cat([center - half, center + half], dim=1)
        return boxes * sizes_hw.flip(1).repeat(1, 2)[:, None]

    def forward(
        self, images: Tensor, sizes_hw: Tensor | None = None, num_heads: int | None = None
    ) -> list[HeadOutput]:
        """Returns one output per stage in training, else only the last stage's, for normalized
        images [B, 3, H, W], H and W multiples of 32.

        `sizes_hw` [B, 2]: sizes of the unpadded images in pixels (None: no padding). `num_heads`
        only applies to OneNet's cascade and is ignored. Slots are proposals, so `points_xy` is NaN.
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
    """Raises ValueError, naming the argument, if a model cannot be built from these settings."""
    for name in settings.keys() - {"canonical", "dropout", "prior"}:
        minimum = 0 if name in ("class_layers", "box_layers") else 1
        _require(settings[name] >= minimum, f"{name}={settings[name]} must be at least {minimum}")
    dim, heads = settings["dim"], settings["attention_heads"]
    _require(dim % heads == 0, f"attention_heads={heads} must divide dim={dim}")
    _require(settings["canonical"] > 0, f"canonical={settings['canonical']} must be above 0")
    _require(0 <= settings["dropout"] < 1, f"dropout={settings['dropout']} must be in [0, 1)")
    _require(0 < settings["prior"] < 1, f"prior={settings['prior']} must be between 0 and 1")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class DynamicInteraction(nn.Module):
    """Filters each proposal's region with 1×1 convolutions predicted from its feature (Figure 4).

    A linear layer maps the feature to the weights of two convolutions, C -> `dynamic_dim` -> C.
    Each is followed by LayerNorm and ReLU. The flattened result goes through a linear layer,
    LayerNorm and ReLU.
    """

    def __init__(self, dim: int, dynamic_dim: int, pooled: int):
        super().__init__()
        self.kernels = nn.Linear(dim, 2 * dim * dynamic_dim)
        self.norm1 = nn.LayerNorm(dynamic_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.output = nn.Linear(pooled * pooled * dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Proposal features [B, N, C] and their regions [B, N, S·S, C] -> [B, N, C]."""
        dim, dynamic_dim = len(self.norm2.weight), len(self.norm1.weight)
        first, second = self.kernels(features).flatten(0, 1).chunk(2, dim=-1)
        bins = torch.bmm(regions.flatten(0, 1), first.unflatten(1, (dim, dynamic_dim)))
        bins = F.relu(self.norm1(bins))
        bins = torch.bmm(bins, second.unflatten(1, (dynamic_dim, dim)))
        bins = F.relu(self.norm2(bins))  # [B·N, S·S, C]
        output = F.relu(self.norm3(self.output(bins.flatten(1))))
        return output.view_as(features)


def _tower(dim: int, layers: int) -> nn.Sequential:
    """`layers` times linear, LayerNorm, ReLU."""
    block = ((nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()) for _ in range(layers))
    return nn.Sequential(*(module for modules in block for module in modules))


class Stage(nn.Module):
    """One refinement of the proposals; each stage has its own weights.

    It pools each proposal's region and applies self-attention between the proposals, the
    interaction of each proposal with its region, and a feedforward net. Each of these three has a
    residual connection and a LayerNorm. Two towers then predict class logits and box corrections.

    The arguments are those of SparseRCNN. All matrices are initialized Xavier-uniform, as in the
    original.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        attention_heads: int,
        feedforward: int,
        dynamic_dim: int,
        pooled: int,
        class_layers: int,
        box_layers: int,
        canonical: float,
        dropout: float,
        prior: float,
    ):
        super().__init__()
        self.pooled, self.canonical = pooled, canonical
        self.attention = nn.MultiheadAttention(dim, attention_heads, dropout, batch_first=True)
        self.interaction = DynamicInteraction(dim, dynamic_dim, pooled)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.class_tower = _tower(dim, class_layers)
        self.box_tower = _tower(dim, box_layers)
        self.class_logits = nn.Linear(dim, num_classes)
        self.box_deltas = nn.Linear(dim, 4)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))

    def forward(
        self, pyramid: Pyramid, boxes_xyxy: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps proposals, as boxes [B, N, 4] pixels and features [B, N, C], to class logits
        [B, N, K], new boxes [B, N, 4] pixels, both float32, and new features [B, N, C]."""
        with torch.autocast(boxes_xyxy.device.type, enabled=False):
            regions = pyramid_roi_align(pyramid, boxes_xyxy, self.canonical, self.pooled)
        attended = self.attention(features, features, features, need_weights=False)[0]
        features = self.norms[0](features + self.dropout(attended))
        filtered = self.interaction(features, regions)
        features = self.norms[1](features + self.dropout(filtered))
        features = self.norms[2](features + self.dropout(self.feedforward(features)))

        class_feature, box_feature = self.class_tower(features), self.box_tower(features)
        with torch.autocast(boxes_xyxy.device.type, enabled=False):
            # Above 256 pixels, bfloat16 would round boxes to 2 pixels.
            class_logits = self.class_logits(class_feature.float())
            boxes_xyxy = apply_deltas(self.box_deltas(box_feature.float()), boxes_xyxy)
        return class_logits, boxes_xyxy, features


def apply_deltas(deltas: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Corrects boxes: float32 [..., 4] (dx, dy, dw, dh) and [..., 4] pixels -> [..., 4] pixels.

    The centre moves by dx / 2 widths and dy / 2 heights. The sides are multiplied by exp(dw) and
    exp(dh). If x1 <= x2 and y1 <= y2 holds for the input, it holds for the output.
    """
    low, high = boxes_xyxy.split(2, dim=-1)
    side = high - low
    shift, log_scale = deltas.split(2, dim=-1)
    center = (low + high) / 2 + shift / CENTER_WEIGHT * side
    half = (log_scale / SIZE_WEIGHT).clamp(max=MAX_LOG_SCALE).exp() * side / 2
    return torch.cat([center - half, center + half], dim=-1).clamp(-MAX_COORDINATE, MAX_COORDINATE)
