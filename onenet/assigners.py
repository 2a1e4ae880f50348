"""Label assignment: one positive sample an object, all other slots negative (section 3.2).

P prediction slots, N ground truths, M matches. An assigner takes a finite cost [P, N] of one image
and returns `Matches`. None of them asks which head or detector it serves.
"""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onenet.structures import Matches

Assigner = Callable[[Tensor], Matches]


def min_cost(cost: Tensor, conflict: str = "keep") -> Matches:
    """Minimum Cost Assignment (section 3.2, Algorithm 1): each object takes its cheapest slot.

    Equal costs: the lower slot index wins, then the lower object index. [P, N] -> M <= N matches,
    in the order of the objects. `conflict`: see `settle`. Training takes the same answer from
    `matching.match_cheapest`.
    """
    return settle(*cost.min(dim=0), conflict, lambda: cost)


def settle(
    lowest: Tensor, pred_idx: Tensor, conflict: str, whole_cost: Callable[[], Tensor]
) -> Matches:
    """What becomes of the objects' cheapest slots, given their costs: [N], [N] -> M <= N matches.

    Two objects can ask for one slot. `conflict` says what happens then:

    - `keep`: both have it. The slot is positive for both labels and regresses to both boxes.
    - `next_best`: objects choose in the order of their lowest cost; who comes late takes the
      cheapest slot that is free. Needs N <= P, the surplus is left out.
    - `drop`: the object with the lower cost has it, the other has no positive sample.

    `whole_cost` gives [P, N], which `next_best` needs where there are conflicts.
    """
    gt_idx = torch.arange(len(lowest), device=lowest.device)
    # Stable, so that between equal costs the first object is served first.
    order = lowest.argsort(stable=True)
    first_of_slot = torch.ones_like(gt_idx, dtype=torch.bool)
    same_slot = pred_idx[order][:, None] == pred_idx[order][None, :]
    first_of_slot[order] = ~same_slot.tril(diagonal=-1).any(dim=1)
    conflicts = (~first_of_slot).sum()
    if conflict == "drop":
        pred_idx, gt_idx = pred_idx[first_of_slot], gt_idx[first_of_slot]
    elif conflict == "next_best" and conflicts:
        pred_idx, gt_idx = _take_free_slots(whole_cost(), order)
    return Matches(pred_idx, gt_idx, conflicts)


def _take_free_slots(cost: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The objects, in this order, each take their cheapest slot that nobody has taken."""
    free = cost.clone()
    chosen = torch.full_like(order, -1)
    for gt in order[: cost.shape[0]].tolist():
        chosen[gt] = free[:, gt].argmin()
        free[chosen[gt]] = torch.inf
    gt_idx = (chosen >= 0).nonzero().flatten()
    return chosen[gt_idx], gt_idx


def hungarian(cost: Tensor) -> Matches:
    """The one-to-one assignment of least total cost (the released code's): [P, N] -> min(P, N)
    matches in the order of the objects. `conflicts` counts what `min_cost` would have met.
    """
    pred_idx, gt_idx = linear_sum_assignment(cost.cpu().numpy())
    order = gt_idx.argsort()
    device = cost.device
    return Matches(
        torch.as_tensor(pred_idx[order], device=device),
        torch.as_tensor(gt_idx[order], device=device),
        min_cost(cost).conflicts,
    )
