"""Deformable DETR as a whole (Figure 1): backbone, multi-scale maps (section 4.1, appendix A.2),
encoder, queries, which in the two-stage variant the encoder proposes (appendix A.4), and decoder.

B images, L levels, P predictions (queries), Q queries, S positions of all levels, K classes,
C channels. Boxes inside are normalized (cx, cy, w, h), shares of the unpadded image.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onenet.detectors.deformable_detr.attention import (
    LevelGeometry,
    MultiScaleDeformableAttention,
    sine_encoding,
    valid_cells,
)
from onenet.detectors.deformable_detr.transformer import (
    Decoder,
    Encoder,
    LearnedQueries,
    PredictionHead,
    Queries,
)
from onenet.structures import HeadOutput

BACKBONE_STRIDES = (4, 8, 16, 32)
BASE_SCALE = 0.05  # side of the finest level's proposals, as a share of the image
BORDER = 0.01  # proposals of which a coordinate is nearer to 0 or 1 are not used
REJECTED = -50.0  # class logit of what is not used


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


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalization over the cells of the image alone; padding becomes 0.

    With the statistics of the padded map, as in the released code, an image's answer would depend
    on the larger images of its batch.
    """

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """[B, C, H, W] and which cells are no padding [B, H, W] bool -> [B, C, H, W] float32."""
        with torch.autocast(maps.device.type, enabled=False):
            groups = maps.float().unflatten(1, (self.num_groups, -1))  # [B, G, C/G, H, W]
            inside = valid[:, None, None].float()
            every = (2, 3, 4)
            count = inside.sum(every, keepdim=True) * groups.shape[2]
            mean = (groups * inside).sum(every, keepdim=True) / count
            centered = (groups - mean) * inside
            variance = centered.square().sum(every, keepdim=True) / count
            normed = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
            scaled = normed * self.weight[:, None, None] + self.bias[:, None, None]
            return scaled * inside[:, 0]


class MultiScaleMaps(nn.Module):
    """From the backbone's maps to L levels of C channels.

    Levels start at the backbone's map of `finest_stride` pixels and double the stride. Those that
    the backbone has are projected by 1×1 convolutions; the first coarser one is a 3×3 convolution
    of stride 2 on the backbone's last map, each further one on the level before it. All end in a
    group normalization.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, levels: int, finest_stride: int):
        super().__init__()
        self.skipped = int(math.log2(finest_stride)) - 2  # backbone maps that are too fine
        self.strides = [finest_stride * 2**level for level in range(levels)]
        used = in_channels[self.skipped :]
        self.laterals = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in used)
        widths = [used[-1]] + [dim] * levels
        self.coarser = nn.ModuleList(
            nn.Conv2d(c, dim, 3, stride=2, padding=1) for c in widths[: levels - len(used)]
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(math.gcd(32, dim), dim) for _ in range(levels))
        for conv in [*self.laterals, *self.coarser]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], sizes_hw: Tensor) -> tuple[Tensor, LevelGeometry]:
        """Maps of strides 4, 8, 16, 32, sizes [B, 2] pixels -> tokens [B, S, C] float32."""
        maps = list(maps[self.skipped :])
        levels = [
            norm(conv(feature), self._valid(feature, stride, sizes_hw))
            for conv, norm, feature, stride in zip(
                self.laterals, self.norms, maps, self.strides, strict=False
            )
        ]
        last = len(maps) - 1
        below = maps[-1] * self._valid(maps[-1], self.strides[last], sizes_hw)[:, None]
        for conv, norm, stride in zip(
            self.coarser, self.norms[last + 1 :], self.strides[last + 1 :], strict=True
        ):
            feature = conv(below)
            below = norm(feature, self._valid(feature, stride, sizes_hw))
            levels.append(below)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        shapes_hw = [tuple(level.shape[-2:]) for level in levels]
        return tokens, LevelGeometry(shapes_hw, self.strides, sizes_hw)

    @staticmethod
    def _valid(feature: Tensor, stride: int, sizes_hw: Tensor) -> Tensor:
        return valid_cells(*feature.shape[-2:], stride, sizes_hw)


def base_proposals(geometry: LevelGeometry) -> tuple[Tensor, Tensor]:
    """A box around each position, 0.05 · 2^level of the image wide and high: [B, S, 4].
    And which are used: [B, S] bool, false near the border, and so in padding."""
    centers = geometry.reference_points
    sides = [
        centers.new_full((length, 2), BASE_SCALE * 2**level)
        for level, length in enumerate(geometry.lengths)
    ]
    boxes = torch.cat([centers, torch.cat(sides).expand_as(centers)], dim=2)
    usable = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=2)
    return boxes, usable


class Proposals(nn.Module):
    """Predicts classes and a box at every position; the best become queries.

    The released code trains one class here, foreground. This one tells the classes apart, so that
    the loss is that of any other output, and ranks positions by their highest logit. Positions that
    are not used have constant logits, far below any other, a constant box and no gradient.
    """

    def __init__(self, dim: int, queries: int):
        super().__init__()
        self.queries = queries
        self.memory_projection = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.query_projection = nn.Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)

    def forward(
        self, memory: Tensor, geometry: LevelGeometry, head: PredictionHead
    ) -> tuple[Tensor, Tensor, Queries]:
        """memory [B, S, C] -> class logits [B, S, K], boxes [B, S, 4], and min(Q, S) queries whose
        references are boxes, through which no gradient flows."""
        starts, usable = base_proposals(geometry)
        rejected = ~usable[..., None]
        features = self.memory_norm(self.memory_projection(memory))
        logits = head.class_logits(features).masked_fill(rejected, REJECTED)
        boxes = head.boxes(features, starts).masked_fill(rejected, 0.5)
        best = logits.detach().amax(dim=2).topk(min(self.queries, logits.shape[1]), dim=1).indices
        references = boxes.detach().take_along_dim(best[..., None], dim=1)
        queries = self._queries(references, usable.take_along_dim(best, dim=1))
        return logits, boxes, queries

    def _queries(self, references: Tensor, usable: Tensor) -> Queries:
        encoding = sine_encoding(references, self.memory_norm.normalized_shape[0] // 2)
        projected = self.query_norm(self.query_projection(encoding))
        position, content = projected.chunk(2, dim=2)
        return Queries(content, position, references, usable)
