"""The cheapest slots against the minima of the whole cost matrix: equal indices, ties included.

Run: pytest tests/test_tiled_argmin.py
"""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from onenet.assigners import hungarian, min_cost
from onenet.boxes import grid_points
from onenet.costs import CostWeights, MatchingCost
from onenet.ops import tiled_argmin
from onenet.ops.tiled_argmin import (
    _evaluate_image,
    _has_bounds,
    _lower_bounds,
    cheapest_slots,
)
from onenet.structures import HeadOutput, Target
from tests.conftest import assign, make_target, random_boxes, random_output, random_target, seeded

COSTS = {
    "the paper's": MatchingCost(),
    "location only": MatchingCost(CostWeights(cls=0)),
    "class only": MatchingCost(CostWeights(l1=0, giou=0)),
    "algorithm 1": MatchingCost(CostWeights(1, 1, 0, 0, 0), cls_form="cross_entropy"),
    "grid points": MatchingCost(CostWeights(cls=0, l1=0, giou=0, center=10)),
    "IoU only": MatchingCost(CostWeights(cls=0, l1=0, iou=1, giou=0)),
    "corners": MatchingCost(l1_format="xyxy"),
    "all at once": MatchingCost(CostWeights(1.7, 3.1, 0.6, 2.3, 4.9), gamma=1.5, alpha=0.6),
    "a reward": MatchingCost(CostWeights(cls=2, l1=-1, giou=2)),  # without a lower bound
}
WAYS = {"all at once": 1 << 60, "a few at a time": 1 << 60, "search": -1, "all in cache": -1}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Forces one way of search, whatever the number of pairs."""
    monkeypatch.setattr(tiled_argmin, "FEW_PAIRS", WAYS[request.param])
    if request.param == "a few at a time":
        monkeypatch.setattr(tiled_argmin, "PAIRS_IN_MEMORY", 1)
    if request.param in ("search", "all in cache"):
        monkeypatch.setattr(tiled_argmin, "PAIRS_IN_CACHE", 3 * tiled_argmin.TILE)
        limit = 0 if request.param == "all in cache" else 2  # fraction of the tiles
        monkeypatch.setattr(tiled_argmin, "MANY_TILES", min(limit, 0.04))
        monkeypatch.setattr(tiled_argmin, "TOO_MANY_TILES", limit)
        monkeypatch.setattr(tiled_argmin, "NEARLY_ALL_TILES", limit)


def equals_the_whole_cost(cost: MatchingCost, output: HeadOutput, targets: list[Target]) -> None:
    counts = [len(target.gt_labels) for target in targets]
    results = zip(
        *(part.split(counts) for part in cheapest_slots(cost, output, targets)), strict=True
    )
    for image, (lowest, pred_idx) in enumerate(results):
        expected = cost(output, image, targets[image]).min(dim=0)
        assert torch.equal(pred_idx, expected.indices)
        assert torch.equal(lowest, expected.values)


def on_a_grid(images: int, generator: torch.Generator, grid_hw=(24, 40)) -> HeadOutput:
    """Boxes around their points, like a network's."""
    points = grid_points(*grid_hw, 4)
    sides = 20 * torch.rand(images, len(points), 4, generator=generator)
    boxes = torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=-1)
    return HeadOutput(torch.randn(images, len(points), 7, generator=generator) - 3, boxes, points)


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("counts", [(5, 0, 12), (0,), (0, 0), (1,), (40,)])
def test_equals_the_column_minima_of_the_whole_cost(name, counts, way):
    generator = seeded(len(counts))
    output = on_a_grid(len(counts), generator)
    sizes = [(96, 160), (64, 150), (90, 33)]
    targets = [random_target(n, 7, sizes[i], generator, i) for i, n in enumerate(counts)]
    equals_the_whole_cost(COSTS[name], output, targets)


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 15), (3, 5), (1, 17), (5, 29)])
def test_maps_of_odd_sizes(name, grid_hw, way):
    output = random_output(2, 4, seeded(), grid_hw)
    targets = [random_target(n, 4, (40, 60), seeded(n), n) for n in (3, 20)]
    equals_the_whole_cost(COSTS[name], output, targets)


