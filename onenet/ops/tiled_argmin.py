"""The cheapest slot of every object, without computing every cost.

Equals `cost(output, image, target).min(dim=0)` for every image if all costs are finite: to the last
digit, and with the same choice between equal costs (tests/test_tiled_argmin.py).

B images, P prediction slots, N objects in an image, M objects in the batch. A tile is a group of
TILE consecutive slots; an image has T tiles.

Minimum Cost Assignment only needs the column minima of the cost matrix [P, N]. On a GPU, or if
there are few pairs, the costs of the whole batch are computed as one [M, P], with the logits of the
objects' classes only and without a synchronization. On a CPU with many pairs (COCO: 27,000 slots),
branch and bound finds the minima: the ranges of a tile's predictions give a lower bound on its
costs, and only tiles that may contain an object's minimum are evaluated, those of the whole batch
together. If an object's bounds exclude too few tiles, all slots of its image are evaluated, a few
objects at a time so that the costs stay in the cache. Each pair's cost is always computed by the
same operations as in the full matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from onenet.costs import MatchingCost, Pairs, normalized_coordinates
from onenet.structures import HeadOutput, Target

TILE = 32  # a power of two
FEW_PAIRS = 120_000  # per batch; up to this number, evaluating all pairs is faster
PAIRS_IN_MEMORY = 1 << 24  # per chunk on a GPU
PAIRS_IN_CACHE = 1 << 17  # per chunk on a CPU
MANY_TILES = 0.04  # fraction; if more are left for an object, SAMPLE tiles lower its upper bound
TOO_MANY_TILES = 0.3  # if still more are left, evaluating all slots is faster
NEARLY_ALL_TILES = 0.9  # if more are left for the whole batch, SAMPLE tiles would not help
SAMPLE = 16  # tiles per object
LIMIT, STEPS = 32, 32  # table of class costs: for logits from -LIMIT to LIMIT, 1 / STEPS apart
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
        if _has_bounds(cost):
            return _branch_and_bound(cost, output, targets)
        minima = [_evaluate_image(cost, output, i, target) for i, target in enumerate(targets)]
        lowest, pred_idx = zip(*minima, strict=True)
        return torch.cat(lowest), torch.cat(pred_idx)
    return _evaluate_batch(cost, output, targets)


def _evaluate_batch(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """Compares each of the batch's M objects with all slots of its image: [M], [M]."""
    device, slots = output.boxes_xyxy.device, output.boxes_xyxy.shape[1]
    image, labels, gt, whwh = _objects(targets)
    image, whwh = (t.to(device, non_blocking=True) for t in (image, whwh))
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
        if device.type == "cpu" and not total.sum().isfinite():  # faster than `isfinite().all()`
            for number, target in enumerate(targets):
                cost(output, number, target)  # raises, unless only logits are -inf
        minimum = total.min(dim=1)
        lowest.append(minimum.values)
        pred_idx.append(minimum.indices)
    if not lowest:
        return gt.new_zeros(0), torch.zeros_like(labels)
    return torch.cat(lowest), torch.cat(pred_idx)


