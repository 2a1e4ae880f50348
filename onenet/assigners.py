"""Label assignment: which slot is the positive sample of which object (section 3.2).

B images, P prediction slots per image, N objects in an image, M objects in the whole batch.

Training calls `min_cost` or `hungarian`. Both take the matching cost, one head's predictions for a
batch, and the objects of its images, and return one `Matches` per image. All other slots are
negative samples. Neither depends on the detector.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from onenet.costs import MatchingCost
from onenet.ops.groups import not_first_of_group
from onenet.ops.tiled_argmin import cheapest_slots
from onenet.structures import HeadOutput, Matches, Target

Matcher = Callable[[MatchingCost, HeadOutput, Sequence[Target]], list[Matches]]


@torch.no_grad()
def min_cost(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target], conflict: str = "keep"
) -> list[Matches]:
    """Minimum Cost Assignment (Algorithm 1): each object takes its cheapest slot.

    Algorithm 1 does this in the line `_, src_ind = torch.min(cost_mat, dim=0)`. For one image of
    the batch, this would be

        lowest, slot = cost(output, image, target).min(dim=0)

    `cheapest_slots` returns exactly that, to the last digit, without computing every cost. Ties go
    to the lower slot index. The matches of an image are in the order of its objects.
    `conflict`: what happens when two objects ask for one slot, see `resolve_conflicts`.

    Raises FloatingPointError: see `_cheapest`.
    """
    matches = []
    for image, cheapest in enumerate(_cheapest(cost, output, targets)):
        cost_matrix = partial(cost, output, image, targets[image])
        matches.append(resolve_conflicts(*cheapest, conflict, cost_matrix))
    return matches


def _cheapest(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields for each image its objects' lowest costs, the slots with these costs, and whether
    another object has a better claim to the slot: [N], [N], [N] bool.

    On a CPU, raises FloatingPointError, naming image, object and term, if any cost is not finite; a
    logit of -inf is allowed, its slot is never the cheapest. Also if an object has no slot with a
    finite cost. On a GPU the check would force a synchronization, so it is skipped; there the loss
    is not finite either, which stops training before the optimiser step.
    """
    lowest, slot = cheapest_slots(cost, output, targets)  # [M], [M]: all objects of the batch
    image_idx = torch.cat([torch.full_like(t.gt_labels, i) for i, t in enumerate(targets)])
    if lowest.device.type == "cpu" and not lowest.isfinite().all():
        target = targets[int(image_idx[~lowest.isfinite()][0])]
        raise FloatingPointError(
            f"an object of image {target.image_id} has no slot with a finite matching cost"
        )
    loser = not_first_of_group(image_idx * output.boxes_xyxy.shape[1] + slot, lowest)
    counts = [len(target.gt_labels) for target in targets]
    yield from zip(*(tensor.split(counts) for tensor in (lowest, slot, loser)), strict=True)


def resolve_conflicts(
    lowest: Tensor, slot: Tensor, loser: Tensor, conflict: str, cost_matrix: Callable[[], Tensor]
) -> Matches:
    """Decides what happens when two objects ask for one slot; the paper does not say.

    `lowest`, `slot`, `loser` [N]: each object's lowest cost, the slot with that cost, and whether
    another object has priority for the slot: a lower cost or, if the costs are equal, a lower
    index. `conflict` is one of

    - `keep`: both take it. The slot is positive for both classes and regresses to both boxes.
    - `next_best`: objects choose in the order of their lowest cost; an object whose slot is
      occupied takes its cheapest free slot. If there are more objects than slots, the last objects
      get none.
    - `drop`: the object with priority takes the slot, the other one has no positive sample.

    `cost_matrix()` returns the image's [P, N] costs; only `next_best` calls it, and only if there
    is a conflict. Returns at most N matches. `Matches.conflicts` counts the losers in every case.
    """
    gt_idx, conflicts = torch.arange(len(slot), device=slot.device), loser.sum()
    if conflict == "drop":
        slot, gt_idx = slot[~loser], gt_idx[~loser]
    elif conflict == "next_best" and conflicts:
        slot, gt_idx = _next_best(cost_matrix(), order=lowest.argsort(stable=True))
    return Matches(slot, gt_idx, conflicts)


def _next_best(cost: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Gives each object in turn its cheapest free slot: [P, N], [N] -> slots, objects."""
    cost = cost.clone()
    slots = torch.full_like(order, -1)
    for gt in order[: cost.shape[0]].tolist():
        slots[gt] = cost[:, gt].argmin()
        cost[slots[gt]] = torch.inf  # no longer free
    gt_idx = (slots >= 0).nonzero().flatten()
    return slots[gt_idx], gt_idx


@torch.no_grad()
def hungarian(cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]) -> list[Matches]:
    """The one-to-one assignment with the lowest total cost, as in DETR and in the code released
    with the paper. Returns min(P, N) matches per image, in the order of its objects.

    If no two objects of an image ask for one slot, the cheapest slots are the optimum. Otherwise
    scipy finds it. `Matches.conflicts` counts the objects that would lose their slot under
    `min_cost`. Raises FloatingPointError: see `_cheapest`.
    """
    matches = []
    for image, (_, pred_idx, loser) in enumerate(_cheapest(cost, output, targets)):
        gt_idx = torch.arange(len(pred_idx), device=pred_idx.device)
        if loser.any():
            from scipy.optimize import linear_sum_assignment  # most runs never need it

            cost_matrix = cost(output, image, targets[image])  # [P, N]
            pred_idx, gt_idx = (
                torch.as_tensor(index, device=cost_matrix.device)
                for index in linear_sum_assignment(cost_matrix.cpu().numpy())
            )
            order = gt_idx.argsort()
            pred_idx, gt_idx = pred_idx[order], gt_idx[order]
        matches.append(Matches(pred_idx, gt_idx, loser.sum()))
    return matches


def make_matcher(assigner: str, conflict: str = "keep") -> Matcher:
    """Returns `hungarian`, or `min_cost` with the given handling of conflicts."""
    return hungarian if assigner == "hungarian" else partial(min_cost, conflict=conflict)
