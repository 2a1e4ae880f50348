"""The cheapest slot of every object, without all the costs.

Equals `cost(output, image, target).min(dim=0)` of every image, where all costs are finite: to the
last digit and with the same choice between equal costs (tests/test_tiled_argmin.py).

B images, P prediction slots, N ground truths of an image, M of the batch; a tile is a run of TILE
consecutive slots, T of them in an image.

Minimum Cost Assignment needs the column minima of the cost [P, N] and nothing else of it. On a GPU,
and where there are few pairs, the batch's costs are computed as one [M, P], of the objects' classes
only, and without waiting for the device. On a processor with many pairs (COCO: 27,000 slots) each
image is searched by branch and bound: the ranges of what a tile predicts bound its costs from
below, and only tiles that can hold a minimum are evaluated. Where the bounds leave too many, all
slots are, a few objects at a time, in the processor's cache. Every way computes a pair's cost by
the same operations as the whole matrix does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onenet.costs import MatchingCost, Pairs, normalized
from onenet.structures import HeadOutput, Target

TILE = 16
FEW_PAIRS = 120_000  # of a batch, up to which looking at all of them is faster
AT_ONCE = 1 << 24  # pairs of which the costs are in memory at a time
IN_CACHE = 1 << 16  # the same, on a processor
MANY, TOO_MANY = 0.04, 0.3  # fractions of the tiles that bounds may leave: better bounds, no search
SAMPLE = 16  # promising tiles of an object that give a better bound
LARGEST = 1e18  # a coordinate in pixels whose square is still finite
ROUNDING = 1e-4  # relative to a bound; a hundred times what float32 can be off


@torch.no_grad()
def cheapest_slots(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """The lowest cost of each of the batch's objects, and the first slot that has it: [M], [M].

    Raises FloatingPointError on a processor, as `cost(output, image, target)` does.
    """
    pairs = output.boxes_xyxy.shape[1] * sum(len(target.gt_labels) for target in targets)
    on_cpu = output.boxes_xyxy.device.type == "cpu"
    if on_cpu and pairs > FEW_PAIRS:
        search = _search if _has_bounds(cost) else _evaluate_all
        minima = [search(cost, output, image, target) for image, target in enumerate(targets)]
        lowest, pred_idx = zip(*minima, strict=True)
        return torch.cat(lowest), torch.cat(pred_idx)
    return _evaluate_batch(cost, output, targets)


def _evaluate_batch(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """The batch's M objects against the slots of their own images: [M], [M]."""
    device, (images, slots) = output.boxes_xyxy.device, output.boxes_xyxy.shape[:2]
    counts = torch.tensor([len(target.gt_labels) for target in targets])
    image = torch.arange(images).repeat_interleave(counts)
    whwh = torch.tensor([2 * t.size_hw[::-1] for t in targets], dtype=torch.float32)[image]
    image, whwh = (t.to(device, non_blocking=True) for t in (image, whwh))
    labels = torch.cat([t.gt_labels for t in targets])
    gt = torch.cat([t.gt_xyxy for t in targets])
    logits_of_class = output.class_logits.detach().transpose(1, 2)  # [B, K, P]
    sides = output.boxes_xyxy.detach().permute(2, 0, 1)  # [4, B, P]
    points = output.points_xy.t().contiguous().t()
    lowest, pred_idx = [], []
    for start in range(0, len(labels), AT_ONCE // slots + 1):
        some = slice(start, start + AT_ONCE // slots + 1)
        pairs = Pairs(
            logits=logits_of_class[image[some], labels[some]].float(),  # [M, P]
            boxes_xyxy=sides[:, image[some]].float().movedim(0, -1),
            points_xy=points,
            gt_xyxy=gt[some, None],
            whwh=whwh[some, None],
        )
        total = cost.of(pairs)
        if device.type == "cpu" and not total.isfinite().all():
            for number, target in enumerate(targets):
                cost(output, number, target)  # raises, but where only logits are -inf
        minimum = total.min(dim=1)
        lowest.append(minimum.values)
        pred_idx.append(minimum.indices)
    if not lowest:
        return gt.new_zeros(0), torch.zeros_like(labels)
    return torch.cat(lowest), torch.cat(pred_idx)


@dataclass(frozen=True)
class _Tiles:
    """The slots of one image in runs."""

    logits: Tensor  # [T, TILE, U] of the U classes present
    column: Tensor  # [N] in 0..U-1, of each object's class
    sides: Tensor  # [4, TILE, T]: x1, y1, x2, y2
    points: Tensor  # [2, TILE, T]: x, y

    def pairs(self, tile: Tensor, gt: Tensor, target: Target, whwh: Tensor) -> Pairs:
        """The slots of `tile` [S] with the object `gt` [S], each: [TILE, S]."""
        return Pairs(
            logits=self.logits[tile, :, self.column[gt]].t(),
            boxes_xyxy=self.sides[:, :, tile].movedim(0, -1),
            points_xy=self.points[:, :, tile].movedim(0, -1),
            gt_xyxy=target.gt_xyxy[gt],
            whwh=whwh,
        )


def _search(
    cost: MatchingCost, output: HeadOutput, image: int, target: Target
) -> tuple[Tensor, Tensor]:
    """Branch and bound over the tiles of one image: [N], [N]."""
    height, width = target.size_hw
    whwh = torch.tensor([width, height, width, height], dtype=torch.float32)
    tiles = _tiles(output, image, target)
    bound = _lower_bound(cost, tiles, target, whwh)  # [N, T]
    if bound is None:
        return _evaluate_all(cost, output, image, target)
    lowest = torch.full_like(bound, torch.inf)
    first = torch.zeros_like(bound, dtype=torch.int64)

    def evaluate(objects: Tensor, tile: Tensor) -> None:
        parts = (t.split(IN_CACHE // TILE) for t in (objects, tile))
        for gt, some in zip(*parts, strict=True):
            minimum = cost.of(tiles.pairs(some, gt, target, whwh)).min(dim=0)
            lowest[gt, some], first[gt, some] = minimum

    every = torch.arange(len(bound))
    evaluate(every, bound.argmin(dim=1))
    left = ~(bound > lowest.amin(dim=1)[:, None])  # "not greater": where it is NaN, too
    if left.float().mean() > MANY:
        sample = bound.topk(min(SAMPLE, bound.shape[1]), dim=1, largest=False).indices
        evaluate(every.repeat_interleave(sample.shape[1]), sample.flatten())
        left = ~(bound > lowest.amin(dim=1)[:, None])
        if left.float().mean() > TOO_MANY:
            return _evaluate_all(cost, output, image, target)
    evaluate(*left.nonzero(as_tuple=True))
    value, tile = lowest.min(dim=1)
    return value, tile * TILE + first[every, tile]


def _evaluate_all(
    cost: MatchingCost, output: HeadOutput, image: int, target: Target
) -> tuple[Tensor, Tensor]:
    """All slots of one image, a few objects at a time: [N], [N]. The class cost is computed once
    for each class."""
    height, width = target.size_hw
    labels, column = target.gt_labels.unique(return_inverse=True)
    logits = output.class_logits[image].detach().index_select(1, labels).float().t().contiguous()
    class_cost = cost.class_cost(logits) if cost.weights.cls else None
    sides, points = (
        t.detach().float().t().contiguous().t()[None]  # each coordinate contiguous
        for t in (output.boxes_xyxy[image], output.points_xy)
    )
    minima = []
    for some in torch.arange(len(column)).split(max(1, IN_CACHE // logits.shape[1])):
        pairs = Pairs(
            logits=logits[column[some]],
            boxes_xyxy=sides,
            points_xy=points,
            gt_xyxy=target.gt_xyxy[some, None],
            whwh=sides.new_tensor([width, height, width, height]),
        )
        total = cost.of(pairs, None if class_cost is None else class_cost[column[some]])
        if not total.isfinite().all():
            cost(output, image, target)  # raises, but where only logits are -inf
        minima.append(total.min(dim=1))
    if not minima:
        return sides.new_zeros(0), torch.zeros_like(column)
    return tuple(torch.cat(part) for part in zip(*minima, strict=True))


def _tiles(output: HeadOutput, image: int, target: Target) -> _Tiles:
    labels, column = target.gt_labels.unique(return_inverse=True)
    logits = output.class_logits[image].detach().index_select(1, labels).float()
    sides, points = (
        _in_runs(t.detach().float()).permute(2, 1, 0).contiguous()
        for t in (output.boxes_xyxy[image], output.points_xy)
    )
    return _Tiles(_in_runs(logits), column, sides, points)


def _in_runs(values: Tensor) -> Tensor:
    """[P, ...] -> [T, TILE, ...]; the last tile is filled up with the last slot."""
    if missing := -len(values) % TILE:
        values = torch.cat([values, values[-1:].expand(missing, -1)])
    return values.unflatten(0, (-1, TILE))


def _lower_bound(cost: MatchingCost, tiles: _Tiles, target: Target, whwh: Tensor) -> Tensor | None:
    """What no slot of the tile can undercut: [N, T]. None if there are values that are not finite,
    or so large that costs overflow."""
    w, gt = cost.weights, target.gt_xyxy
    low, high = tiles.sides.amin(dim=1), tiles.sides.amax(dim=1)  # [4, T]
    logits = tiles.logits.amax(dim=1)  # [T, U]
    if not ((low > -LARGEST) & (high < LARGEST)).all() or not (logits < torch.inf).all():
        return None
    bound = torch.zeros(len(gt), tiles.sides.shape[2])
    if w.cls:
        bound += w.cls * cost.class_cost(logits).t()[tiles.column]
    if w.l1:
        numbers = normalized(tiles.sides.movedim(0, -1), whwh, cost.l1_format)
        bound += w.l1 * _least_distance(numbers, normalized(gt, whwh, cost.l1_format))
    if w.iou or w.giou:
        iou, giou = _most_iou_and_giou(low, high, gt)
        bound += w.iou * (1 - iou) + w.giou * (1 - giou)
    if w.center:
        points = [xy / unit for xy, unit in zip(tiles.points, whwh, strict=False)]
        bound += w.center * _least_distance(points, normalized(gt, whwh, "cxcywh")[:2])
    return bound - ROUNDING * (1 + bound.abs()).clamp_(max=LARGEST)


def _least_distance(slots: Sequence[Tensor], objects: Sequence[Tensor]) -> Tensor:
    """The least L1 distance that the ranges of a tile's coordinates leave: each [TILE, T], each [N]
    -> [N, T]."""
    total = torch.zeros(())
    for slot, gt in zip(slots, objects, strict=True):
        low, high = slot.amin(dim=0), slot.amax(dim=0)
        total = total + torch.maximum(low - gt[:, None], gt[:, None] - high).clamp_(min=0)
    return total


def _most_iou_and_giou(low: Tensor, high: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """What IoU and GIoU at most are, given the ranges [4, T] of the four sides; gt [N, 4]
    -> two of [N, T]."""
    (x1, y1, x2, y2), (x1_most, y1_most, x2_most, y2_most) = low, high
    left, top, right, bottom = gt.t()[..., None]
    overlap_w = torch.minimum(x2_most, right) - torch.maximum(x1, left)
    overlap_h = torch.minimum(y2_most, bottom) - torch.maximum(y1, top)
    overlap = overlap_w.clamp_(min=0) * overlap_h.clamp_(min=0)
    smallest = (x2 - x1_most).clamp(min=0) * (y2 - y1_most).clamp(min=0)
    largest = (x2_most - x1) * (y2_most - y1)
    area = (right - left) * (bottom - top)
    iou = overlap / torch.maximum(smallest, area).maximum(smallest + area - overlap)
    hull_w = torch.maximum(x2, right) - torch.minimum(x1_most, left)
    hull_h = torch.maximum(y2, bottom) - torch.minimum(y1_most, top)
    return iou, iou - 1 + ((largest + area) / (hull_w * hull_h)).clamp_(max=1)


def _has_bounds(cost: MatchingCost) -> bool:
    """The bounds hold for terms that cannot fall below 0, and a class cost that falls. Of a user's
    own term nothing is known."""
    falling = cost.cls_form == "cross_entropy" or (0 <= cost.alpha <= 1 and cost.gamma >= 0)
    return falling and not cost.own and all(w >= 0 for w in vars(cost.weights).values())
