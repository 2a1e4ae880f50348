"""Box geometry. Boxes are (x1, y1, x2, y2) in pixels everywhere."""

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
    """Boxes around points: [P, 2] and the distances [..., P, 4] to the four sides -> [..., P, 4].

    Distances are pixels, >= 0.
    """
    return torch.cat([points_xy - ltrb[..., :2], points_xy + ltrb[..., 2:]], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Centre and size of each box: [..., 4] -> [..., 4]."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def clip_to_image(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes cut at the border of an image of (height, width) pixels: [..., 4] -> [..., 4]."""
    height, width = size_hw
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)


def iou_and_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU in [0, 1] and generalized IoU in [-1, 1] of boxes that broadcast against each other.

    [..., 4], [..., 4] -> two of [...]. For all pairs pass `a[:, None], b[None]`; for pairs in a row
    `a, b`. Boxes without area are allowed: two of them at one place have IoU 0 and GIoU 0 (where
    torchvision returns NaN).
    """
    top_left = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    bottom_right = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
    area_a = (a_xyxy[..., 2:] - a_xyxy[..., :2]).prod(-1)
    area_b = (b_xyxy[..., 2:] - b_xyxy[..., :2]).prod(-1)
    union = area_a + area_b - overlap
    hull_low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (hull_high - hull_low).prod(-1)
    tiny = torch.finfo(union.dtype).eps
    iou = overlap / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)