@pytest.mark.parametrize("name", COSTS)
def test_the_first_of_equal_slots_wins(name, way):
    """A few predictions, repeated in random order, in a multiple of the tile size."""
    few = on_a_grid(1, seeded(), (2, 3))
    which = torch.randint(6, (8 * tiled_argmin.TILE,), generator=seeded(1))
    output = HeadOutput(few.class_logits[:, which], few.boxes_xyxy[:, which], few.points_xy[which])
    target = random_target(9, 7, (24, 40), seeded(2))
    equals_the_whole_cost(COSTS[name], output, [target])
    same = torch.zeros_like(which)
    output = HeadOutput(few.class_logits[:, same], few.boxes_xyxy[:, same], few.points_xy[same])
    assert cheapest_slots(COSTS[name], output, [target])[1].tolist() == [0] * 9


@pytest.mark.parametrize("name", ["the paper's", "location only", "all at once"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: o.class_logits.mul_(40),  # saturated
        lambda o: o.class_logits.fill_(-4.6),
        lambda o: o.boxes_xyxy.mul_(1e4),  # far outside
        lambda o: o.boxes_xyxy.copy_(o.points_xy.repeat(1, 2).expand_as(o.boxes_xyxy)),  # no area
        lambda o: o.class_logits[:, 700, :].fill_(30),  # one slot wins over any distance
        lambda o: o.boxes_xyxy.copy_(o.boxes_xyxy[:, torch.randperm(960, generator=seeded())]),
        lambda o: o.boxes_xyxy[:, 1:].copy_(o.boxes_xyxy[:, :1].expand(-1, 959, -1)),
    ],
)
def test_predictions_that_are_hard_to_bound(name, spoil, way):
    output = on_a_grid(2, seeded(3))
    spoil(output)
    targets = [random_target(8, 7, (96, 160), seeded(i), i) for i in range(2)]
    equals_the_whole_cost(COSTS[name], output, targets)


def test_near_copies_of_an_object(way):
    box = random_boxes(1, (96, 160), seeded())
    target = make_target([3] * 50, box + 1e-4 * torch.arange(50)[:, None], (96, 160))
    equals_the_whole_cost(MatchingCost(), on_a_grid(1, seeded()), [target])


def test_memory_orders_and_half_precision(way):
    output = on_a_grid(2, seeded())
    targets = [random_target(6, 7, (96, 160), seeded(i), i) for i in range(2)]
    logits = output.class_logits.transpose(1, 2).contiguous().transpose(1, 2)
    boxes = output.boxes_xyxy.transpose(1, 2).contiguous().transpose(1, 2)
    for changed in (
        replace(output, class_logits=logits, boxes_xyxy=boxes),
        replace(output, class_logits=output.class_logits.bfloat16(), boxes_xyxy=boxes.bfloat16()),
    ):
        equals_the_whole_cost(MatchingCost(), changed, targets)


def test_the_search_looks_at_a_fraction_of_the_pairs(monkeypatch):
    monkeypatch.setattr(tiled_argmin, "FEW_PAIRS", -1)
    costs = []
    original = MatchingCost.of
    monkeypatch.setattr(
        MatchingCost, "of", lambda *arguments: costs.append(original(*arguments)) or costs[-1]
    )
    output = on_a_grid(1, seeded(), (64, 64))
    cheapest_slots(MatchingCost(), output, [random_target(5, 7, (256, 256), seeded())])
    assert sum(cost.numel() for cost in costs) < 0.3 * 5 * 64 * 64


