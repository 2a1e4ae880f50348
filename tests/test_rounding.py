"""Equal values give equal results, at every position.

Run: pytest tests/test_rounding.py
"""

import pytest
import torch
import torch.nn.functional as F

from onenet.ops.rounding import apply_in_blocks
from tests.conftest import seeded


@pytest.mark.parametrize("count", [0, 1, 5, 63, 64, 65, 1000])
def test_it_is_the_function(count):
    values = torch.randn(count, generator=seeded())
    torch.testing.assert_close(apply_in_blocks(torch.exp, values), values.exp())
    assert apply_in_blocks(torch.exp, values.view(1, count)).shape == (1, count)


@pytest.mark.parametrize("count", range(1, 80, 7))
def test_equal_values_give_equal_results(count):
    for value in torch.randn(20, generator=seeded()).tolist():
        results = apply_in_blocks(
            lambda x: x.sigmoid() ** 2 * F.softplus(x), torch.full((count,), value)
        )
        assert len(results.unique()) == 1
