"""Operations on groups of entries in a tensor, without a loop over the groups."""

import torch
from torch import Tensor


def not_first_of_group(group: Tensor, value: Tensor | None = None) -> Tensor:
    """Which entries are not the first of their group: [N] integers, [N] -> [N] bool.

    The first entry is the one with the lowest `value`. Ties, or all entries if there are no values,
    are ordered by index. Equals

        [any(group[j] == group[i] and (value[j], j) < (value[i], i) for j in range(N))
         for i in range(N)]
    """
    order = torch.arange(len(group), device=group.device)
    if value is not None:
        order = value.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, then value, then index
    result = torch.zeros_like(group, dtype=torch.bool)
    result[order[1:]] = group[order[1:]] == group[order[:-1]]
    return result
