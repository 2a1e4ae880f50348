"""Box geometry. Boxes are (x1, y1, x2, y2) in pixels everywhere."""

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_points(height: int, width: int, stride: int, device=None) -> Tensor:
    """Centres of the cells of a feature map: [height * width, 2] as (x, y) pixels, row by row.

    The point of cell (row, column) is (stride * column + stride / 2, stride * row + stride / 2).
    """
    ys = torch.arange(height, device=device, dtype=torch.float32) * stride + stride / 2
    xs = torch.arange(width, device=device, dtype=torch.float32) * stride + stride / 2
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)


def ltrb_to_xyxy(points_xy: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes around points: [P, 2] and distances [..., P, 4] to the four sides -> [..., P, 4].

    Distances are in pixels, >= 0.
    """
    return torch.cat([points_xy - ltrb[..., :2], points_xy + ltrb[..., 2:]], dim=-1)


def clip_to_images(boxes_xyxy: Tensor, sizes_hw: Sequence[tuple[int, int]]) -> Tensor:
    """Clips the boxes of each image to its (height, width) in pixels: [B, N, 4] -> [B, N, 4]."""
    limits = boxes_xyxy.new_tensor([(width, height) * 2 for height, width in sizes_hw])
    return torch.minimum(boxes_xyxy.clamp(min=0), limits[:, None])


def iou_and_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU in [0, 1] and generalized IoU in [-1, 1] of boxes that broadcast against each other.

    [..., 4], [..., 4] -> [...], [...]. Pass `a[:, None], b[None]` for all pairs, `a, b` for pairs
    of the same index. Fastest if each coordinate is contiguous in memory. Boxes may have zero area:
    two of them at the same location have IoU 0 and GIoU 0 (torchvision returns NaN).
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a_xyxy.unbind(-1), b_xyxy.unbind(-1)
    overlap_w = torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)
    overlap_h = torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    overlap = overlap_w.clamp(min=0) * overlap_h.clamp(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    hull_w = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    hull_h = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    hull = hull_w * hull_h
    eps = torch.finfo(union.dtype).eps
    iou = overlap / union.clamp(min=eps)
    return iou, iou - (hull - union) / hull.clamp(min=eps)
