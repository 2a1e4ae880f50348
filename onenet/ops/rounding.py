"""Elementwise functions whose rounding does not depend on an entry's position in its tensor."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # entries; a multiple of the width of any CPU's vector instructions


def apply_in_blocks(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Returns `function(values)` such that equal values give equal results: [...] -> [...].

    CPUs process most of a tensor with vector instructions and its last few entries one by one,
    which rounds exp and log differently. Two slots with the same logit would then differ in cost,
    and their positions would decide which one is cheaper. So the tensor is padded to whole blocks.
    `function` is called with a flat tensor.
    """
    flat = values.flatten()
    if padding := -len(flat) % BLOCK:
        flat = F.pad(flat, (0, padding))
    return function(flat)[: values.numel()].view(values.shape)