def _objects(targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All objects of a batch: the image in 0..B-1 [M], class [M], box [M, 4] and image size whwh
    [M, 4] of each; image and size are on the CPU."""
    counts = torch.tensor([len(target.gt_labels) for target in targets])
    image = torch.arange(len(targets)).repeat_interleave(counts)
    whwh = torch.tensor([2 * t.size_hw[::-1] for t in targets], dtype=torch.float32)[image]
    return (
        image,
        torch.cat([t.gt_labels for t in targets]),
        torch.cat([t.gt_xyxy for t in targets]),
        whwh,
    )


def _branch_and_bound(
    cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """Lowest costs and first slots of the batch, by branch and bound over tiles: [M], [M]."""
    image, *_ = objects = _objects(targets)
    bound = _lower_bounds(cost, output, targets)  # [M, T]
    slots, tiles = output.boxes_xyxy.shape[1], bound.shape[1]
    lowest = torch.full((len(image),), torch.inf)  # of the evaluated tiles: an upper bound
    minima = []  # of each evaluated tile: object, lowest cost, first slot with that cost

    def evaluate(objects_idx: Tensor, tile_idx: Tensor) -> None:
        chunks = (t.split(PAIRS_IN_CACHE // TILE) for t in (objects_idx, tile_idx))
        for gt, tile in zip(*chunks, strict=True):
            slot = (TILE * tile[:, None] + torch.arange(TILE)).clamp_(max=slots - 1)  # [S, TILE]
            minimum, first = cost.of(_pairs(output, objects, gt, slot)).min(dim=1)
            minima.append((gt, minimum, slot.gather(1, first[:, None])[:, 0]))
            lowest.scatter_reduce_(0, gt, minimum, "amin")
        bound[objects_idx, tile_idx] = torch.inf  # need not be evaluated again

    least, tile = bound.min(dim=1)
    everywhere = least.isnan()  # [M] objects to compare with all slots
    gt = (~everywhere).nonzero()[:, 0]
    evaluate(gt, tile[gt])
    candidates = bound <= lowest[:, None]  # [M, T]
    gt = (candidates.sum(dim=1) > MANY_TILES * tiles).nonzero()[:, 0]
    if candidates.sum() > NEARLY_ALL_TILES * candidates.numel():
        everywhere[:] = True
    elif len(gt):
        sample = bound[gt].topk(min(SAMPLE, tiles), dim=1, largest=False).indices
        evaluate(gt.repeat_interleave(sample.shape[1]), sample.flatten())
        candidates = bound <= lowest[:, None]
        everywhere |= candidates.sum(dim=1) > TOO_MANY_TILES * tiles
    evaluate(*(candidates & ~everywhere[:, None]).nonzero(as_tuple=True))
    gt, minimum, slot = (torch.cat(part) for part in zip(*minima, strict=True))
    equal = minimum == lowest[gt]
    first = torch.full_like(image, slots).scatter_reduce_(0, gt[equal], slot[equal], "amin")
    for i in image[everywhere].unique().tolist():
        gt = everywhere & (image == i)
        numbers = everywhere[image == i].nonzero()[:, 0]
        lowest[gt], first[gt] = _evaluate_image(cost, output, i, targets[i], numbers)
    return lowest, first


def _pairs(output: HeadOutput, objects: tuple[Tensor, ...], gt: Tensor, slot: Tensor) -> Pairs:
    """The object `gt[s]` of the batch, paired with the slots `slot[s]` of its image: [S],
    [S, TILE] -> [S, TILE]."""
    image, labels, gt_xyxy, whwh = (t[gt, None] for t in objects)
    boxes = output.boxes_xyxy.detach()[image, slot].float()
    return Pairs(
        logits=output.class_logits.detach()[image, slot, labels].float(),
        boxes_xyxy=boxes.permute(2, 0, 1).contiguous().movedim(0, -1),
        points_xy=output.points_xy[slot],
        gt_xyxy=gt_xyxy,
        whwh=whwh,
    )


def _evaluate_image(
    cost: MatchingCost, output: HeadOutput, image: int, target: Target, gt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compares a few objects of one image at a time with all slots: [N], [N].

    The class cost is computed once per class. `gt` [N]: only these objects of the image.
    """
    gt = torch.arange(len(target.gt_labels)) if gt is None else gt
    height, width = target.size_hw
    labels, column = target.gt_labels[gt].unique(return_inverse=True)
    logits = _logits_of(labels, output, image).float().t().contiguous()
    class_cost = cost.class_cost(logits) if cost.weights.cls else None
    sides, points = (
        t.detach().float().t().contiguous().t()[None]  # each coordinate contiguous
        for t in (output.boxes_xyxy[image], output.points_xy)
    )
    minima = []
    for chunk in torch.arange(len(column)).split(max(1, PAIRS_IN_CACHE // logits.shape[1])):
        pairs = Pairs(
            logits=logits.index_select(0, column[chunk]),
            boxes_xyxy=sides,
            points_xy=points,
            gt_xyxy=target.gt_xyxy[gt[chunk], None],
            whwh=sides.new_tensor([width, height, width, height]),
        )
        chunk_cost = None if class_cost is None else class_cost.index_select(0, column[chunk])
        total = cost.of(pairs, chunk_cost)
        if not total.sum().isfinite():  # much faster than `isfinite().all()`
            cost(output, image, target)  # raises, unless only logits are -inf
        minima.append(total.min(dim=1))
    if not minima:
        return sides.new_zeros(0), torch.zeros_like(column)
    return tuple(torch.cat(part) for part in zip(*minima, strict=True))


def _logits_of(labels: Tensor, output: HeadOutput, image: int) -> Tensor:
    """The logits of U classes at all slots of an image, in the memory order of the predictions:
    [P, U]."""
    logits = output.class_logits[image].detach()
    if logits.stride(0) == 1:  # the slots of a class are next to each other
        return logits.t().index_select(0, labels).t()
    return logits.index_select(1, labels)


def _group(values: Tensor) -> Tensor:
    """Groups slots into tiles: [P, C] -> [T, TILE, C]. Repeats the last slot to fill the last
    tile."""
    if padding := -len(values) % TILE:
        values = torch.cat([values, values[-1:].expand(padding, -1)])
    return values.unflatten(0, (-1, TILE))


def _lower_bounds(cost: MatchingCost, output: HeadOutput, targets: Sequence[Target]) -> Tensor:
    """A lower bound on the cost of all slots of a tile, for all images: [M, T]."""
    class_costs = cost.class_cost(torch.arange(-LIMIT * STEPS, LIMIT * STEPS + 1) / STEPS)
    class_costs[-1] = -torch.inf  # also of all logits above LIMIT
    return torch.cat(
        [
            _lower_bound(cost, class_costs, output, image, target)
            for image, target in enumerate(targets)
        ]
    )


def _lower_bound(
    cost: MatchingCost, class_costs: Tensor, output: HeadOutput, image: int, target: Target
) -> Tensor:
    """A lower bound on the cost of all slots of a tile, for one image: [N, T].

    NaN if a value is not finite, or so large that a cost may overflow. The class cost of a tile's
    highest logit is not computed, but that of the next higher logit in the table `class_costs`.
    """
    w, gt, (height, width) = cost.weights, target.gt_xyxy, target.size_hw
    whwh = torch.tensor([width, height, width, height], dtype=torch.float32)
    sides = _group(output.boxes_xyxy[image].detach().float()).permute(2, 0, 1).contiguous()
    low, high = sides.amin(dim=2), sides.amax(dim=2)  # [4, T]
    labels, column = target.gt_labels.unique(return_inverse=True)
    logits = _highest(_group(_logits_of(labels, output, image))).float().t()  # [U, T]
    if (
        not ((low > -MAX_COORDINATE) & (high < MAX_COORDINATE)).all()
        or not (logits < torch.inf).all()
    ):
        return torch.full((len(gt), low.shape[1]), torch.nan)
    bound = torch.zeros(len(gt), low.shape[1])
    if w.cls:
        index = logits.clamp(-LIMIT, LIMIT).mul_(STEPS).ceil_().add_(LIMIT * STEPS).long()
        bound += (w.cls * class_costs.take(index))[column]
    if w.l1:
        coordinates = normalized_coordinates(sides.movedim(0, -1), whwh, cost.l1_format)
        bound += w.l1 * _min_distance(coordinates, normalized_coordinates(gt, whwh, cost.l1_format))
    if w.iou or w.giou:
        iou, giou = _max_iou_and_giou(low, high, gt)
        bound += w.iou * (1 - iou) + w.giou * (1 - giou)
    if w.center:
        points = _group(output.points_xy).permute(2, 0, 1)
        points = [xy / unit for xy, unit in zip(points, whwh, strict=False)]
        bound += w.center * _min_distance(points, normalized_coordinates(gt, whwh, "cxcywh")[:2])
    return bound - ROUNDING * (1 + bound.abs()).clamp_(max=MAX_COORDINATE)


def _highest(values: Tensor) -> Tensor:
    """The maximum over the slots of each tile: [T, TILE, U] -> [T, U]. Halving the tiles is much
    faster than `amax`, which is not vectorized for a few columns."""
    while values.shape[1] > 1:
        values = torch.maximum(*values.chunk(2, dim=1))
    return values[:, 0]


def _min_distance(slots: Sequence[Tensor], objects: Sequence[Tensor]) -> Tensor:
    """The lowest L1 distance possible in the ranges of each tile's C coordinates: C × [T, TILE],
    C × [N] -> [N, T]."""
    low = torch.stack([slot.amin(dim=1) for slot in slots])[:, None]  # [C, 1, T]
    high = torch.stack([slot.amax(dim=1) for slot in slots])[:, None]
    gt = torch.stack(list(objects))[..., None]  # [C, N, 1]
    return (gt.clamp(low, high) - gt).abs_().sum(dim=0)


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
    the logit (if `alpha` is 0, that of -inf is NaN), but not with user-defined terms."""
    decreasing = cost.cls_form == "cross_entropy" or (0 < cost.alpha <= 1 and cost.gamma >= 0)
    return decreasing and not cost.own and all(w >= 0 for w in vars(cost.weights).values())
