"""The deformable transformer encoder (section 4.1, "Deformable Transformer Encoder").

B images, L levels, S positions of all levels, C channels.
"""

import torch
from torch import Tensor, nn

from onenet.detectors.deformable_detr.attention import MultiScaleDeformableAttention
from onenet.detectors.deformable_detr.geometry import LevelGeometry
from onenet.detectors.deformable_detr.position import sine_encoding


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, residual, layer norm after: [B, N, C] -> [B, N, C]."""

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
    """Deformable self-attention, each position its own reference point, and a feed-forward net."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(dim, heads, levels, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, hidden, dropout)

    def forward(self, tokens: Tensor, positions: Tensor, geometry: LevelGeometry) -> Tensor:
        """Tokens and their position embeddings [B, S, C] -> [B, S, C]."""
        attended = self.attention(tokens + positions, geometry.reference_points, tokens, geometry)
        return self.feedforward(self.norm(tokens + self.dropout(attended)))


class Encoder(nn.Module):
    """`layers` encoder layers. Positions are told apart by a sine encoding of their place in the
    unpadded image and by a learned embedding of their level."""

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
        """[B, S, C]: half of the channels for y, half for x."""
        dim = self.level_embedding.shape[1]
        of_level = [
            embedding.expand(length, dim)
            for embedding, length in zip(self.level_embedding, geometry.lengths, strict=True)
        ]
        return sine_encoding(geometry.reference_points.flip(-1), dim // 2) + torch.cat(of_level)
