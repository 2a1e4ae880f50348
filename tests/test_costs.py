"""Each term of the matching cost against scalar Python loops, and extreme inputs.

Run: pytest tests/test_costs.py
"""

import math

import pytest
import torch
from torch import nan

from onenet.costs import (
    CostWeights,
    MatchingCost,
    all_pairs,
    center_cost,
    cross_entropy_cost,
    focal_cost,
    giou_cost,
    iou_cost,
    l1_cost,
)
from onenet.structures import HeadOutput, Target
from tests.conftest import make_target, random_output, random_target, seeded
from tests.test_boxes import scalar_iou_and_giou

SIZE = (40, 60)  # not square, to catch swapped sides


# --- scalar reference: one slot, one object ---


def log_one_plus_exp(x: float) -> float:
    return max(x, 0.0) + math.log(1 + math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def scalar_focal(logit: float, alpha: float, gamma: float) -> float:
    p, not_p = sigmoid(logit), sigmoid(-logit)
    minus_log_p, minus_log_not_p = log_one_plus_exp(-logit), log_one_plus_exp(logit)
    return alpha * not_p**gamma * minus_log_p - (1 - alpha) * p**gamma * minus_log_not_p


def scalar_l1(box: list[float], gt: list[float], size_hw, l1_format: str) -> float:
    height, width = size_hw
    if l1_format == "xyxy":
        units = (width, height, width, height)
        return sum(abs(a - b) / unit for a, b, unit in zip(box, gt, units, strict=True))
    centre_x = abs((box[0] + box[2]) / 2 - (gt[0] + gt[2]) / 2) / width
    centre_y = abs((box[1] + box[3]) / 2 - (gt[1] + gt[3]) / 2) / height
    side_x = abs((box[2] - box[0]) - (gt[2] - gt[0])) / width
    side_y = abs((box[3] - box[1]) - (gt[3] - gt[1])) / height
    return centre_x + centre_y + side_x + side_y


def scalar_centre(point: list[float], gt: list[float], size_hw) -> float:
    height, width = size_hw
    distance_x = abs(point[0] - (gt[0] + gt[2]) / 2) / width
    return distance_x + abs(point[1] - (gt[1] + gt[3]) / 2) / height


def scalar_cost(cost: MatchingCost, output: HeadOutput, image: int, target: Target):
    """The weighted sum of the terms, [P, N] as nested lists."""
    rows = []
    for slot in range(output.class_logits.shape[1]):
        logits = output.class_logits[image, slot].tolist()
        box, point = output.boxes_xyxy[image, slot].tolist(), output.points_xy[slot].tolist()
        row = []
        for label, gt in zip(target.gt_labels.tolist(), target.gt_xyxy.tolist(), strict=True):
            iou, giou = scalar_iou_and_giou(box, gt)
            classification = scalar_focal(logits[label], cost.alpha, cost.gamma)
            if cost.cls_form == "cross_entropy":
                classification = log_one_plus_exp(-logits[label])
            row.append(
                cost.weights.cls * classification
                + cost.weights.l1 * scalar_l1(box, gt, target.size_hw, cost.l1_format)
                + cost.weights.iou * (1 - iou)
                + cost.weights.giou * (1 - giou)
                + cost.weights.center * scalar_centre(point, gt, target.size_hw)
            )
        rows.append(row)
    return rows


def weights(**on: float) -> CostWeights:
    return CostWeights(**({"cls": 0.0, "l1": 0.0, "iou": 0.0, "giou": 0.0, "center": 0.0} | on))


def assert_equals_the_loops(cost, output, target, image=0, rtol=1e-4, atol=1e-5):
    expected = torch.tensor(scalar_cost(cost, output, image, target))
    torch.testing.assert_close(cost(output, image, target), expected, rtol=rtol, atol=atol)


COSTS = {
    "focal": MatchingCost(weights(cls=1.0)),
    "focal with other parameters": MatchingCost(weights(cls=1.0), alpha=0.6, gamma=1.5),
    "cross-entropy": MatchingCost(weights(cls=1.0), cls_form="cross_entropy"),
    "l1 of centre and size": MatchingCost(weights(l1=1.0)),
    "l1 of corners": MatchingCost(weights(l1=1.0), l1_format="xyxy"),
    "iou": MatchingCost(weights(iou=1.0)),
    "giou": MatchingCost(weights(giou=1.0)),
    "centre": MatchingCost(weights(center=1.0)),
    "the paper's": MatchingCost(),
    "all at once": MatchingCost(CostWeights(cls=1.7, l1=3.1, iou=0.6, giou=2.3, center=4.9)),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("objects", [1, 2, 7])
def test_cost_equals_scalar_loops(name, objects):
    generator = seeded(objects)
    output = random_output(2, 4, generator)
    target = random_target(objects, 4, SIZE, generator)
    assert_equals_the_loops(COSTS[name], output, target, image=1)


def test_default_weights_are_the_papers():
    assert CostWeights() == CostWeights(cls=2, l1=5, iou=0, giou=2, center=0)


@pytest.mark.parametrize("name", COSTS)
def test_an_image_without_objects_has_an_empty_cost(name):
    cost = COSTS[name](random_output(1, 4, seeded()), 0, make_target([], []))
    assert cost.shape == (15, 0)


def test_terms_by_hand():
    assert focal_cost(torch.tensor(0.0)).item() == pytest.approx((0.25 - 0.75) * 0.25 * math.log(2))
    # Confident in the right class: the cost is minus its loss as a negative.
    assert focal_cost(torch.tensor(100.0)).item() == pytest.approx(-0.75 * 100)
    assert cross_entropy_cost(torch.tensor(0.0)).item() == pytest.approx(math.log(2))
    box, gt = torch.tensor([0.0, 0, 20, 10]), torch.tensor([10.0, 0, 20, 20])
    whwh = torch.tensor([100.0, 50, 100, 50])
    # Centre off by 5 of 100 and 5 of 50, size by 10 of 100 and 10 of 50.
    assert l1_cost(box, gt, whwh).item() == pytest.approx(0.05 + 0.1 + 0.1 + 0.2)
    assert l1_cost(box, gt, whwh, "xyxy").item() == pytest.approx(0.1 + 0.2)
    assert iou_cost(box, gt).item() == pytest.approx(1 - 100 / 300)
    assert giou_cost(box, gt).item() == pytest.approx(1 - 100 / 300 + 100 / 400)
    assert center_cost(torch.tensor([5.0, 40]), gt, whwh).item() == pytest.approx(0.1 + 0.6)


@pytest.mark.parametrize("logit", [-200.0, -60.0, 60.0, 200.0])
@pytest.mark.parametrize("name", ["focal", "cross-entropy", "the paper's"])
def test_saturated_logits(name, logit):
    output = random_output(1, 3, seeded())
    output.class_logits[0, ::2] = logit
    output.class_logits[0, 1] = -logit
    target = random_target(4, 3, SIZE, seeded(1))
    cost = COSTS[name](output, 0, target)
    assert torch.isfinite(cost).all()
    assert_equals_the_loops(COSTS[name], output, target)


def hard_boxes() -> tuple[HeadOutput, Target]:
    """Boxes without area, coincident, identical or nearly identical to an object."""
    gt = [[10.0, 10, 20, 30], [10, 10, 20, 30], [10.001, 10, 20, 30], [15, 15, 15.001, 15.001]]
    boxes = [
        [15.0, 15, 15, 15],
        [10, 10, 10, 30],
        [10, 10, 20, 30],
        [10, 10, 20.001, 30],
        [0, 0, 60, 40],
        [-500, -400, 900, 700],
        [15, 15, 15.001, 15.001],
    ]
    boxes = torch.tensor([boxes])
    output = HeadOutput(torch.zeros(1, 7, 2), boxes, torch.zeros(7, 2))
    return output, make_target([0, 1, 0, 0], gt)


@pytest.mark.parametrize("name", COSTS)
def test_flat_identical_and_nearly_identical_boxes(name):
    output, target = hard_boxes()
    assert torch.isfinite(COSTS[name](output, 0, target)).all()
    assert_equals_the_loops(COSTS[name], output, target, atol=2e-4)


def test_a_slot_that_equals_the_object_has_no_location_cost():
    output, target = hard_boxes()
    for name in ("l1 of centre and size", "l1 of corners", "iou", "giou"):
        cost = COSTS[name](output, 0, target)
        assert cost[2, 0].item() == pytest.approx(0, abs=1e-6)
        assert cost[:2, 0].min() > 0.1


@pytest.mark.parametrize("name", COSTS)
def test_large_coordinates(name):
    generator = seeded(3)
    size_hw = (30_000, 70_000)
    points = 60_000 * torch.rand(6, 2, generator=generator)
    low = 1e5 * torch.rand(1, 6, 2, generator=generator)
    boxes = torch.cat([low, low + 1e4 + 5e4 * torch.rand(1, 6, 2, generator=generator)], dim=2)
    output = HeadOutput(torch.randn(1, 6, 2, generator=generator), boxes, points)
    target = random_target(3, 2, size_hw, generator)
    assert_equals_the_loops(COSTS[name], output, target, rtol=1e-3, atol=1e-4)


# --- disabled terms are not computed ---


@pytest.mark.parametrize(
    ("on", "spoilt"),
    [
        ("cls", ("boxes", "points")),
        ("l1", ("logits", "points")),
        ("iou", ("logits", "points")),
        ("giou", ("logits", "points")),
        ("center", ("logits", "boxes")),
    ],
)
def test_a_term_with_weight_zero_is_not_computed(on, spoilt):
    whole = random_output(1, 3, seeded())
    broken = HeadOutput(
        whole.class_logits * (nan if "logits" in spoilt else 1),
        whole.boxes_xyxy * (nan if "boxes" in spoilt else 1),
        whole.points_xy * (nan if "points" in spoilt else 1),
    )
    target = random_target(4, 3, SIZE, seeded(1))
    cost = MatchingCost(weights(**{on: 1.5}))
    assert [name for name, _, _ in cost.terms(all_pairs(whole, 0, target))] == [on]
    assert torch.equal(cost(broken, 0, target), cost(whole, 0, target))


# --- costs that are not finite ---


def test_a_cost_that_is_not_finite_names_image_object_and_term():
    boxes = [[1, 1, 9, 9], [5, 5, 30, 30], [2, 2, 8, 8], [3, 3, 7, 7]]
    target = make_target([0, 2, 1, 2], boxes, image_id=4711)  # the first bad one is named
    output = random_output(1, 3, seeded())
    output.class_logits[0, 3:5, 2] = nan
    with pytest.raises(FloatingPointError, match=r"'cls'.* object 1 of image 4711 at 2 of 15"):
        MatchingCost()(output, 0, target)


@pytest.mark.parametrize("term", ["l1", "iou", "giou"])
@pytest.mark.parametrize("value", [nan, math.inf, -math.inf])
def test_boxes_that_are_not_finite_are_named_by_term(term, value):
    output = random_output(1, 3, seeded())
    output.boxes_xyxy[0, 7] = value
    target = make_target([0], [[1, 1, 9, 9]], image_id=12)
    with pytest.raises(FloatingPointError, match=f"'{term}'.* object 0 of image 12"):
        MatchingCost(weights(cls=1.0, **{term: 1.0}))(output, 0, target)


def test_a_sum_that_overflows_is_an_error_too():
    cost = MatchingCost(weights(l1=3e38, giou=3e38))
    with pytest.raises(FloatingPointError, match="overflows in image 5"):
        cost(random_output(1, 3, seeded()), 0, make_target([0], [[1, 1, 9, 9]], image_id=5))


# --- precision and gradient ---


def test_the_cost_has_no_gradient_and_leaves_its_inputs_alone():
    output = random_output(1, 3, seeded())
    for tensor in (output.class_logits, output.boxes_xyxy):
        tensor.requires_grad_()
    before = [tensor.clone() for tensor in (output.class_logits, output.boxes_xyxy)]
    target = random_target(4, 3, SIZE, seeded(1))
    gt = target.gt_xyxy.clone()
    assert not COSTS["all at once"](output, 0, target).requires_grad
    assert torch.equal(output.class_logits, before[0])
    assert torch.equal(output.boxes_xyxy, before[1])
    assert torch.equal(target.gt_xyxy, gt)


@pytest.mark.parametrize("name", COSTS)
def test_half_precision_predictions_are_compared_in_float32(name):
    whole = random_output(1, 3, seeded())
    half = HeadOutput(whole.class_logits.bfloat16(), whole.boxes_xyxy.bfloat16(), whole.points_xy)
    rounded = HeadOutput(half.class_logits.float(), half.boxes_xyxy.float(), whole.points_xy)
    target = random_target(4, 3, SIZE, seeded(1))
    cost = COSTS[name](half, 0, target)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, COSTS[name](rounded, 0, target))
