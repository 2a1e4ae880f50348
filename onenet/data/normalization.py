"""Normalises pixels by ImageNet's mean and standard deviation, as in the backbone's training."""

import torch
from torch import Tensor

PIXEL_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
PIXEL_STD = (0.229, 0.224, 0.225)
PADDING_RGB = (124, 116, 104)  # ImageNet's mean, so about 0 after normalisation


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB [..., 3, H, W] -> float32, normalised by ImageNet's mean and deviation."""
    mean = torch.tensor(PIXEL_MEAN, device=images.device)[:, None, None] * 255
    std = torch.tensor(PIXEL_STD, device=images.device)[:, None, None] * 255
    return images.float().sub_(mean).div_(std)
