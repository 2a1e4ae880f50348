"""Label assignment: which slot is the positive sample of which object (section 3.2).

B images, P prediction slots of an image, N ground truths of an image, M of the whole batch.

`min_cost` and `hungarian` are what training runs. Both take the matching cost, the predictions of
one head for a batch, and the batch's objects; they return a `Matches` for each image. All other
slots are negative samples. Neither asks which detector it serves.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
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

    The line of Algorithm 1 that does it, `_, src_ind = torch.min(cost_mat, dim=0)`, is here, for
    each image of the batch,

        lowest, slot = cost(output, image, target).min(dim=0)

    `cheapest_slots` gives just that, to the last digit, without computing every cost. Of equal
    costs the lower slot index wins. The matches of an image are in the order of its objects.
    `conflict`: what happens when two objects take one slot, see `resolve_conflicts`.

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
    """For each image the lowest cost of its objects, the slot that has it, and whether another
    object has a better claim to that slot: [N], [N], [N] bool.

    Raises FloatingPointError on a processor, naming image, object and term, if any cost is not
    finite, though a logit may be -inf (its slot is never the cheapest); and if an object has no
    slot of finite cost. On a GPU this would mean waiting for the device. There, the check before
    the optimiser step finds that the loss is not finite.
    """
    lowest, slot = cheapest_slots(cost, output, targets)  # [M], [M]: all objects of the batch
    image = torch.cat([torch.full_like(t.gt_labels, i) for i, t in enumerate(targets)])
    if lowest.device.type == "cpu" and not lowest.isfinite().all():
        target = targets[int(image[~lowest.isfinite()][0])]
        raise FloatingPointError(f"an object of image {target.image_id} has no slot it can take")
    loses = not_first_of_group(image * output.boxes_xyxy.shape[1] + slot, lowest)
    counts = [len(target.gt_labels) for target in targets]
    yield from zip(*(part.split(counts) for part in (lowest, slot, loses)), strict=True)


def resolve_conflicts(
    lowest: Tensor, slot: Tensor, loses: Tensor, conflict: str, cost_matrix: Callable[[], Tensor]
) -> Matches:
    """What becomes of two objects that ask for one slot; the paper does not say.

    `lowest`, `slot`, `loses` [N]: each object's lowest cost, the slot that has it, and whether
    another object has a better claim to that slot: a lower cost or, between equal costs, a lower
    index. `conflict` is one of

    - `keep`: both take it. The slot is positive for both classes and regresses to both boxes.
    - `next_best`: objects choose in the order of their lowest cost; whoever finds a slot taken
      takes the cheapest free one. With more objects than slots the last ones get none.
    - `drop`: the object with the better claim takes it, the other has no positive sample.

    `cost_matrix()` is the image's [P, N]; only `next_best` needs it, and only if there is a
    conflict. Returns at most N matches; `Matches.conflicts` counts `loses`, whatever follows.
    """
    gt_idx, conflicts = torch.arange(len(slot), device=slot.device), loses.sum()
    if conflict == "drop":
        slot, gt_idx = slot[~loses], gt_idx[~loses]
    elif conflict == "next_best" and conflicts:
        slot, gt_idx = _next_best(cost_matrix(), order=lowest.argsort(stable=True))
    return Matches(slot, gt_idx, conflicts)


def _next_best(cost: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """One object after the other takes its cheapest free slot: [P, N], [N] -> slots, objects."""
    free = cost.clone()
    chosen = torch.full_like(order, -1)
    for gt in order[: cost.shape[0]].tolist():
        chosen[gt] = free[:, gt].argmin()
        free[chosen[gt]] = torch.inf
    gt_idx = (chosen >= 0).nonzero().flatten()
    return chosen[gt_idx], gt_idx


@torch.no_grad()
def hungarian(cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]) -> list[Matches]:
    """The one-to-one assignment of least total cost, as in DETR and in the code that was released
    with the paper: min(P, N) matches an image, in the order of its objects.

    An image whose objects have different cheapest slots has its optimum already. The others are
    solved by scipy. `Matches.conflicts` counts the objects that would lose their slot with
    `min_cost`. Raises FloatingPointError: see `_cheapest`.
    """
    matches = []
    for image, (_, pred_idx, loses) in enumerate(_cheapest(cost, output, targets)):
        gt_idx = torch.arange(len(pred_idx), device=pred_idx.device)
        if loses.any():
            cost_matrix = cost(output, image, targets[image])  # [P, N]
            pred_idx, gt_idx = (
                torch.as_tensor(index, device=cost_matrix.device)
                for index in linear_sum_assignment(cost_matrix.cpu().numpy())
            )
            order = gt_idx.argsort()
            pred_idx, gt_idx = pred_idx[order], gt_idx[order]
        matches.append(Matches(pred_idx, gt_idx, loses.sum()))
    return matches


def make_matcher(assigner: str, conflict: str = "keep") -> Matcher:
    """`assigner`: `min_cost`, to which `conflict` matters, or `hungarian`."""
    return hungarian if assigner == "hungarian" else partial(min_cost, conflict=conflict)
