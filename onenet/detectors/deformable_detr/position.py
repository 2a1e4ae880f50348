"""The sine position encoding of DETR (Carion et al., 2020), for positions and for boxes."""

import math

import torch
from torch import Tensor

TEMPERATURE = 10000


def sine_encoding(coordinates: Tensor, features: int) -> Tensor:
    """Normalized coordinates [..., N] -> [..., N · features], coordinate by coordinate.

    `features`: of one coordinate, even. Features 2i and 2i + 1 of a coordinate x are the sine and
    the cosine of 2π x / 10000^(2i / features).
    """
    pairs = torch.arange(features // 2, device=coordinates.device, dtype=torch.float32)
    frequencies = 2 * math.pi * TEMPERATURE ** (-2 * pairs / features)
    angles = coordinates[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
