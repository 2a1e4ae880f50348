"""Sparse R-CNN: its parts against loops, scalar formulas and torchvision; shapes, gradients, types.

Run: pytest tests/test_sparse_rcnn.py
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from onenet.assigners import make_matcher
from onenet.costs import MatchingCost
from onenet.detectors.backbones import make_backbone
from onenet.detectors.sparse_rcnn import (
    MAX_COORDINATE,
    MAX_LOG_SCALE,
    DynamicInteraction,
    SparseRCNN,
    apply_deltas,
)
from onenet.losses import DetectionLoss
from onenet.ops.roi_align import Pyramid, assign_levels, pyramid_roi_align
from tests.conftest import make_target, random_boxes, random_target, seeded

K, N = 5, 12
SMALL = {
    "dim": 16,
    "proposals": N,
    "stages": 3,
    "attention_heads": 2,
    "feedforward": 24,
    "dynamic_dim": 4,
    "canonical": 28.0,
}


def make_model(**changes) -> SparseRCNN:
    torch.manual_seed(0)
    return SparseRCNN(make_backbone("tiny"), K, **(SMALL | changes))


def random_images(count: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(count, 3, height, width, generator=seeded())


def padded_images() -> tuple[Tensor, Tensor]:
    """The first image is padded right and below, the second fills the tensor."""
    images, sizes_hw = random_images(), torch.tensor([[41, 70], [64, 96]])
    images[0, :, 41:] = 0
    images[0, :, :, 70:] = 0
    return images, sizes_hw


def make_loss() -> DetectionLoss:
    return DetectionLoss(MatchingCost(), make_matcher("hungarian", "keep"))


# --- the box coder ---


def scalar_apply(deltas, box) -> list[float]:
    dx, dy, dw, dh = deltas
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    cx, cy = x1 + width / 2 + dx / 2 * width, y1 + height / 2 + dy / 2 * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]


def scalar_deltas(box, new) -> list[float]:
    """The deltas from one box to the other."""
    (x1, y1, x2, y2), (a1, b1, a2, b2) = box, new
    width, height = x2 - x1, y2 - y1
    shift = ((a1 + a2 - x1 - x2) / 2 / width, (b1 + b2 - y1 - y2) / 2 / height)
    return [2 * shift[0], 2 * shift[1], math.log((a2 - a1) / width), math.log((b2 - b1) / height)]


def test_the_box_coder_is_the_formula():
    boxes = random_boxes(20, (40, 60), seeded())
    deltas = torch.randn(20, 4, generator=seeded(1))
    pairs = zip(deltas.tolist(), boxes.tolist(), strict=True)
    torch.testing.assert_close(
        apply_deltas(deltas, boxes), torch.tensor([scalar_apply(d, b) for d, b in pairs])
    )


def test_the_box_coder_reaches_any_box():
    boxes, targets = random_boxes(20, (40, 60), seeded()), random_boxes(20, (40, 60), seeded(1))
    pairs = zip(boxes.tolist(), targets.tolist(), strict=True)
    deltas = torch.tensor([scalar_deltas(b, w) for b, w in pairs])
    torch.testing.assert_close(apply_deltas(deltas, boxes), targets, atol=1e-3, rtol=1e-5)


def test_the_growth_of_a_box_is_limited():
    box = torch.tensor([[10.0, 20.0, 10.5, 20.25]])
    grown = apply_deltas(torch.tensor([[0.0, 0.0, 50.0, MAX_LOG_SCALE]]), box)
    sides = grown[:, 2:] - grown[:, :2]
    torch.testing.assert_close(sides, torch.tensor([[0.5, 0.25]]) * 100_000 / 16)


def test_boxes_stay_ordered_and_finite_through_any_number_of_stages():
    boxes = torch.cat([random_boxes(50, (40, 60), seeded()), torch.full((1, 4), 7.0)])
    for seed in range(20):
        boxes = apply_deltas(100 * torch.randn(51, 4, generator=seeded(seed)), boxes)
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        assert (boxes.abs() <= MAX_COORDINATE).all()


# --- the pyramid ---


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (224, 224, 2),  # the canonical box: stride 16
        (223.9, 224, 1),
        (448, 448, 3),
        (447.9, 448, 2),
        (112, 112, 1),
        (111.9, 112, 0),
        (56, 56, 0),  # stride 2 would be next
        (1, 1, 0),
        (0, 50, 0),
        (5000, 5000, 3),
        (448, 112, 2),  # the area decides
        (2e6, 2e6, 3),
    ],
)
def test_levels_follow_the_formula(width, height, level):
    box = torch.tensor([3.0, -4.0, 3.0 + width, -4.0 + height])
    assert assign_levels(box, canonical=224.0, levels=4).item() == level
    if width * height:
        formula = math.floor(4 + math.log2(math.sqrt(width * height) / 224))
        assert level == min(max(formula, 2), 5) - 2


def test_levels_scale_with_the_canonical_side():
    boxes = random_boxes(100, (300, 500), seeded())
    levels = assign_levels(boxes, canonical=224.0, levels=4)
    assert levels.unique().tolist() == [0, 1, 2]
    assert torch.equal(assign_levels(boxes / 8, canonical=28.0, levels=4), levels)


@pytest.fixture
def maps() -> list[Tensor]:
    """Features of two 64×96 images."""
    shapes = [(64 // stride, 96 // stride) for stride in (4, 8, 16, 32)]
    return [torch.randn(2, 6, *shape, generator=seeded(i)) for i, shape in enumerate(shapes)]


def awkward_boxes() -> Tensor:
    """[2, 49, 4] pixels: inside the images, across their borders, outside, and without area."""
    inside = random_boxes(40, (64, 96), seeded())
    across = random_boxes(50, (64, 96), seeded(1)) * 3 - 70
    others = [
        [0, 0, 96, 64],
        [200, 10, 240, 30],
        [-90, -80, -50, -60],
        [-1e5, -1e5, 1e5, 1e5],
        [20, 20, 20, 20],
        [5, 20, 90, 20],
        [92, 60, 96, 64],
        [0, 0, 1, 1],
    ]
    boxes = torch.cat([inside, across, torch.tensor(others)])
    return boxes[torch.randperm(98, generator=seeded())].view(2, 49, 4)


@pytest.mark.parametrize("pooled", [7, 2])
def test_pooling_is_roi_align_box_by_box(maps, pooled):
    boxes = awkward_boxes()
    regions = pyramid_roi_align(Pyramid.of(maps), boxes, canonical=28.0, pooled=pooled)
    assert regions.shape == (2, 49, pooled**2, 6)
    levels = assign_levels(boxes, canonical=28.0, levels=4)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    for image in range(2):
        for box, level, region in zip(boxes[image], levels[image], regions[image], strict=True):
            feature, scale = maps[level][image : image + 1], 1 / (4 * 2 ** level.item())
            expected = roi_align(feature, [box[None]], pooled, scale, 2, aligned=True)
            torch.testing.assert_close(region.T, expected[0].flatten(1), atol=1e-5, rtol=1e-4)


def test_the_gradient_of_pooling_is_that_of_roi_align(maps):
    boxes, canonical = awkward_boxes(), 28.0
    features = [m.clone().requires_grad_() for m in maps]
    regions = pyramid_roi_align(Pyramid.of(features), boxes, canonical, 3)
    weights = torch.randn(regions.shape, generator=seeded(5))
    (regions * weights).sum().backward()

    levels = assign_levels(boxes, canonical, 4)
    for level, feature in enumerate(features):
        other = feature.detach().clone().requires_grad_()
        image, slot = (levels == level).nonzero(as_tuple=True)
        rois = torch.cat([image[:, None].float(), boxes[image, slot]], dim=1)
        expected = roi_align(other, rois, 3, 1 / (4 * 2**level), 2, aligned=True)
        (expected.flatten(2).mT * weights[image, slot]).sum().backward()
        torch.testing.assert_close(feature.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_boxes_that_are_not_numbers_are_read_nowhere_else(maps):
    boxes = torch.tensor([math.nan, math.inf, -math.inf, 3.0]).expand(2, 3, 4)
    regions = pyramid_roi_align(Pyramid.of(maps), boxes, canonical=28.0, pooled=3)
    assert regions.shape == (2, 3, 9, 6)


# --- the stage ---


def test_each_proposal_filters_its_own_region():
    torch.manual_seed(0)
    module = DynamicInteraction(dim=6, dynamic_dim=3, pooled=2)
    for norm in (module.norm1, module.norm2, module.norm3):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    features = torch.randn(2, 4, 6, generator=seeded())
    regions = torch.randn(2, 4, 4, 6, generator=seeded(1))
    answer = module(features, regions)
    for image in range(2):
        for proposal in range(4):
            numbers = module.kernels(features[image, proposal])
            first, second = numbers[:18].view(6, 3), numbers[18:].view(3, 6)
            filtered = []
            for place in regions[image, proposal]:
                hidden = F.relu(module.norm1(place @ first))
                filtered.append(F.relu(module.norm2(hidden @ second)))
            expected = F.relu(module.norm3(module.output(torch.cat(filtered))))
            torch.testing.assert_close(answer[image, proposal], expected)


def test_a_stage_is_its_steps_in_order():
    model = make_model().eval()
    stage, images = model.stages[0], random_images()
    pyramid = Pyramid.of(list(model.pyramid(dict(enumerate(model.backbone(images)))).values()))
    boxes = random_boxes(2 * N, (64, 96), seeded()).view(2, N, 4)
    features = torch.randn(2, N, 16, generator=seeded())
    logits, new_boxes, new_features = stage(pyramid, boxes, features)

    heads = [part.view(2, N, 2, 8) for part in F.linear(features, *projection(stage)).chunk(3, -1)]
    query, key, value = (part.transpose(1, 2) for part in heads)
    mixed = (query @ key.mT / 8**0.5).softmax(dim=-1) @ value
    attended = stage.attention.out_proj(mixed.transpose(1, 2).flatten(2))
    x = stage.norms[0](features + attended)
    x = stage.norms[1](x + stage.interaction(x, pyramid_roi_align(pyramid, boxes, 28.0, 7)))
    x = stage.norms[2](x + stage.feedforward[3](F.relu(stage.feedforward[0](x))))
    torch.testing.assert_close(new_features, x)
    torch.testing.assert_close(logits, stage.class_logits(stage.class_tower(x)))
    # From the stage's own features, since the boxes amplify the rounding of x.
    deltas = stage.box_deltas(stage.box_tower(new_features))
    torch.testing.assert_close(new_boxes, apply_deltas(deltas, boxes))


def projection(stage) -> tuple[Tensor, Tensor]:
    return stage.attention.in_proj_weight, stage.attention.in_proj_bias


def test_matrices_are_xavier_uniform_and_the_bias_is_the_prior():
    model = make_model(dim=64, prior=0.05)
    for stage in model.stages:
        for matrix in (p for p in stage.parameters() if p.dim() > 1):
            bound = math.sqrt(6 / sum(matrix.shape))
            assert matrix.abs().max() <= bound
            assert matrix.abs().max() > 0.9 * bound
        torch.testing.assert_close(stage.class_logits.bias.sigmoid(), torch.full((K,), 0.05))
    assert not torch.equal(model.stages[0].box_deltas.weight, model.stages[1].box_deltas.weight)


# --- the model ---


def test_one_output_a_stage_in_training_and_the_last_one_outside():
    model = make_model()
    images, sizes_hw = padded_images()
    outputs = model(images, sizes_hw, num_heads=1)
    assert len(outputs) == 3
    (answer,) = model.eval()(images, sizes_hw)
    for output in [*outputs, answer]:
        assert output.class_logits.shape == (2, N, K)
        assert output.boxes_xyxy.shape == (2, N, 4)
        assert output.points_xy.shape == (N, 2)
        assert output.points_xy.isnan().all()
        assert output.boxes_xyxy.isfinite().all()
        assert (output.boxes_xyxy[..., :2] <= output.boxes_xyxy[..., 2:]).all()


def test_proposals_start_as_the_whole_unpadded_image():
    boxes = make_model().initial_boxes(torch.tensor([[41, 70], [64, 96]]))
    expected = torch.tensor([[0.0, 0, 70, 41], [0, 0, 96, 64]])
    assert torch.equal(boxes, expected[:, None].expand(2, N, 4))


def test_learned_proposals_are_centres_and_sides():
    model = make_model()
    with torch.no_grad():
        model.proposal_boxes.weight[3] = torch.tensor([0.25, 0.5, 0.1, -0.2])
    boxes = model.initial_boxes(torch.tensor([[40, 80]]))
    torch.testing.assert_close(boxes[0, 3], torch.tensor([16.0, 16.0, 24.0, 24.0]))


def test_without_sizes_there_is_no_padding():
    model, images = make_model().eval(), random_images()
    (a,), (b,) = model(images), model(images, torch.tensor([[64, 96]] * 2))
    assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
    assert torch.equal(a.class_logits, b.class_logits)


def test_an_image_has_the_same_answer_alone_and_beside_others():
    model = make_model().eval()
    images, sizes_hw = padded_images()
    (both,) = model(images, sizes_hw)
    for i in range(2):
        (alone,) = model(images[i : i + 1], sizes_hw[i : i + 1])
        options = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(alone.boxes_xyxy[0], both.boxes_xyxy[i], **options)
        torch.testing.assert_close(alone.class_logits[0], both.class_logits[i], **options)
    (twice,) = model(images[[0, 0]], sizes_hw[[0, 0]])
    assert torch.equal(twice.boxes_xyxy[0], twice.boxes_xyxy[1])
    assert torch.equal(twice.class_logits[0], twice.class_logits[1])


def test_a_model_serves_images_of_several_sizes():
    model = make_model().eval()
    (before,) = model(random_images())
    model(random_images(1, 128, 32))
    (after,) = model(random_images())
    assert torch.equal(before.boxes_xyxy, after.boxes_xyxy)


def test_boxes_are_detached_between_stages_and_features_are_not():
    model = make_model()
    outputs = model(random_images())
    boxes, features = model.proposal_boxes.weight, model.proposal_features.weight
    for number, output in enumerate(outputs):
        total = output.boxes_xyxy.sum() + output.class_logits.sum()
        boxes_grad, features_grad = torch.autograd.grad(
            total, [boxes, features], retain_graph=True, allow_unused=True
        )
        assert (boxes_grad is None) == (number > 0)
        assert features_grad.abs().sum() > 0
        earlier = [stage.box_deltas.weight for stage in model.stages[:number]]
        if earlier:
            grads = torch.autograd.grad(total, earlier, retain_graph=True, allow_unused=True)
            assert grads == (None,) * number


@pytest.mark.parametrize("objects", [0, 4])
@pytest.mark.parametrize("canonical", [28.0, 1000.0])
def test_every_parameter_gets_a_gradient(objects, canonical):
    """Even on levels without a box, and in images without objects."""
    model = make_model(canonical=canonical)
    images, sizes_hw = padded_images()
    targets = [random_target(objects, K, tuple(s.tolist()), seeded()) for s in sizes_hw]
    total, parts = make_loss()(model(images, sizes_hw), targets)
    total.backward()
    assert parts["objects"] == 3 * 2 * objects
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if objects:
        assert model.proposal_boxes.weight.grad.abs().sum() > 0


def test_a_few_steps_lower_the_loss():
    model, loss = make_model(stages=2), make_loss()
    images, sizes_hw = padded_images()
    targets = [
        make_target([1], [[10, 10, 40, 35]], (41, 70)),
        make_target([3, 0], [[5, 20, 60, 60], [50, 4, 90, 30]], (64, 96)),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(40):
        total, _ = loss(model(images, sizes_hw), targets)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.5 * totals[0]


@pytest.mark.parametrize("training", [True, False])
def test_answers_are_float32_under_autocast(training):
    model = make_model().train(training)
    images, sizes_hw = padded_images()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes_hw)
    for output in outputs:
        for numbers in (output.class_logits, output.boxes_xyxy):
            assert numbers.dtype == torch.float32
            assert numbers.isfinite().all()
            assert not torch.equal(numbers, numbers.bfloat16().float())
    sum(output.boxes_xyxy.mean() + output.class_logits.mean() for output in outputs).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_seed_decides_the_weights():
    states = [make_model().state_dict().values() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", 0),
        ("dim", 15),
        ("proposals", 0),
        ("stages", 0),
        ("attention_heads", 3),
        ("feedforward", 0),
        ("dynamic_dim", 0),
        ("pooled", 0),
        ("class_layers", -1),
        ("box_layers", -1),
        ("canonical", 0.0),
        ("dropout", 1.0),
        ("prior", 0.0),
        ("prior", 1.0),
    ],
)
def test_settings_that_cannot_work_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_model(**{name: value})


def test_towers_may_be_empty_and_dropout_acts_in_training_only():
    model, images = make_model(class_layers=0, box_layers=0, dropout=0.5), random_images()
    a, b = (model(images)[-1].class_logits for _ in range(2))
    assert not torch.equal(a, b)
    model.eval()
    a, b = (model(images)[-1].class_logits for _ in range(2))
    assert torch.equal(a, b)
