"""The training loss against scalar Python loops and torchvision; empty images, saturation, heads.

Run: pytest tests/test_losses.py
"""

from dataclasses import replace

import pytest
import torch
import torchvision

from onenet.assigners import hungarian, make_matcher, min_cost
from onenet.costs import CostWeights, MatchingCost
from onenet.losses import DetectionLoss, LossWeights
from onenet.structures import HeadOutput, Matches
from tests.conftest import assign, make_target, on_each_matrix, random_output, random_target, seeded
from tests.test_boxes import scalar_iou_and_giou
from tests.test_costs import log_one_plus_exp, scalar_l1, sigmoid

SIZE = (40, 60)
PARTS = ("loss_cls", "loss_l1", "loss_giou")


def make_loss(**changes) -> DetectionLoss:
    """`assigner` gets the cost matrix of each image."""
    if "assigner" in changes:
        changes["matcher"] = on_each_matrix(changes.pop("assigner"))
    defaults = {"matching_cost": MatchingCost(), "matcher": make_matcher("min_cost", "keep")}
    return DetectionLoss(**(defaults | changes))


def fixed_matches(*pairs: tuple[int, int], conflicts: int = 0):
    """An assigner that always returns these (slot, object)."""
    slots, objects = zip(*pairs, strict=True)
    return lambda cost: Matches(torch.tensor(slots), torch.tensor(objects), torch.tensor(conflicts))


def learnable(output: HeadOutput) -> HeadOutput:
    return HeadOutput(
        output.class_logits.clone().requires_grad_(),
        output.boxes_xyxy.clone().requires_grad_(),
        output.points_xy,
    )


# --- scalar reference ---


def crowded(point, target, label: int) -> bool:
    x, y = point.tolist()
    regions = zip(target.crowd_labels.tolist(), target.crowd_xyxy.tolist(), strict=True)
    return any(k == label and a <= x <= c and b <= y <= d for k, (a, b, c, d) in regions)


def scalar_loss(loss: DetectionLoss, outputs, targets) -> dict[str, float]:
    """The three parts in scalar loops, given the matches."""
    focal = l1 = giou = 0.0
    for output in outputs:
        for image, target in enumerate(targets):
            positive = set()
            match = loss.match(output, targets)[image]
            if len(target.gt_labels):
                for slot, gt in zip(match.pred_idx.tolist(), match.gt_idx.tolist(), strict=True):
                    positive.add((slot, target.gt_labels[gt].item()))
                    box = output.boxes_xyxy[image, slot].tolist()
                    true = target.gt_xyxy[gt].tolist()
                    l1 += scalar_l1(box, true, target.size_hw, loss.l1_format)
                    giou += 1 - scalar_iou_and_giou(box, true)[1]
            for slot, logits in enumerate(output.class_logits[image].tolist()):
                for label, x in enumerate(logits):
                    if (slot, label) in positive:
                        focal += loss.alpha * sigmoid(-x) ** loss.gamma * log_one_plus_exp(-x)
                    elif not crowded(output.points_xy[slot], target, label):
                        focal += (1 - loss.alpha) * sigmoid(x) ** loss.gamma * log_one_plus_exp(x)
    objects = max(1, sum(len(target.gt_labels) for target in targets))
    w = loss.weights
    sums = (w.cls * focal, w.l1 * l1, w.giou * giou)
    return {name: value / objects for name, value in zip(PARTS, sums, strict=True)}