@pytest.mark.parametrize("name", [name for name, cost in COSTS.items() if _has_bounds(cost)])
@pytest.mark.parametrize("scale", [0.01, 1, 10, 100])  # 100: logits are outside the table
def test_no_slot_costs_less_than_the_bound_of_its_tile(name, scale):
    cost, output = COSTS[name], on_a_grid(2, seeded())
    targets = [random_target(n, 7, (96, 160), seeded(n), n) for n in (6, 11)]
    output.class_logits.mul_(scale)
    output.class_logits[0, ::3] = output.class_logits[0, ::3].round()  # entries of the table
    bounds = _lower_bounds(cost, output, targets).split([6, 11])
    for image, bound in enumerate(bounds):
        costs = cost(output, image, targets[image]).unflatten(0, (-1, tiled_argmin.TILE))
        assert (bound <= costs.amin(dim=1).t()).all()


def test_objects_with_many_tiles_are_compared_with_all_slots(monkeypatch):
    """Others of their image and batch are not. Away from the first object, all slots of the second
    image are equally far from the objects of class 3."""
    output = on_a_grid(2, seeded(), (64, 64))
    output.boxes_xyxy[1] = torch.tensor([9.0, 9, 30, 30])
    output.class_logits[1] = -4
    output.class_logits[1, 700:720, 2] = 3
    box = torch.tensor([[9.0, 9, 30, 31]])
    far = torch.tensor([[190.0, 200, 220, 240]])
    targets = [
        random_target(9, 7, (256, 256), seeded()),
        make_target([3, 2, 3], torch.cat([far, box, far]), (256, 256)),
    ]
    compared = []

    def evaluate_image(cost, output, image, target, gt):
        compared.append((image, gt.tolist()))
        return _evaluate_image(cost, output, image, target, gt)

    monkeypatch.setattr(tiled_argmin, "FEW_PAIRS", -1)
    monkeypatch.setattr(tiled_argmin, "_evaluate_image", evaluate_image)
    equals_the_whole_cost(MatchingCost(), output, targets)
    assert compared == [(1, [0, 2])]


# --- from slots to matches ---


@pytest.mark.parametrize("conflict", ["keep", "drop", "next_best"])
def test_each_image_of_a_batch_is_matched_by_its_own_costs(conflict, way):
    output = random_output(3, 4, seeded())
    targets = [random_target(n, 4, (40, 60), seeded(n), n) for n in (9, 0, 4)]  # of 15 slots
    cost, conflicts = MatchingCost(), 0
    matches = min_cost(cost, output, targets, conflict)
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        expected = assign(min_cost, cost(output, image, target), conflict=conflict)
        assert all(
            torch.equal(a, b)
            for a, b in zip(vars(match).values(), vars(expected).values(), strict=True)
        )
        conflicts += int(match.conflicts)
    assert conflicts


def test_hungarian_gets_the_costs_of_each_image():
    output = random_output(2, 4, seeded())
    targets = [random_target(n, 4, (40, 60), seeded(n), n) for n in (6, 0)]
    matches = hungarian(MatchingCost(), output, targets)
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        expected = assign(hungarian, MatchingCost()(output, image, target))
        assert torch.equal(match.pred_idx, expected.pred_idx)


# --- values that are not finite ---

NOT_FINITE = [torch.nan, torch.inf, -torch.inf]
assigners = pytest.mark.parametrize("assigner", [min_cost, hungarian])


def two_images() -> tuple[HeadOutput, list[Target]]:
    """Slot 77 is far from every object; the tests spoil it in the second image."""
    output = on_a_grid(2, seeded())
    targets = [random_target(3, 5, (96, 160), seeded(i), 40 + i) for i in range(2)]
    return output, targets


@assigners
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_box_that_is_not_finite_is_named(assigner, value, way):
    output, targets = two_images()
    output.boxes_xyxy[1, 77] = value
    with pytest.raises(FloatingPointError, match="'l1' is not finite for object 0 of image 41"):
        assigner(MatchingCost(), output, targets)


@assigners
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_logit_of_an_objects_class_that_is_not_finite_is_named(assigner, value, way):
    output, targets = two_images()
    output.class_logits[1, 77, targets[1].gt_labels[2]] = value
    with pytest.raises(FloatingPointError, match="'cls' is not finite for object . of image 41"):
        assigner(MatchingCost(), output, targets)


