"""The whole Deformable DETR (Figure 1): backbone, multi-scale maps (section 4.1, appendix A.2),
encoder, queries (in the two-stage variant, proposed by the encoder, appendix A.4), and decoder.

B images, L levels, P predictions (queries), Q queries, S positions of all levels, K classes,
C channels. Internally, boxes are normalized (cx, cy, w, h), fractions of the unpadded image.
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
BASE_SCALE = 0.05  # side of the finest level's proposals, as a fraction of the image
BORDER = 0.01  # proposals with a coordinate closer to 0 or 1 than this are not used
UNUSABLE_LOGIT = -50.0  # class logit of proposals and queries that are not used


class DeformableDETR(nn.Module):
    """Maps images to the boxes of `queries` object queries.

    `dim`: channels C, a multiple of 4 and of `attention_heads`. `points`: sampling points per head
    and level. `levels`: number of feature maps, the finest with a stride of `finest_stride` pixels
    (4, 8, 16 or 32); must include all of the backbone's coarser maps. `feedforward`: hidden
    channels of the feedforward nets. `dropout`: in [0, 1), 0 outside training. `refine`: iterative
    bounding box refinement. `two_stage`: the encoder proposes the queries; needs `refine`.
    `prior`: approximate initial score of every class, in 0..1.
    Raises ValueError for invalid settings.
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
        """Initializes the transformer's weights as Xavier-uniform, except embeddings and deformable
        attention, which has its own initialization."""
        for submodule in (self.encoder, self.decoder, self.queries):
            for name, parameter in submodule.named_parameters():
                if parameter.dim() > 1 and "embedding" not in name:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()

    def forward(
        self, images: Tensor, sizes_hw: Tensor | None = None, num_heads: int | None = None
    ) -> list[HeadOutput]:
        """Returns outputs for normalized images [B, 3, H, W], H and W multiples of 32: in training
        one for the proposals (if two-stage; P = S) and one per decoder layer, else only the last.

        `sizes_hw`: [B, 2] int64, height and width without padding, pixels (None: no padding).
        `num_heads` only applies to OneNet's cascade and is ignored. P is `queries`, or S in the
        two-stage variant if S is smaller. The decoder layers' `points_xy` is NaN.
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
                logits = logits.masked_fill(~queries.usable[..., None], UNUSABLE_LOGIT)
            no_points = logits.new_full((logits.shape[1], 2), math.nan)
            outputs.append(HeadOutput(logits, _pixels(boxes, geometry), no_points))
        return outputs if self.training else outputs[-1:]


def _heads(head: PredictionHead, count: int, refine: bool) -> nn.ModuleList:
    """One head for all stages or, with refinement, one per stage. Those have equal initial weights,
    except that only the first has a size bias."""
    if not refine:
        return nn.ModuleList([head])
    heads = nn.ModuleList([head, *(copy.deepcopy(head) for _ in range(count - 1))])
    for later in heads[1:]:
        nn.init.zeros_(later.box[-1].bias)
    return heads


def _pixels(boxes: Tensor, geometry: LevelGeometry) -> Tensor:
    """Converts normalized (cx, cy, w, h) [B, P, 4] to (x1, y1, x2, y2) pixels."""
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
    minimum = len(BACKBONE_STRIDES) - BACKBONE_STRIDES.index(finest_stride)
    if levels < minimum:
        raise ValueError(
            f"levels must be at least {minimum} to reach the backbone's last map from "
            f"finest_stride={finest_stride}, got {levels}"
        )
    if two_stage and not refine:
        raise ValueError("two_stage=True needs refine=True")


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalization over the cells of the image only; padding becomes 0.

    The released code includes the padding, which makes an image's predictions depend on the larger
    images in its batch.
    """

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """Normalizes maps [B, C, H, W] over the valid cells [B, H, W] bool -> [B, C, H, W]
        float32."""
        with torch.autocast(maps.device.type, enabled=False):
            groups = maps.float().unflatten(1, (self.num_groups, -1))  # [B, G, C/G, H, W]
            inside = valid[:, None, None].float()
            dims = (2, 3, 4)
            count = inside.sum(dims, keepdim=True) * groups.shape[2]
            mean = (groups * inside).sum(dims, keepdim=True) / count
            centered = (groups - mean) * inside
            variance = centered.square().sum(dims, keepdim=True) / count
            normed = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
            scaled = normed * self.weight[:, None, None] + self.bias[:, None, None]
            return scaled * inside[:, 0]


