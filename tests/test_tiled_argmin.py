"""The cheapest slots against the minima of the whole cost matrix: the same indices, ties included.

Run: pytest tests/test_tiled_argmin.py
"""

from dataclasses import replace

import pytest
import torch

from onenet.assigners import hungarian, min_cost
from onenet.boxes import grid_points
from onenet.costs import CostWeights, MatchingCost
from onenet.ops import tiled_argmin
from onenet.ops.tiled_argmin import cheapest_slots
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
    "a reward": MatchingCost(CostWeights(cls=2, l1=-1, giou=2)),  # nothing bounds it from below
}
WAYS = {"look at all": 1 << 60, "a few at a time": 1 << 60, "search": -1}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """How the cheapest slots are found, whatever the number of pairs."""
    monkeypatch.setattr(tiled_argmin, "FEW_PAIRS", WAYS[request.param])
    if request.param == "a few at a time":
        monkeypatch.setattr(tiled_argmin, "PAIRS_IN_MEMORY", 1)
    if request.param == "search":
        monkeypatch.setattr(tiled_argmin, "PAIRS_IN_CACHE", 3 * tiled_argmin.TILE)


def equals_the_whole_cost(cost: MatchingCost, output: HeadOutput, targets: list[Target]) -> None:
    counts = [len(target.gt_labels) for target in targets]
    found = zip(
        *(part.split(counts) for part in cheapest_slots(cost, output, targets)), strict=True
    )
    for image, (lowest, pred_idx) in enumerate(found):
        expected = cost(output, image, targets[image]).min(dim=0)
        assert torch.equal(pred_idx, expected.indices)
        assert torch.equal(lowest, expected.values)


def on_a_grid(images: int, generator: torch.Generator, grid_hw=(24, 40)) -> HeadOutput:
    """Boxes that lie around their points, as a network's do."""
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
    """Few different predictions, many times over, in any order; a multiple of the tile."""
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
    seen = []
    of = MatchingCost.of
    monkeypatch.setattr(
        MatchingCost, "of", lambda cost, pairs: seen.append(of(cost, pairs)) or seen[-1]
    )
    output = on_a_grid(1, seeded(), (64, 64))
    cheapest_slots(MatchingCost(), output, [random_target(5, 7, (256, 256), seeded())])
    assert sum(cost.numel() for cost in seen) < 0.3 * 5 * 64 * 64


# --- from slots to matches ---


@pytest.mark.parametrize("conflict", ["keep", "drop", "next_best"])
def test_each_image_of_a_batch_is_matched_by_its_own_costs(conflict, way):
    output = random_output(3, 4, seeded())
    targets = [random_target(n, 4, (40, 60), seeded(n), n) for n in (9, 0, 4)]  # of 15 slots
    cost, found = MatchingCost(), 0
    matches = min_cost(cost, output, targets, conflict)
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        expected = assign(min_cost, cost(output, image, target), conflict=conflict)
        assert all(
            torch.equal(a, b)
            for a, b in zip(vars(match).values(), vars(expected).values(), strict=True)
        )
        found += int(match.conflicts)
    assert found


def test_hungarian_gets_the_costs_of_each_image():
    output = random_output(2, 4, seeded())
    targets = [random_target(n, 4, (40, 60), seeded(n), n) for n in (6, 0)]
    matches = hungarian(MatchingCost(), output, targets)
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        expected = assign(hungarian, MatchingCost()(output, image, target))
        assert torch.equal(match.pred_idx, expected.pred_idx)


@pytest.mark.parametrize("assigner", [min_cost, hungarian])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_cost_that_is_not_finite_is_named(assigner, value, way):
    output = on_a_grid(2, seeded())
    output.boxes_xyxy[1, 77] = value
    targets = [random_target(3, 7, (96, 160), seeded(i), 40 + i) for i in range(2)]
    with pytest.raises(FloatingPointError, match="'l1' is not finite for object 0 of image 41"):
        assigner(MatchingCost(), output, targets)
