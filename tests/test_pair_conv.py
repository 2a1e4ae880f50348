"""pair_conv against one convolution of the concatenated maps.

Run: pytest tests/test_pair_conv.py
"""

import pytest
import torch
from torch import nn

from onenet.ops.pair_conv import pair_conv
from tests.conftest import seeded


@pytest.mark.parametrize("same", [True, False])
def test_it_equals_the_convolution_of_both_with_its_gradients(same):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 3, 3, padding=1).double()
    first, second = torch.randn(2, 2, 4, 5, 7, dtype=torch.float64, generator=seeded())
    first.requires_grad_()
    second = first if same else second.requires_grad_()
    inputs = [first, second, conv.weight, conv.bias]
    expected = conv(torch.cat([first, second], dim=1))
    answer = pair_conv(conv, first, second)
    torch.testing.assert_close(answer, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=seeded(1))
    for ours, plain in zip(
        torch.autograd.grad((answer * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)