@assigners
def test_a_logit_of_minus_infinity_is_a_negative(assigner, way):
    output, targets = two_images()
    before = assigner(MatchingCost(), output, targets)
    output.class_logits[1, 77, targets[1].gt_labels] = -torch.inf
    assert 77 not in before[1].pred_idx
    for match, expected in zip(assigner(MatchingCost(), output, targets), before, strict=True):
        assert torch.equal(match.pred_idx, expected.pred_idx)


def test_without_weight_on_positives_minus_infinity_costs_nan(way):
    """0 times infinity; the slot is the whole matrix's, too."""
    cost = MatchingCost(alpha=0.0)
    output, targets = two_images()
    output.class_logits[1, 77] = -torch.inf
    _, pred_idx = cheapest_slots(cost, output, targets)
    expected = [cost(output, image, target).min(dim=0).indices
                for image, target in enumerate(targets)]  # fmt: skip
    assert torch.equal(pred_idx, torch.cat(expected))
    assert (expected[1] == 77).all()


@assigners
def test_an_object_without_any_possible_slot_is_an_error(assigner, way):
    output, targets = two_images()
    output.class_logits[1, :, targets[1].gt_labels] = -torch.inf
    with pytest.raises(FloatingPointError, match="an object of image 41 has no slot"):
        assigner(MatchingCost(), output, targets)


@assigners
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_logit_of_another_class_has_no_cost(assigner, value, way):
    output, targets = two_images()
    before = assigner(MatchingCost(), output, targets)
    output.class_logits[1, 77, 5:] = value  # the objects have classes 0 to 4
    for match, expected in zip(assigner(MatchingCost(), output, targets), before, strict=True):
        assert torch.equal(match.pred_idx, expected.pred_idx)


@assigners
def test_what_has_no_part_in_the_cost_may_be_anything(assigner, way):
    output, targets = two_images()
    output.boxes_xyxy[1, 77] = torch.nan
    cost = MatchingCost(CostWeights(l1=0, giou=0, center=5))
    before = assigner(cost, two_images()[0], targets)
    for match, expected in zip(assigner(cost, output, targets), before, strict=True):
        assert torch.equal(match.pred_idx, expected.pred_idx)


@assigners
def test_a_box_so_large_that_a_cost_overflows_is_named(assigner, way):
    output, targets = two_images()
    output.boxes_xyxy[1, 77] = torch.tensor([-3e38, 0, 3e38, 9])
    with pytest.raises(FloatingPointError, match="is not finite for object 0 of image 41"):
        assigner(MatchingCost(), output, targets)


# --- Hungarian ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(3, 0, 5), (15, 1, 2), (20, 4, 0)])  # of 15 slots
def test_hungarian_equals_scipy_on_all_slots(seed, counts):
    output = random_output(3, 4, seeded(seed))
    targets = [random_target(n, 4, (40, 60), seeded(n + seed), n) for n in counts]
    matches = hungarian(MatchingCost(), output, targets)
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        cost = MatchingCost()(output, image, target)
        slots, objects = linear_sum_assignment(cost.numpy())
        order = objects.argsort()
        assert match.gt_idx.tolist() == objects[order].tolist()
        assert match.pred_idx.tolist() == slots[order].tolist()
        cheapest = cost.min(dim=0).indices if len(target.gt_labels) else torch.zeros(0)
        assert match.conflicts == len(target.gt_labels) - len(cheapest.unique())


def test_hungarian_asks_scipy_only_where_objects_collide(monkeypatch):
    output, targets = two_images()

    def no_scipy(_):
        raise AssertionError

    monkeypatch.setattr("scipy.optimize.linear_sum_assignment", no_scipy)
    hungarian(MatchingCost(), output, targets)
    twice = [replace(t, gt_xyxy=t.gt_xyxy[:1].expand(3, 4)) for t in targets]
    with pytest.raises(AssertionError):
        hungarian(MatchingCost(CostWeights(cls=0)), output, twice)
