"""The R-CNN box coder: a box as a correction of another (R-CNN, arXiv 1311.2524, appendix C)."""

import math

import torch
from torch import Tensor

CENTER_WEIGHT, SIZE_WEIGHT = 2.0, 1.0  # Sparse R-CNN's (2, 2, 1, 1)
MAX_LOG_SCALE = math.log(100_000 / 16)  # of what one stage may multiply a side with
FARTHEST = 1e6  # pixels; beyond it areas would overflow after a few stages


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