class MultiScaleMaps(nn.Module):
    """Projects the backbone's maps to L levels of C channels.

    The first level has the stride `finest_stride`, and each further level has twice the stride.
    Levels that the backbone has are projected by 1×1 convolutions. The first coarser level is a 3×3
    convolution of stride 2 on the backbone's last map, each further one on the level before it. All
    levels end in a group normalization.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, levels: int, finest_stride: int):
        super().__init__()
        self.first_map = int(math.log2(finest_stride)) - 2  # index among the backbone's maps
        self.strides = [finest_stride * 2**level for level in range(levels)]
        in_channels = in_channels[self.first_map :]
        self.laterals = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in in_channels)
        widths = [in_channels[-1]] + [dim] * levels
        self.coarser = nn.ModuleList(
            nn.Conv2d(c, dim, 3, stride=2, padding=1) for c in widths[: levels - len(in_channels)]
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(math.gcd(32, dim), dim) for _ in range(levels))
        for conv in [*self.laterals, *self.coarser]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], sizes_hw: Tensor) -> tuple[Tensor, LevelGeometry]:
        """Maps of strides 4, 8, 16, 32, sizes [B, 2] pixels -> tokens [B, S, C] float32 and their
        geometry."""
        maps = list(maps[self.first_map :])
        levels = [
            norm(conv(feature), self._valid(feature, stride, sizes_hw))
            for conv, norm, feature, stride in zip(
                self.laterals, self.norms, maps, self.strides, strict=False
            )
        ]
        last = len(maps) - 1
        previous = maps[-1] * self._valid(maps[-1], self.strides[last], sizes_hw)[:, None]
        for conv, norm, stride in zip(
            self.coarser, self.norms[last + 1 :], self.strides[last + 1 :], strict=True
        ):
            feature = conv(previous)
            previous = norm(feature, self._valid(feature, stride, sizes_hw))
            levels.append(previous)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        shapes_hw = [tuple(level.shape[-2:]) for level in levels]
        return tokens, LevelGeometry(shapes_hw, self.strides, sizes_hw)

    @staticmethod
    def _valid(feature: Tensor, stride: int, sizes_hw: Tensor) -> Tensor:
        return valid_cells(*feature.shape[-2:], stride, sizes_hw)


def base_proposals(geometry: LevelGeometry) -> tuple[Tensor, Tensor]:
    """Returns a box around each position, with sides of 0.05 · 2^level of the image, [B, S, 4], and
    which boxes are usable, [B, S] bool: false near the border and, therefore, in the padding."""
    centers = geometry.reference_points
    sides = [
        centers.new_full((length, 2), BASE_SCALE * 2**level)
        for level, length in enumerate(geometry.lengths)
    ]
    boxes = torch.cat([centers, torch.cat(sides).expand_as(centers)], dim=2)
    usable = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=2)
    return boxes, usable


class Proposals(nn.Module):
    """Predicts class logits and a box at every position; the best positions become queries.

    The released code trains a single class here, foreground. This implementation predicts all
    classes, so that the output has the same loss as any other, and ranks positions by their highest
    logit. Unusable positions have constant logits, far below all others, a constant box and no
    gradient.
    """

    def __init__(self, dim: int, queries: int):
        super().__init__()
        self.queries = queries
        self.memory_projection = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.query_projection = nn.Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)
        self.register_module("reference", None)  # of LearnedQueries; optim.lr_factors names it

    def forward(
        self, memory: Tensor, geometry: LevelGeometry, head: PredictionHead
    ) -> tuple[Tensor, Tensor, Queries]:
        """Maps memory [B, S, C] to class logits [B, S, K], boxes [B, S, 4], and min(Q, S) queries.
        Their references are boxes and carry no gradient."""
        base_boxes, usable = base_proposals(geometry)
        unusable = ~usable[..., None]
        features = self.memory_norm(self.memory_projection(memory))
        logits = head.class_logits(features).masked_fill(unusable, UNUSABLE_LOGIT)
        boxes = head.boxes(features, base_boxes).masked_fill(unusable, 0.5)
        top = logits.detach().amax(dim=2).topk(min(self.queries, logits.shape[1]), dim=1).indices
        references = boxes.detach().take_along_dim(top[..., None], dim=1)
        queries = self._queries(references, usable.take_along_dim(top, dim=1))
        return logits, boxes, queries

    def _queries(self, references: Tensor, usable: Tensor) -> Queries:
        encoding = sine_encoding(references, self.memory_norm.normalized_shape[0] // 2)
        projected = self.query_norm(self.query_projection(encoding))
        position, content = projected.chunk(2, dim=2)
        return Queries(content, position, references, usable)
