"""Functions of single numbers, rounded alike wherever a number stands in its tensor."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # at least the numbers that a processor's instructions take at once, a multiple of them


def rounded_alike(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """`function(values)`, where equal values give equal results: [...] -> [...].

    Processors compute most of a tensor by vector instructions and its last few entries one by one,
    which rounds exp and log otherwise. Then two slots with the same logit would differ in cost, and
    which of them is cheapest would depend on where they stand. So the tensor is filled up to whole
    blocks. `function` is called with [N].
    """
    flat = values.flatten()
    if missing := -len(flat) % BLOCK:
        flat = F.pad(flat, (0, missing))
    return function(flat)[: values.numel()].view(values.shape)
