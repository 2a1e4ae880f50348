"""Deformable DETR as a whole: backbone, multi-scale maps, encoder, queries, decoder (Figure 1).

B images, P predictions (queries), S positions of all levels, K classes, C channels.
"""

import copy
import math

import torch
from torch import Tensor, nn

from onenet.detectors.deformable_detr.attention import MultiScaleDeformableAttention
from onenet.detectors.deformable_detr.decoder import Decoder, LearnedQueries, PredictionHead
from onenet.detectors.deformable_detr.encoder import Encoder
from onenet.detectors.deformable_detr.geometry import LevelGeometry
from onenet.detectors.deformable_detr.proposals import REJECTED, Proposals
from onenet.detectors.deformable_detr.pyramid import MultiScaleMaps
from onenet.structures import HeadOutput

BACKBONE_STRIDES = (4, 8, 16, 32)


class DeformableDETR(nn.Module):
    """From images to the boxes of `queries` object queries.

    `dim`: channels C, a multiple of 4 and of `attention_heads`. `points`: sampling points of a head
    on a level. `levels`: feature maps, from `finest_stride` pixels (4, 8, 16 or 32) on; at least
    those that the backbone has. `feedforward`: hidden channels. `dropout`: in [0, 1), 0 outside of
    training. `refine`: iterative bounding box refinement. `two_stage`: the encoder proposes the
    queries, needs `refine`. `prior`: in 0..1, the score that every class starts with.
    Raises ValueError for settings that cannot work.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        dim: int = 256,
        attention_heads: int = 8,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward: int = 1024,
        queries: int = 300,
        levels: int = 4,
        finest_stride: int = 8,
        dropout: float = 0.1,
        refine: bool = False,
        two_stage: bool = False,
        prior: float = 0.01,
    ):
        super().__init__()
        _check_counts(
            points=points,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            feedforward=feedforward,
            queries=queries,
        )
        _check(dim, attention_heads, levels, finest_stride, refine, two_stage)
        self.backbone = backbone
        channels = backbone.feature_info.channels()
        self.maps = MultiScaleMaps(channels, dim, levels, finest_stride)
        widths = (dim, attention_heads, levels, points, feedforward, dropout)
        self.encoder = Encoder(encoder_layers, *widths)
        self.decoder = Decoder(decoder_layers, *widths, refine)
        self.queries = Proposals(dim, queries) if two_stage else LearnedQueries(queries, dim)
        self.heads = _heads(
            PredictionHead(dim, num_classes, prior, size_bias=0.0 if two_stage else -2.0),
            decoder_layers + two_stage,
            refine,
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Xavier-uniform weights in the transformer, but in embeddings and where deformable
        attention has its own."""
        for part in (self.encoder, self.decoder, self.queries):
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1 and "embedding" not in name:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()

    def forward(
        self, images: Tensor, sizes_hw: Tensor | None = None, num_heads: int | None = None
    ) -> list[HeadOutput]:
        """Normalized images [B, 3, H, W], H and W multiples of 32 -> one output in eval mode; in
        training one for the proposals (if two-stage; P = S) and one for each decoder layer.

        `sizes_hw`: [B, 2] int64, height and width without padding, pixels; None: no padding.
        `num_heads` is for OneNet's cascade and ignored. P is `queries`; in the two-stage variant
        less where there are fewer positions. Of decoder layers `points_xy` is NaN.
        """
        if sizes_hw is None:
            size = torch.tensor(images.shape[-2:]).to(images.device, non_blocking=True)
            sizes_hw = size.expand(len(images), 2)
        tokens, geometry = self.maps(self.backbone(images), sizes_hw)
        memory = self.encoder(tokens, geometry)
        outputs = []
        if isinstance(self.queries, Proposals):
            logits, boxes, queries = self.queries(memory, geometry, self.heads[-1])
            outputs.append(HeadOutput(logits, _pixels(boxes, geometry), geometry.points_xy))
        else:
            queries = self.queries(len(images))
        layers = len(self.decoder.layers)
        heads = list(self.heads[:layers]) if self.decoder.refine else [self.heads[0]] * layers
        stages = self.decoder(queries, memory, geometry, heads)
        for head, (features, boxes) in zip(heads, stages, strict=True):
            logits = head.class_logits(features)
            if queries.usable is not None:
                logits = logits.masked_fill(~queries.usable[..., None], REJECTED)
            no_points = logits.new_full((logits.shape[1], 2), math.nan)
            outputs.append(HeadOutput(logits, _pixels(boxes, geometry), no_points))
        return outputs if self.training else outputs[-1:]


def _heads(head: PredictionHead, count: int, refine: bool) -> nn.ModuleList:
    """One head for all stages, or with refinement one for each, equal at first except that only the
    first shrinks the box that it is given."""
    if not refine:
        return nn.ModuleList([head])
    heads = nn.ModuleList([head, *(copy.deepcopy(head) for _ in range(count - 1))])
    for later in heads[1:]:
        nn.init.zeros_(later.box[-1].bias)
    return heads


def _pixels(boxes: Tensor, geometry: LevelGeometry) -> Tensor:
    """Normalized (cx, cy, w, h) [B, P, 4] -> (x1, y1, x2, y2) pixels."""
    half = boxes[..., 2:] / 2
    corners = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)
    return corners * geometry.image_wh.repeat(1, 2)[:, None]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check(
    dim: int, attention_heads: int, levels: int, finest_stride: int, refine: bool, two_stage: bool
) -> None:
    if attention_heads < 1 or dim % attention_heads or dim % 4:
        raise ValueError(
            f"dim must be a multiple of 4 and of attention_heads={attention_heads}, got {dim}"
        )
    if finest_stride not in BACKBONE_STRIDES:
        raise ValueError(f"finest_stride must be one of {BACKBONE_STRIDES}, got {finest_stride}")
    least = len(BACKBONE_STRIDES) - BACKBONE_STRIDES.index(finest_stride)
    if levels < least:
        raise ValueError(
            f"levels must be at least {least} to reach the backbone's last map from "
            f"finest_stride={finest_stride}, got {levels}"
        )
    if two_stage and not refine:
        raise ValueError("two_stage needs refine=True")
