"""Label assignment: one positive sample an object, all other slots negative (section 3.2).

P prediction slots, N ground truths, M matches. An assigner takes a finite cost [P, N] of one image
and returns `Matches`; a matcher takes the cost function and the predictions of a batch. None of
them asks which head or detector it serves.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onenet.costs import MatchingCost
from onenet.ops.tiled_argmin import cheapest_slots
from onenet.structures import HeadOutput, Matches, Target

Assigner = Callable[[Tensor], Matches]
Matcher = Callable[[MatchingCost, HeadOutput, Sequence[Target]], list[Matches]]


def min_cost(cost: Tensor, conflict: str = "keep") -> Matches:
    """Minimum Cost Assignment (section 3.2, Algorithm 1): each object takes its cheapest slot.

    Equal costs: the lower slot index wins, then the lower object index. [P, N] -> M <= N matches,
    in the order of the objects. `conflict`: see `settle`. Training takes the same answer from
    `match_cheapest`, for a batch.
    """
    lowest, pred_idx = cost.min(dim=0)
    return settle(pred_idx, late_objects(lowest, pred_idx), conflict, lowest, lambda: cost)


def late_objects(lowest: Tensor, slot: Tensor) -> Tensor:
    """Which objects ask for a slot that another object gets, by its lower cost or, between equal
    costs, its lower index: [N] costs and [N] numbers of slots -> [N] bool."""
    order = lowest.argsort(stable=True)
    order = order[slot[order].argsort(stable=True)]  # by slot, in it by cost, then by index
    result = torch.zeros_like(slot, dtype=torch.bool)
    result[order[1:]] = slot[order[1:]] == slot[order[:-1]]
    return result


def settle(
    pred_idx: Tensor,
    late: Tensor,
    conflict: str,
    lowest: Tensor,
    whole_cost: Callable[[], Tensor],
) -> Matches:
    """What becomes of the objects' cheapest slots and of those who come `late`: [N] -> M <= N
    matches.

    Two objects can ask for one slot. `conflict` says what happens then:

    - `keep`: both have it. The slot is positive for both labels and regresses to both boxes.
    - `next_best`: objects choose in the order of their `lowest` cost; who comes late takes the
      cheapest slot that is free. Needs N <= P, the surplus is left out.
    - `drop`: the object with the lower cost has it, the other has no positive sample.

    `whole_cost` gives [P, N], which `next_best` needs where there are conflicts.
    """
    gt_idx = torch.arange(len(pred_idx), device=pred_idx.device)
    conflicts = late.sum()
    if conflict == "drop":
        pred_idx, gt_idx = pred_idx[~late], gt_idx[~late]
    elif conflict == "next_best" and conflicts:
        pred_idx, gt_idx = _take_free_slots(whole_cost(), lowest.argsort(stable=True))
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


def make_matcher(name: str, conflict: str) -> Matcher:
    """`name`: `min_cost` or `hungarian`; `conflict` matters to the former only."""
    if name == "hungarian":
        return partial(match_each, hungarian)
    return partial(match_cheapest, conflict)


def match_each(
    assigner: Assigner, cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> list[Matches]:
    """Hands the assigner the whole cost [P, N] of one image after the other."""
    return [assigner(cost(output, image, target)) for image, target in enumerate(targets)]


@torch.no_grad()
def match_cheapest(
    conflict: str, cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> list[Matches]:
    """`assigners.min_cost` of every image.

    On a processor a cost that is not finite raises FloatingPointError, which names it. On a GPU
    that would have to be waited for: the loss is not finite either then.
    """
    counts = [len(target.gt_labels) for target in targets]
    lowest, pred_idx = cheapest_slots(cost, output, targets)
    if lowest.device.type == "cpu" and not lowest.isfinite().all():
        match_each(min_cost, cost, output, targets)  # raises
    slots = output.boxes_xyxy.shape[1]
    first = torch.arange(0, slots * len(counts), slots).repeat_interleave(torch.tensor(counts))
    late = late_objects(lowest, pred_idx + first.to(pred_idx.device, non_blocking=True))
    of_images = (part.split(counts) for part in (lowest, pred_idx, late))
    matches = []
    for image, (lowest, pred_idx, late) in enumerate(zip(*of_images, strict=True)):
        whole_cost = partial(cost, output, image, targets[image])
        matches.append(settle(pred_idx, late, conflict, lowest, whole_cost))
    return matches
