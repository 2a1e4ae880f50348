"""The cheapest slot of every object, without computing every cost.

Equals `cost(output, image, target).min(dim=0)` for every image if all costs are finite: to the last
digit, and with the same choice between equal costs (tests/test_tiled_argmin.py).

B images, P prediction slots, N objects in an image, M objects in the batch. A tile is a group of
TILE consecutive slots; an image has T tiles.

Minimum Cost Assignment only needs the column minima of the cost matrix [P, N]. On a GPU, or if
there are few pairs, the costs of the whole batch are computed as one [M, P], with the logits of the
objects' classes only and without a synchronization. On a CPU with many pairs (COCO: 27,000 slots),
branch and bound finds the minima of an image: the ranges of a tile's predictions give a lower bound
on its costs, and only tiles that may contain a minimum are evaluated. If the bounds exclude too few
tiles, all slots are evaluated, a few objects at a time so that the costs stay in the cache. Each
pair's cost is always computed by the same operations as in the full matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onenet.costs import MatchingCost, Pairs, normalized_coordinates
from onenet.structures import HeadOutput, Target

TILE = 16
FEW_PAIRS = 120_000  # per batch; up to this number, evaluating all pairs is faster
PAIRS_IN_MEMORY = 1 << 24  # per chunk on a GPU
PAIRS_IN_CACHE = 1 << 16  # per chunk on a CPU
MANY_TILES = 0.04  # fraction of the tiles; if more are left, SAMPLE tiles tighten the upper bound
TOO_MANY_TILES = 0.3  # if still more are left, evaluating all slots is faster
SAMPLE = 16  # tiles per object
MAX_COORDINATE = 1e18  # pixels; its square is still finite
ROUNDING = 1e-4  # relative margin of a bound; a hundred times the rounding error of float32


@torch.no_grad()
def cheapest_slots(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """The lowest cost of each object in the batch, and the first slot with that cost: [M], [M].

    On a CPU, raises FloatingPointError like `cost(output, image, target)`.
    """
    pairs = output.boxes_xyxy.shape[1] * sum(len(target.gt_labels) for target in targets)
    on_cpu = output.boxes_xyxy.device.type == "cpu"
    if on_cpu and pairs > FEW_PAIRS:
        search = _branch_and_bound if _has_bounds(cost) else _evaluate_image
        minima = [search(cost, output, image, target) for image, target in enumerate(targets)]
        lowest, pred_idx = zip(*minima, strict=True)
        return torch.cat(lowest), torch.cat(pred_idx)
    return _evaluate_batch(cost, output, targets)


def _evaluate_batch(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """Compares each of the batch's M objects with all slots of its image: [M], [M]."""
    device, (images, slots) = output.boxes_xyxy.device, output.boxes_xyxy.shape[:2]
    counts = torch.tensor([len(target.gt_labels) for target in targets])
    image = torch.arange(images).repeat_interleave(counts)
    whwh = torch.tensor([2 * t.size_hw[::-1] for t in targets], dtype=torch.float32)[image]
    image, whwh = (t.to(device, non_blocking=True) for t in (image, whwh))
    labels = torch.cat([t.gt_labels for t in targets])
    gt = torch.cat([t.gt_xyxy for t in targets])
    class_logits = output.class_logits.detach().transpose(1, 2)  # [B, K, P]
    sides = output.boxes_xyxy.detach().permute(2, 0, 1)  # [4, B, P]
    points = output.points_xy.t().contiguous().t()
    lowest, pred_idx = [], []
    for start in range(0, len(labels), PAIRS_IN_MEMORY // slots + 1):
        chunk = slice(start, start + PAIRS_IN_MEMORY // slots + 1)
        pairs = Pairs(
            logits=class_logits[image[chunk], labels[chunk]].float(),  # [M, P]
            boxes_xyxy=sides[:, image[chunk]].float().movedim(0, -1),
            points_xy=points,
            gt_xyxy=gt[chunk, None],
            whwh=whwh[chunk, None],
        )
        total = cost.of(pairs)
        if device.type == "cpu" and not total.isfinite().all():
            for number, target in enumerate(targets):
                cost(output, number, target)  # raises, unless only logits are -inf
        minimum = total.min(dim=1)
        lowest.append(minimum.values)
        pred_idx.append(minimum.indices)
    if not lowest:
        return gt.new_zeros(0), torch.zeros_like(labels)
    return torch.cat(lowest), torch.cat(pred_idx)


@dataclass(frozen=True)
class _Tiles:
    """The slots of one image, grouped into tiles."""

    logits: Tensor  # [T, TILE, U] of the U classes in the image
    column: Tensor  # [N] in 0..U-1, index of each object's class
    sides: Tensor  # [4, TILE, T]: x1, y1, x2, y2
    points: Tensor  # [2, TILE, T]: x, y

    def pairs(self, tile: Tensor, gt: Tensor, target: Target, whwh: Tensor) -> Pairs:
        """All slots of each tile in `tile` [S], paired with the object in `gt` [S]: [TILE, S]."""
        return Pairs(
            logits=self.logits[tile, :, self.column[gt]].t(),
            boxes_xyxy=self.sides[:, :, tile].movedim(0, -1),
            points_xy=self.points[:, :, tile].movedim(0, -1),
            gt_xyxy=target.gt_xyxy[gt],
            whwh=whwh,
        )


def _branch_and_bound(
    cost: MatchingCost, output: HeadOutput, image: int, target: Target
) -> tuple[Tensor, Tensor]:
    """Lowest costs and first slots for one image, by branch and bound over its tiles: [N], [N]."""
    height, width = target.size_hw
    whwh = torch.tensor([width, height, width, height], dtype=torch.float32)
    tiles = _tiles(output, image, target)
    bound = _lower_bound(cost, tiles, target, whwh)  # [N, T]
    if bound is None:
        return _evaluate_image(cost, output, image, target)
    lowest = torch.full_like(bound, torch.inf)
    first = torch.zeros_like(bound, dtype=torch.int64)

    def evaluate(objects: Tensor, tile_indices: Tensor) -> None:
        chunks = (t.split(PAIRS_IN_CACHE // TILE) for t in (objects, tile_indices))
        for gt, tile in zip(*chunks, strict=True):
            minimum = cost.of(tiles.pairs(tile, gt, target, whwh)).min(dim=0)
            lowest[gt, tile], first[gt, tile] = minimum

    def candidates() -> Tensor:
        return ~(bound > lowest.amin(dim=1)[:, None])  # [N, T]; not `<=`, which is False for NaN

    objects = torch.arange(len(bound))
    evaluate(objects, bound.argmin(dim=1))
    if candidates().float().mean() > MANY_TILES:
        sample = bound.topk(min(SAMPLE, bound.shape[1]), dim=1, largest=False).indices
        evaluate(objects.repeat_interleave(sample.shape[1]), sample.flatten())
        if candidates().float().mean() > TOO_MANY_TILES:
            return _evaluate_image(cost, output, image, target)
    evaluate(*candidates().nonzero(as_tuple=True))
    value, tile = lowest.min(dim=1)
    return value, tile * TILE + first[objects, tile]


def _evaluate_image(
    cost: MatchingCost, output: HeadOutput, image: int, target: Target
) -> tuple[Tensor, Tensor]:
    """Compares a few objects of one image at a time with all slots: [N], [N].

    The class cost is computed once per class.
    """
    height, width = target.size_hw
    labels, column = target.gt_labels.unique(return_inverse=True)
    logits = output.class_logits[image].detach().index_select(1, labels).float().t().contiguous()
    class_cost = cost.class_cost(logits) if cost.weights.cls else None
    sides, points = (
        t.detach().float().t().contiguous().t()[None]  # each coordinate contiguous
        for t in (output.boxes_xyxy[image], output.points_xy)
    )
    minima = []
    for chunk in torch.arange(len(column)).split(max(1, PAIRS_IN_CACHE // logits.shape[1])):
        pairs = Pairs(
            logits=logits[column[chunk]],
            boxes_xyxy=sides,
            points_xy=points,
            gt_xyxy=target.gt_xyxy[chunk, None],
            whwh=sides.new_tensor([width, height, width, height]),
        )
        total = cost.of(pairs, None if class_cost is None else class_cost[column[chunk]])
        if not total.isfinite().all():
            cost(output, image, target)  # raises, unless only logits are -inf
        minima.append(total.min(dim=1))
    if not minima:
        return sides.new_zeros(0), torch.zeros_like(column)
    return tuple(torch.cat(part) for part in zip(*minima, strict=True))


def _tiles(output: HeadOutput, image: int, target: Target) -> _Tiles:
    labels, column = target.gt_labels.unique(return_inverse=True)
    logits = output.class_logits[image].detach().index_select(1, labels).float()
    sides, points = (
        _group(t.detach().float()).permute(2, 1, 0).contiguous()
        for t in (output.boxes_xyxy[image], output.points_xy)
    )
    return _Tiles(_group(logits), column, sides, points)


def _group(values: Tensor) -> Tensor:
    """Groups slots into tiles: [P, ...] -> [T, TILE, ...]. Repeats the last slot to fill the last
    tile."""
    if padding := -len(values) % TILE:
        values = torch.cat([values, values[-1:].expand(padding, -1)])
    return values.unflatten(0, (-1, TILE))


def _lower_bound(cost: MatchingCost, tiles: _Tiles, target: Target, whwh: Tensor) -> Tensor | None:
    """A lower bound on the cost of all slots of a tile: [N, T].

    None if a value is not finite, or so large that a cost may overflow.
    """
    w, gt = cost.weights, target.gt_xyxy
    low, high = tiles.sides.amin(dim=1), tiles.sides.amax(dim=1)  # [4, T]
    logits = tiles.logits.amax(dim=1)  # [T, U]
    if (
        not ((low > -MAX_COORDINATE) & (high < MAX_COORDINATE)).all()
        or not (logits < torch.inf).all()
    ):
        return None
    bound = torch.zeros(len(gt), tiles.sides.shape[2])
    if w.cls:
        bound += w.cls * cost.class_cost(logits).t()[tiles.column]
    if w.l1:
        sides = normalized_coordinates(tiles.sides.movedim(0, -1), whwh, cost.l1_format)
        bound += w.l1 * _min_distance(sides, normalized_coordinates(gt, whwh, cost.l1_format))
    if w.iou or w.giou:
        iou, giou = _max_iou_and_giou(low, high, gt)
        bound += w.iou * (1 - iou) + w.giou * (1 - giou)
    if w.center:
        points = [xy / unit for xy, unit in zip(tiles.points, whwh, strict=False)]
        bound += w.center * _min_distance(points, normalized_coordinates(gt, whwh, "cxcywh")[:2])
    return bound - ROUNDING * (1 + bound.abs()).clamp_(max=MAX_COORDINATE)


def _min_distance(slots: Sequence[Tensor], objects: Sequence[Tensor]) -> Tensor:
    """The lowest L1 distance possible in the ranges of each tile's coordinates: [TILE, T] each, [N]
    each -> [N, T]."""
    total = torch.zeros(())
    for slot, gt in zip(slots, objects, strict=True):
        low, high = slot.amin(dim=0), slot.amax(dim=0)
        total = total + torch.maximum(low - gt[:, None], gt[:, None] - high).clamp_(min=0)
    return total


def _max_iou_and_giou(low: Tensor, high: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """Upper bounds on IoU and GIoU, given the ranges [4, T] of the four sides and gt [N, 4]
    -> [N, T], [N, T]."""
    (x1, y1, x2, y2), (x1_max, y1_max, x2_max, y2_max) = low, high
    left, top, right, bottom = gt.t()[..., None]
    overlap_w = torch.minimum(x2_max, right) - torch.maximum(x1, left)
    overlap_h = torch.minimum(y2_max, bottom) - torch.maximum(y1, top)
    overlap = overlap_w.clamp_(min=0) * overlap_h.clamp_(min=0)
    min_area = (x2 - x1_max).clamp(min=0) * (y2 - y1_max).clamp(min=0)
    max_area = (x2_max - x1) * (y2_max - y1)
    area = (right - left) * (bottom - top)
    iou = overlap / torch.maximum(min_area, area).maximum(min_area + area - overlap)
    hull_w = torch.maximum(x2, right) - torch.minimum(x1_max, left)
    hull_h = torch.maximum(y2, bottom) - torch.minimum(y1_max, top)
    return iou, iou - 1 + ((max_area + area) / (hull_w * hull_h)).clamp_(max=1)


def _has_bounds(cost: MatchingCost) -> bool:
    """Whether `_lower_bound` holds: for non-negative weights and a class cost that decreases with
    the logit, but not with user-defined terms, which can be anything."""
    decreasing = cost.cls_form == "cross_entropy" or (0 <= cost.alpha <= 1 and cost.gamma >= 0)
    return decreasing and not cost.own and all(w >= 0 for w in vars(cost.weights).values())
