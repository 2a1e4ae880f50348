"""The deformable transformer: its encoder, its decoder and the prediction heads (section 4.1;
appendix A.3).

B images, L levels, Q queries, S positions of all levels, C channels, K classes. References are
normalized points [B, Q, 2] as (x, y) or boxes [B, Q, 4] as (cx, cy, w, h), fractions of the
unpadded image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onenet.detectors.deformable_detr.attention import (
    LevelGeometry,
    MultiScaleDeformableAttention,
    sine_encoding,
)

EPS = 1e-5  # the inverse sigmoid clips references to this distance from 0 and 1
MASK_LOGIT = -1e4  # added to the attention logits of unusable queries


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, a residual connection and a final layer norm:
    [B, N, C] -> [B, N, C]."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.layers(tokens))


class EncoderLayer(nn.Module):
    """Deformable self-attention, with each position as its own reference point, and a feedforward
    net."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(dim, heads, levels, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, hidden, dropout)

    def forward(self, tokens: Tensor, positions: Tensor, geometry: LevelGeometry) -> Tensor:
        """Tokens and their position embeddings, [B, S, C] each -> [B, S, C]."""
        attended = self.attention(tokens + positions, geometry.reference_points, tokens, geometry)
        return self.feedforward(self.norm(tokens + self.dropout(attended)))


class Encoder(nn.Module):
    """`layers` encoder layers. Positions are encoded by a sine encoding of their location in the
    unpadded image and a learned embedding of their level."""

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        dropout: float,
    ):
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, heads, levels, points, hidden, dropout) for _ in range(layers)
        )

    def forward(self, tokens: Tensor, geometry: LevelGeometry) -> Tensor:
        """[B, S, C] -> [B, S, C]."""
        positions = self.positions(geometry)
        for layer in self.layers:
            tokens = layer(tokens, positions, geometry)
        return tokens

    def positions(self, geometry: LevelGeometry) -> Tensor:
        """The position embeddings [B, S, C]: half of the channels for y, half for x."""
        dim = self.level_embedding.shape[1]
        level_embeddings = [
            embedding.expand(length, dim)
            for embedding, length in zip(self.level_embedding, geometry.lengths, strict=True)
        ]
        return sine_encoding(geometry.reference_points.flip(-1), dim // 2) + torch.cat(
            level_embeddings
        )


@dataclass(frozen=True)
class Queries:
    """The decoder's input queries."""

    content: Tensor  # [B, Q, C]
    position: Tensor  # [B, Q, C], added to the content to compute attention weights
    references: Tensor  # [B, Q, 2] or [B, Q, 4]
    usable: Tensor | None = None  # [B, Q] bool; no query attends to unusable ones. None: all usable


class LearnedQueries(nn.Module):
    """Queries that are the same for every image. A query's reference point is predicted from its
    position embedding."""

    def __init__(self, queries: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(queries, 2 * dim)
        self.reference = nn.Linear(dim, 2)
        nn.init.zeros_(self.reference.bias)

    def forward(self, images: int) -> Queries:
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            position, content = self.embedding.weight.chunk(2, dim=1)
            references = self.reference(position).sigmoid()
        tensors = (content, position, references)
        return Queries(*(tensor.expand(images, -1, -1) for tensor in tensors))


class PredictionHead(nn.Module):
    """Predicts classes with a linear layer, and boxes relative to a reference with a three-layer
    perceptron.

    Computes in float32, also under autocast. `prior`: approximate initial score of every class, in
    0..1. `size_bias`: initial output of the perceptron for width and height; 0 for the centre.
    """

    def __init__(self, dim: int, num_classes: int, prior: float, size_bias: float):
        super().__init__()
        self.classes = nn.Linear(dim, num_classes)
        self.box = nn.Sequential(
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, 4),
        )
        nn.init.constant_(self.classes.bias, -math.log((1 - prior) / prior))
        nn.init.zeros_(self.box[-1].weight)
        nn.init.zeros_(self.box[-1].bias)
        nn.init.constant_(self.box[-1].bias[2:], size_bias)

    def class_logits(self, features: Tensor) -> Tensor:
        """[B, Q, C] -> [B, Q, K]."""
        with torch.autocast(features.device.type, enabled=False):
            return self.classes(features.float())

    def boxes(self, features: Tensor, references: Tensor) -> Tensor:
        """[B, Q, C] -> normalized (cx, cy, w, h) [B, Q, 4] in 0..1 (appendix A.3, A.4)."""
        with torch.autocast(features.device.type, enabled=False):
            offsets = self.box(features.float())
            start = torch.logit(references, eps=EPS)
            if references.shape[-1] == 2:
                start = nn.functional.pad(start, (0, 2))
            return (offsets + start).sigmoid()


class DecoderLayer(nn.Module):
    """Self-attention between the queries, deformable attention to the image, feedforward net."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.cross_attention = MultiScaleDeformableAttention(dim, heads, levels, points)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(2))
        self.feedforward = FeedForward(dim, hidden, dropout)

    def forward(
        self,
        content: Tensor,
        queries: Queries,
        references: Tensor,
        memory: Tensor,
        geometry: LevelGeometry,
    ) -> Tensor:
        """content [B, Q, C], memory [B, S, C] -> [B, Q, C]."""
        keys = content + queries.position
        mask = None
        if queries.usable is not None:  # a finite mask, for images without any usable query
            mask = torch.zeros_like(queries.usable, dtype=keys.dtype)
            mask = mask.masked_fill(~queries.usable, MASK_LOGIT)
        attended, _ = self.self_attention(
            keys, keys, content, key_padding_mask=mask, need_weights=False
        )
        content = self.norms[0](content + self.dropouts[0](attended))
        attended = self.cross_attention(content + queries.position, references, memory, geometry)
        content = self.norms[1](content + self.dropouts[1](attended))
        return self.feedforward(content)


class Decoder(nn.Module):
    """`layers` decoder layers. With `refine`, each attends around the boxes of the layer before it,
    through which no gradient flows (appendix A.4); without it, around the queries' references."""

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        dropout: float,
        refine: bool,
    ):
        super().__init__()
        self.refine = refine
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, levels, points, hidden, dropout) for _ in range(layers)
        )

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        geometry: LevelGeometry,
        heads: Sequence[PredictionHead],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each layer's features [B, Q, C] and its head's normalized boxes [B, Q, 4]."""
        content, references = queries.content, queries.references
        for layer, head in zip(self.layers, heads, strict=True):
            content = layer(content, queries, references, memory, geometry)
            boxes = head.boxes(content, references)
            yield content, boxes
            if self.refine:
                references = boxes.detach()
