"""One stage of the dynamic instance interactive head (section 3.2, Figures 3 and 4), and the box
coder of R-CNN (arXiv 1311.2524, appendix C), by which it corrects its boxes.

B images, N proposals, C channels of a proposal's feature, S = `pooled`, K classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.detectors.sparse_rcnn.pyramid import Pyramid, pyramid_roi_align

CENTER_WEIGHT, SIZE_WEIGHT = 2.0, 1.0  # Sparse R-CNN's (2, 2, 1, 1)
MAX_LOG_SCALE = math.log(100_000 / 16)  # of what one stage may multiply a side with
FARTHEST = 1e6  # pixels; beyond it areas would overflow after a few stages


class DynamicInteraction(nn.Module):
    """Each proposal filters its own region with 1×1 convolutions that its feature makes (Figure 4).

    A linear layer turns the feature into the weights of two convolutions, C -> `dynamic_dim` -> C.
    Each is followed by LayerNorm and ReLU. What they give is flattened; linear, LayerNorm, ReLU.
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
        answer = F.relu(self.norm3(self.output(bins.flatten(1))))
        return answer.view_as(features)


def _tower(dim: int, layers: int) -> nn.Sequential:
    """Linear, LayerNorm, ReLU; `layers` times."""
    block = ((nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()) for _ in range(layers))
    return nn.Sequential(*(module for modules in block for module in modules))


class Stage(nn.Module):
    """Refines proposals once; the next stage has weights of its own.

    Pools each proposal's region, lets the proposals attend to each other, lets each interact with
    its region, and passes it through a feedforward net. Each of these three has a residual and a
    LayerNorm. Two towers then give class logits and a correction of the box.

    The arguments are those of SparseRCNN. All matrices start Xavier-uniform, as in the original.
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
        """Proposals as boxes [B, N, 4] pixels and features [B, N, C] -> class logits [B, N, K], new
        boxes [B, N, 4] pixels, both float32, and new features [B, N, C]."""
        with torch.autocast(boxes_xyxy.device.type, enabled=False):
            regions = pyramid_roi_align(pyramid, boxes_xyxy, self.canonical, self.pooled)
        attended = self.attention(features, features, features, need_weights=False)[0]
        features = self.norms[0](features + self.dropout(attended))
        filtered = self.interaction(features, regions)
        features = self.norms[1](features + self.dropout(filtered))
        features = self.norms[2](features + self.dropout(self.feedforward(features)))

        class_feature, box_feature = self.class_tower(features), self.box_tower(features)
        with torch.autocast(boxes_xyxy.device.type, enabled=False):
            # bfloat16 would round boxes to 2 pixels above 256.
            class_logits = self.class_logits(class_feature.float())
            boxes_xyxy = apply_deltas(self.box_deltas(box_feature.float()), boxes_xyxy)
        return class_logits, boxes_xyxy, features


def apply_deltas(deltas: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Corrected boxes: float32 [..., 4] (dx, dy, dw, dh) and [..., 4] pixels -> [..., 4] pixels.

    The centre moves by dx / 2 widths and dy / 2 heights. The sides are multiplied with exp(dw) and
    exp(dh). The given boxes have x1 <= x2 and y1 <= y2, and so have the new ones.
    """
    low, high = boxes_xyxy.split(2, dim=-1)
    side = high - low
    shift, log_scale = deltas.split(2, dim=-1)
    center = (low + high) / 2 + shift / CENTER_WEIGHT * side
    half = (log_scale / SIZE_WEIGHT).clamp(max=MAX_LOG_SCALE).exp() * side / 2
    return torch.cat([center - half, center + half], dim=-1).clamp(-FARTHEST, FARTHEST)