LOSSES = {
    "the paper's": make_loss(),
    "other weights": make_loss(weights=LossWeights(cls=0.7, l1=1.9, giou=3.3)),
    "other focal parameters": make_loss(alpha=0.6, gamma=1.0),
    "l1 of corners": make_loss(l1_format="xyxy"),
    "hungarian": make_loss(matcher=hungarian),
    "location only": make_loss(matching_cost=MatchingCost(CostWeights(cls=0))),
    "grid points": make_loss(matching_cost=MatchingCost(CostWeights(l1=0, giou=0, center=10))),
    "box loss off": make_loss(weights=LossWeights(cls=1, l1=0, giou=0)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("counts", [(1,), (3, 0, 1), (0, 0), (9, 2)])
@pytest.mark.parametrize("heads", [1, 3])
def test_loss_equals_scalar_loops(name, counts, heads):
    generator = seeded(len(counts))
    outputs = [random_output(len(counts), 4, generator) for _ in range(heads)]
    sizes = [(40, 60), (30, 45), (70, 20)]  # L1 is relative to the size of its image
    targets = [random_target(n, 4, sizes[i], generator, i) for i, n in enumerate(counts)]
    total, parts = LOSSES[name](outputs, targets)
    expected = scalar_loss(LOSSES[name], outputs, targets)
    for part in PARTS:
        assert float(parts[part]) == pytest.approx(expected[part], rel=1e-4, abs=1e-6), part
    assert float(total) == pytest.approx(sum(expected.values()), rel=1e-4)
    assert parts["objects"].item() == heads * sum(counts)


def test_default_weights_are_the_papers():
    assert LossWeights() == LossWeights(cls=2, l1=5, giou=2)


# --- sums and normalisers ---


def test_a_batch_is_the_sum_of_its_images_over_its_number_of_objects():
    generator = seeded(2)
    counts = (3, 0, 1, 2)
    output = random_output(len(counts), 4, generator)
    targets = [random_target(n, 4, SIZE, generator, image_id=i) for i, n in enumerate(counts)]
    total, parts = make_loss()([output], targets)
    expected, conflicts = 0.0, 0
    for image, (target, count) in enumerate(zip(targets, counts, strict=True)):
        one = HeadOutput(
            output.class_logits[image, None], output.boxes_xyxy[image, None], output.points_xy
        )
        alone, alone_parts = make_loss()([one], [target])
        expected = expected + alone * max(1, count)
        conflicts += alone_parts["conflicts"]
    torch.testing.assert_close(total, expected / sum(counts))
    assert parts["conflicts"] == conflicts


def test_heads_are_matched_on_their_own_predictions_and_summed():
    a, b = random_output(2, 4, seeded(3)), random_output(2, 4, seeded(4))
    targets = [random_target(2, 4, SIZE, seeded(5), image_id=i) for i in range(2)]
    loss = make_loss()
    slots = [[m.pred_idx.tolist() for m in loss.match(output, targets)] for output in (a, b)]
    assert slots[0] != slots[1]
    (total_a, parts_a), (total_b, parts_b) = loss([a], targets), loss([b], targets)
    total, parts = loss([a, b], targets)
    torch.testing.assert_close(total, total_a + total_b)
    for name in (*PARTS, "objects", "conflicts"):
        torch.testing.assert_close(parts[name], parts_a[name] + parts_b[name])


def test_the_parts_of_the_log_add_up_to_the_total():
    total, parts = make_loss()(
        [random_output(1, 4, seeded())], [random_target(3, 4, SIZE, seeded())]
    )
    torch.testing.assert_close(total, sum(parts[name] for name in PARTS))
    assert set(parts) == {*PARTS, "objects", "conflicts"}


# --- images without objects ---


@pytest.mark.parametrize("images", [1, 3])
def test_a_batch_without_objects_has_a_class_loss_only(images):
    output = learnable(random_output(images, 4, seeded()))
    total, parts = make_loss()([output], [make_target([], []) for _ in range(images)])
    assert parts["loss_l1"].item() == parts["loss_giou"].item() == 0
    assert parts["conflicts"].item() == parts["objects"].item() == 0
    zeros = torch.zeros_like(output.class_logits)
    negatives = torchvision.ops.sigmoid_focal_loss(output.class_logits, zeros, reduction="sum")
    torch.testing.assert_close(total, 2 * negatives)
    total.backward()
    assert (output.class_logits.grad > 0).all()  # all scores should fall
    assert output.boxes_xyxy.grad is None or not output.boxes_xyxy.grad.any()


# --- conflicts ---


def test_two_objects_on_one_slot_train_both_classes_and_both_boxes():
    output = learnable(random_output(1, 3, seeded()))
    target = make_target([0, 2], [[5, 5, 15, 15], [20, 10, 50, 38]])
    loss = make_loss(assigner=fixed_matches((4, 0), (4, 1), conflicts=1))
    total, parts = loss([output], [target])
    expected = scalar_loss(loss, [output], [target])
    for part in PARTS:
        assert float(parts[part].detach()) == pytest.approx(expected[part], rel=1e-4)
    assert parts["conflicts"].item() == 1
    total.backward()
    towards = output.class_logits.grad[0, 4]
    assert towards[0] < 0 < towards[1]
    assert towards[2] < 0
    assert (output.class_logits.grad[0, :4] > 0).all()
    assert output.boxes_xyxy.grad[0, 4].all()
    assert not output.boxes_xyxy.grad[0, :4].any()


def test_conflicts_are_counted_over_images_and_heads():
    copies = [[5.0, 5, 15, 15]] * 3
    targets = [make_target([1, 1, 1], copies), make_target([], []), make_target([0], copies[:1])]
    outputs = [random_output(3, 3, seeded(i)) for i in range(2)]
    _, parts = make_loss()(outputs, targets)
    assert parts["conflicts"].item() == 2 * 2
    assert parts["objects"].item() == 2 * 4


def test_an_object_that_lost_its_slot_is_background_there():
    """With conflict=drop it has no positive slot, but counts in the normaliser."""
    output = random_output(1, 3, seeded())
    target = make_target([0, 1], [[5, 5, 15, 15], [5, 5, 15, 15]])
    loss = make_loss(assigner=fixed_matches((4, 1), conflicts=1))
    total, _ = loss([output], [target])
    assert float(total) == pytest.approx(
        sum(scalar_loss(loss, [output], [target]).values()), rel=1e-4
    )


# --- extreme values ---


@pytest.mark.parametrize("logit", [-200.0, -60.0, -17.0, 17.0, 60.0, 200.0])
def test_gradients_are_finite_with_saturated_logits(logit):
    output = random_output(1, 3, seeded())
    output.class_logits[:] = logit
    output.class_logits[0, ::2] = -logit
    output = learnable(output)
    target = random_target(3, 3, SIZE, seeded(1))
    total, _ = make_loss()([output], [target])
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(output.class_logits.grad).all()
    expected = scalar_loss(make_loss(), [output], [target])
    assert float(total.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)


def test_gradients_are_finite_with_flat_and_perfect_boxes():
    """A dead ReLU gives boxes without area; a perfect box has no L1 gradient."""
    output = random_output(1, 3, seeded())
    points = output.points_xy
    output.boxes_xyxy[0] = torch.cat([points, points], dim=1)
    gt = torch.tensor([[5.0, 5, 15, 15], [20, 10, 50, 38]])
    output.boxes_xyxy[0, 7] = gt[1]
    output = learnable(output)
    loss = make_loss(assigner=fixed_matches((0, 0), (7, 1)))
    total, _ = loss([output], [make_target([0, 1], gt)])
    total.backward()
    assert torch.isfinite(output.boxes_xyxy.grad).all()
    flat = output.boxes_xyxy.grad[0, 0]
    assert (flat[:2] > 0).all()  # the box should grow: x1, y1 down
    assert (flat[2:] < 0).all()


def test_boxes_learn_where_the_grid_point_was_matched():
    """location=predefined changes only the cost; the loss uses the predicted box."""
    output = learnable(random_output(1, 3, seeded()))
    target = make_target([0], [[20, 10, 30, 18]])
    nearest_point = MatchingCost(CostWeights(cls=0, l1=0, giou=0, center=10))
    total, _ = make_loss(matching_cost=nearest_point)([output], [target])
    total.backward()
    assert output.boxes_xyxy.grad.abs().sum(-1).nonzero().tolist() == [[0, 7]]


def test_the_matching_sees_float32_under_autocast():
    costs = []

    def spy(cost):
        costs.append(cost)
        assert not torch.is_autocast_enabled("cpu")
        return assign(min_cost, cost)

    output, target = random_output(1, 4, seeded()), random_target(3, 4, SIZE, seeded())
    loss = make_loss(assigner=spy)
    plain, _ = loss([output], [target])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = HeadOutput(output.class_logits.bfloat16(), output.boxes_xyxy, output.points_xy)
        under_autocast, _ = loss([output], [target])
        loss([half], [target])
    assert [cost.dtype for cost in costs] == [torch.float32] * 3
    assert torch.equal(costs[0], costs[1])
    torch.testing.assert_close(plain, under_autocast)


def test_targets_and_predictions_are_left_alone():
    output = random_output(2, 4, seeded())
    targets = [random_target(3, 4, SIZE, seeded(i), image_id=i) for i in range(2)]
    tensors = [output.class_logits, output.boxes_xyxy, output.points_xy]
    tensors += [t.gt_xyxy for t in targets] + [t.gt_labels for t in targets]
    before = [tensor.clone() for tensor in tensors]
    make_loss()([output], targets)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


# --- crowds ---


def test_a_class_is_not_learnt_inside_its_crowds():
    generator = seeded()
    outputs = [learnable(random_output(2, 4, generator)) for _ in range(2)]
    inside = torch.tensor([[0.0, 0, 20, 20], [30, 0, 60, 40], [0, 0, 31, 40]])
    targets = [
        replace(
            random_target(3, 4, SIZE, generator),
            crowd_labels=torch.tensor([1, 1, 3]),
            crowd_xyxy=inside,
        ),
        random_target(2, 4, SIZE, generator),
    ]
    loss = make_loss()
    total, parts = loss(outputs, targets)
    for name, value in scalar_loss(loss, outputs, targets).items():
        assert parts[name].item() == pytest.approx(value, rel=1e-4)
    plain = [replace(t, crowd_labels=t.crowd_labels[:0]) for t in targets]
    assert parts["loss_cls"] < loss(outputs, plain)[1]["loss_cls"]
    total.backward()
    logits, x = outputs[0].class_logits.grad[0], outputs[0].points_xy[:, 0]
    match = loss.match(outputs[0], targets)[0]
    free = torch.ones(len(x), dtype=torch.bool)
    free[match.pred_idx] = False
    assert (logits[free & (x <= 31), 3].abs() < 1e-7).all()
    assert (logits[free & (x > 31), 3] != 0).all()
    assert (logits[:, 0] != 0).all()


def test_a_positive_sample_inside_a_crowd_is_learnt():
    output = learnable(random_output(1, 2, seeded()))
    target = replace(
        make_target([1], [[0, 0, 20, 20]]),
        crowd_labels=torch.tensor([1]),
        crowd_xyxy=torch.tensor([[0.0, 0, 60, 40]]),
    )
    total, _ = make_loss(assigner=fixed_matches((4, 0)))([output], [target])
    total.backward()
    assert output.class_logits.grad[0, 4, 1] < 0


# --- micro-batches ---


def test_the_losses_of_the_parts_of_a_batch_add_up_to_its_loss():
    generator = seeded()
    output = random_output(3, 4, generator)
    targets = [random_target(count, 4, SIZE, generator) for count in (5, 0, 1)]
    loss = make_loss()
    whole, _ = loss([output], targets)
    parts = [
        loss([HeadOutput(output.class_logits[part], output.boxes_xyxy[part], output.points_xy)],
             targets[part], num_objects=6)[0]
        for part in (slice(0, 1), slice(1, 3))
    ]  # fmt: skip
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)
