"""A convolution of two maps, at half the work where they are the same."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pair_conv(conv: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Two of [B, C, H, W] -> [B, C', H, W]. Equals, but for rounding,

        conv(torch.cat([first, second], dim=1))

    `conv` has 2C input channels and is padded with zeros, without stride, dilation or groups. Where
    `second` is `first`, the sum of the weights of both halves convolves the map once. With it the
    first of several heads takes as long as an only head; without it (train 3, infer 1) was 7 %
    slower than one head on the proxy.
    """
    if second is first and isinstance(conv, nn.Conv2d):
        of_first, of_second = conv.weight.chunk(2, dim=1)
        return F.conv2d(first, of_first + of_second, conv.bias, padding=conv.padding)
    return conv(torch.cat([first, second], dim=1))
