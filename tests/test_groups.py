"""The first of each group against a loop over all pairs.

Run: pytest tests/test_groups.py
"""

import pytest
import torch

from onenet.ops.groups import not_first_of_group
from tests.conftest import seeded


def by_pairs(group: list[int], value: list[float]) -> list[bool]:
    count = range(len(group))
    return [
        any(group[j] == group[i] and (value[j], j) < (value[i], i) for j in count) for i in count
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_it_equals_the_loop_with_ties(count):
    for seed in range(20):
        group = torch.randint(6, (count,), generator=seeded(seed))
        value = torch.randint(3, (count,), generator=seeded(100 + seed)).float()
        assert not_first_of_group(group, value).tolist() == by_pairs(group.tolist(), value.tolist())
        assert not_first_of_group(group).tolist() == by_pairs(group.tolist(), [0.0] * count)
