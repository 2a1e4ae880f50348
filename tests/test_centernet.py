"""CenterNet: Gaussians and loss against scalar loops; the network's shapes, types and gradients.

Run: pytest tests/test_centernet.py
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from onenet.boxes import grid_points, iou_and_giou
from onenet.detectors import DETECTORS
from onenet.detectors.backbones import make_backbone
from onenet.detectors.centernet.loss import CenterNetLoss, penalty_reduced_focal_loss
from onenet.detectors.centernet.model import CenterNet
from onenet.detectors.centernet.output import CenterOutput
from onenet.detectors.centernet.targets import (
    Heatmap,
    center_targets,
    draw_heatmap,
    gaussian_kernels,
    gaussian_radius,
)
from onenet.detectors.necks import NECKS, make_neck
from onenet.postprocess import top_k
from onenet.structures import Target
from tests.conftest import make_target, random_target, seeded
from tests.test_costs import log_one_plus_exp, sigmoid

K = 3
SIZE = (64, 96)  # pixels
GRID = (16, 24)
NAMES = ("loss_cls", "loss_size", "loss_offset")
LOSS = CenterNetLoss()
WIDE = CenterNetLoss(min_overlap=0.1)  # its Gaussians overlap on a small map


def make_output(images: int = 1, grid_hw=GRID, seed: int = 0, dtype=torch.float32) -> CenterOutput:
    slots, generator = math.prod(grid_hw), seeded(seed)
    return CenterOutput(
        3 * torch.randn(images, slots, K, generator=generator, dtype=dtype),
        40 * torch.rand(images, slots, 2, generator=generator, dtype=dtype) - 8,
        3 * torch.rand(images, slots, 2, generator=generator, dtype=dtype) - 1,
        grid_points(*grid_hw, 4).to(dtype),
        grid_hw,
    )


def learnable(output: CenterOutput) -> CenterOutput:
    names = ("class_logits", "size_wh", "offset_xy")
    return replace(output, **{n: getattr(output, n).clone().requires_grad_() for n in names})


def make_targets(*counts: int, size_hw=SIZE) -> list[Target]:
    generator = seeded(len(counts))
    return [random_target(count, K, size_hw, generator, i) for i, count in enumerate(counts)]


def with_crowd(target: Target, *crowds: tuple[int, list[float]]) -> Target:
    labels, boxes = zip(*crowds, strict=True)
    return replace(target, crowd_labels=torch.tensor(labels), crowd_xyxy=torch.tensor(boxes))


def heatmap_of(targets: list[Target], grid_hw=GRID, min_overlap: float = 0.7) -> Heatmap:
    objects = center_targets(targets, grid_hw)
    return draw_heatmap(objects, targets, grid_points(*grid_hw, 4), K, min_overlap)


def dense(heatmap: Heatmap, images: int, slots: int) -> Tensor:
    """Y [B, P, K]; repeated indices add up."""
    y = torch.zeros(images, slots, K)
    y.index_put_(heatmap.index, heatmap.value, accumulate=True)
    return y


# --- scalar reference ---


def scalar_radius(w: float, h: float, t: float) -> float:
    """By bisection; the IoU falls fastest with both corners inside, as tested below."""
    low, high = 0.0, min(w, h) / 2
    for _ in range(60):
        r = (low + high) / 2
        low, high = (r, high) if (w - 2 * r) * (h - 2 * r) / (w * h) >= t else (low, r)
    return low


def scalar_heatmap(target: Target, grid_hw, min_overlap: float) -> tuple[Tensor, set]:
    """Y [H, W, K] of one image, and its peaks as (row, column, label)."""
    height, width = grid_hw
    y = torch.zeros(height, width, K)
    peaks = set()
    for label, box in zip(target.gt_labels.tolist(), target.gt_xyxy.tolist(), strict=True):
        x1, y1, x2, y2 = (side / 4 for side in box)
        column, row = math.floor((x1 + x2) / 2), math.floor((y1 + y2) / 2)
        radius = math.floor(scalar_radius(x2 - x1, y2 - y1, min_overlap))
        sigma = (2 * radius + 1) / 6
        for v in range(max(0, row - radius), min(height, row + radius + 1)):
            for u in range(max(0, column - radius), min(width, column + radius + 1)):
                far = (u - column) ** 2 + (v - row) ** 2
                y[v, u, label] = max(y[v, u, label].item(), math.exp(-far / (2 * sigma**2)))
        peaks.add((row, column, label))
    return y, peaks


def scalar_loss(loss: CenterNetLoss, output: CenterOutput, targets) -> dict[str, float]:
    """The terms of equation 4, in scalar loops."""
    width = output.grid_hw[1]
    focal = size = offset = 0.0
    for image, target in enumerate(targets):
        y, peaks = scalar_heatmap(target, output.grid_hw, loss.min_overlap)
        for slot, logits in enumerate(output.class_logits[image].tolist()):
            row, column = divmod(slot, width)
            for label, x in enumerate(logits):
                if (row, column, label) in peaks:
                    focal += sigmoid(-x) ** loss.alpha * log_one_plus_exp(-x)
                    continue
                crowds = zip(target.crowd_labels.tolist(), target.crowd_xyxy.tolist(), strict=True)
                px, py = 4 * column + 2, 4 * row + 2
                if not any(
                    k == label and a <= px <= c and b <= py <= d for k, (a, b, c, d) in crowds
                ):
                    penalty = (1 - y[row, column, label].item()) ** loss.beta
                    focal += penalty * sigmoid(x) ** loss.alpha * log_one_plus_exp(x)
        for x1, y1, x2, y2 in target.gt_xyxy.tolist():
            cx, cy = (x1 + x2) / 8, (y1 + y2) / 8
            slot = math.floor(cy) * width + math.floor(cx)
            w, h = output.size_wh[image, slot].tolist()
            u, v = output.offset_xy[image, slot].tolist()
            size += abs(w / 4 - (x2 - x1) / 4) + abs(h / 4 - (y2 - y1) / 4)
            offset += abs(u - (cx - math.floor(cx))) + abs(v - (cy - math.floor(cy)))
    objects = max(1, sum(len(target.gt_labels) for target in targets))
    sums = (focal, loss.size * size, loss.offset * offset)
    return {name: value / objects for name, value in zip(NAMES, sums, strict=True)}


def assert_is_scalar_loss(loss: CenterNetLoss, output: CenterOutput, targets) -> None:
    total, parts = loss([output], targets)
    expected = scalar_loss(loss, output, targets)
    for name in NAMES:
        assert float(parts[name]) == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert float(total) == pytest.approx(sum(expected.values()), rel=1e-4)


# --- the radius ---


@pytest.mark.parametrize("size", [(10, 10), (3, 40), (40, 3), (7.5, 12), (0.5, 0.25), (200, 90)])
@pytest.mark.parametrize("min_overlap", [0.3, 0.7, 0.9])
def test_within_the_radius_boxes_overlap_enough_and_beyond_it_not(size, min_overlap):
    w, h = size
    radius = float(gaussian_radius(torch.tensor([w, h], dtype=torch.float64), min_overlap))
    shifts = torch.linspace(-1, 1, 9, dtype=torch.float64)
    grid = torch.cartesian_prod(shifts, shifts, shifts, shifts)  # x1, y1, x2, y2
    box = torch.tensor([0, 0, w, h], dtype=torch.float64)

    def worst(r: float) -> float:
        return float(iou_and_giou(box + r * grid, box)[0].min())

    assert worst(radius) == pytest.approx(min_overlap, abs=1e-9)
    assert worst(0.9 * radius) > min_overlap > worst(1.01 * radius)


def test_the_radius_of_the_released_code_is_several_times_as_large():
    """Its (b3 + sq3) / 2 is 0.27 of a square's side at 0.7: see gaussian_radius."""
    side = torch.tensor([100.0, 100.0])
    assert float(gaussian_radius(side, 0.7)) == pytest.approx(8.17, abs=0.01)
    released = (-2 * 0.7 * 200 + math.sqrt((2 * 0.7 * 200) ** 2 + 16 * 0.7 * 0.3 * 100**2)) / 2
    assert released == pytest.approx(27.3, abs=0.1)
    assert float(gaussian_radius(side, 0.2)) == pytest.approx(released, rel=0.02)


@pytest.mark.parametrize("size", [(1e-3, 500), (1e-3, 1e-3), (1e4, 1e4)])
def test_extreme_sizes_keep_float32_accuracy(size):
    radius = float(gaussian_radius(torch.tensor(size), 0.7))
    assert radius == pytest.approx(scalar_radius(*size, 0.7), rel=1e-4)


# --- the heatmap ---


def test_a_kernel_by_hand():
    slots, values = gaussian_kernels(torch.tensor([[1, 0]]), torch.tensor([1]), (2, 4), reach=1)
    kernel = dict.fromkeys(range(8), 0.0)
    for slot, value in zip(slots[0].tolist(), values[0].tolist(), strict=True):
        kernel[slot] += value
    side, corner = math.exp(-2), math.exp(-4)  # sigma is 1/2
    expected = [side, 1, side, 0, corner, side, corner, 0]
    assert list(kernel.values()) == pytest.approx(expected)


@pytest.mark.parametrize("min_overlap", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("counts", [(1,), (12, 0, 25), (0, 0)])
@pytest.mark.parametrize("grid", [(16, 24), (17, 9), (8, 1), (1, 1)])
def test_heatmap_equals_scalar_loops(min_overlap, counts, grid):
    """With many overlaps within and across classes, and objects at every border."""
    targets = make_targets(*counts, size_hw=(4 * grid[0] - 1, 4 * grid[1] - 1))
    heatmap = heatmap_of(targets, grid, min_overlap)
    maps, peaks = dense(heatmap, len(counts), math.prod(grid)), set()
    for image, target in enumerate(targets):
        y, of_image = scalar_heatmap(target, grid, min_overlap)
        torch.testing.assert_close(maps[image].view(*grid, K), y, rtol=1e-4, atol=1e-6)
        peaks |= {(image, row * grid[1] + column, label) for row, column, label in of_image}
    image, slot, label = (at[heatmap.peak].tolist() for at in heatmap.index)
    assert len(image) == len(peaks), "no repeats"
    assert set(zip(image, slot, label, strict=True)) == peaks
    assert (heatmap.value[heatmap.peak] == 1).all()
    assert (maps == 1).sum() == len(peaks)


def test_objects_of_a_pixel_and_of_the_whole_image_lie_on_the_map():
    boxes = [[0, 0, 1, 1], [95, 63, 96, 64], [0, 0, 96, 64], [95.99999, 0, 96, 64]]
    targets = [make_target([0, 1, 2, 2], boxes, SIZE)]
    objects = center_targets(targets, GRID)
    assert objects.cell_xy.tolist() == [[0, 0], [23, 15], [12, 8], [23, 8]]
    assert objects.slot.tolist() == [0, 383, 204, 215]
    assert ((objects.offset_xy >= 0) & (objects.offset_xy <= 1)).all()
    y = dense(heatmap_of(targets), 1, 384)[0]
    assert y[:, 0].nonzero().flatten().tolist() == [0]
    assert y[:, 1].nonzero().flatten().tolist() == [383]
    assert (y[:, 2] > 0).sum() == 9 + 1  # the largest possible box has radius 1


def test_the_higher_of_two_gaussians_of_a_class_counts_and_classes_are_apart():
    a, b = [8, 8, 56, 56], [16, 8, 64, 56]  # centres two cells apart
    same = dense(heatmap_of([make_target([1, 1], [a, b], SIZE)], min_overlap=0.1), 1, 384)
    one, two = (
        dense(heatmap_of([make_target([1], [box], SIZE)], min_overlap=0.1), 1, 384)
        for box in (a, b)
    )
    assert torch.equal(same, torch.maximum(one, two))
    assert ((one > 0) & (two > 0)).any()
    other = dense(heatmap_of([make_target([1, 2], [a, b], SIZE)], min_overlap=0.1), 1, 384)
    assert torch.equal(other[..., 1], one[..., 1])
    assert torch.equal(other[..., 2], two[..., 1])


# --- the loss ---


@pytest.mark.parametrize("counts", [(1,), (12, 0, 5), (0, 0)])
@pytest.mark.parametrize(
    "loss",
    [LOSS, WIDE, CenterNetLoss(size=0.7, offset=1.9, alpha=1.5, beta=3.0, min_overlap=0.3)],
)
def test_loss_equals_scalar_loops(loss, counts):
    assert_is_scalar_loss(loss, make_output(len(counts)), make_targets(*counts))


def test_default_weights_and_exponents_are_the_papers():
    assert vars(LOSS) == {"size": 0.1, "offset": 1, "alpha": 2, "beta": 4, "min_overlap": 0.7}
    assert LOSS.names == NAMES


def test_focal_loss_by_hand():
    """p = 1/2: a peak, a neighbour with Y = 1/2, and two cells far away."""
    at = tuple(torch.tensor(x) for x in ([0, 0], [0, 1], [0, 0]))
    heatmap = Heatmap(at, torch.tensor([1.0, 0.5]), torch.tensor([True, False]))
    loss = penalty_reduced_focal_loss(torch.zeros(1, 4, 1), heatmap, alpha=2.0, beta=4.0)
    assert loss.item() == pytest.approx((1 + 1 / 16 + 2) * 0.25 * math.log(2))


def test_the_gradient_is_that_of_differences():
    targets = make_targets(4, 3, size_hw=(23, 31))
    output = make_output(2, (6, 8), dtype=torch.float64)
    inputs = (output.class_logits, output.size_wh, output.offset_xy)

    def total(logits, size, offset):
        changed = replace(output, class_logits=logits, size_wh=size, offset_xy=offset)
        return WIDE([changed], targets)[0]

    assert torch.autograd.gradcheck(total, [tensor.requires_grad_() for tensor in inputs])


def test_a_perfect_prediction_has_no_loss_and_decodes_to_the_objects():
    labels, boxes = [0, 2, 1], [[3, 5, 31.5, 22], [40, 8, 91, 63], [64.25, 1, 67, 3]]
    target = make_target(labels, boxes, SIZE)
    objects, output = center_targets([target], GRID), make_output()
    output.class_logits.fill_(-20)
    output.class_logits[0, objects.slot, objects.label] = torch.tensor([18.0, 19, 20])
    output.size_wh[0, objects.slot] = 4 * objects.size_wh
    output.offset_xy[0, objects.slot] = objects.offset_xy
    total, _ = LOSS([output], [target])
    assert abs(float(total)) < 1e-4
    (detections,) = top_k(output, [SIZE], 3, peaks=True)
    assert detections.labels.tolist() == labels[::-1]
    torch.testing.assert_close(detections.boxes_xyxy, target.gt_xyxy.flip(0))


@pytest.mark.parametrize("logit", [-200.0, -17.0, 17.0, 200.0])
def test_saturated_logits_have_finite_gradients(logit):
    output = make_output()
    output.class_logits.fill_(logit)
    output.class_logits[:, ::2] = -logit
    output, targets = learnable(output), make_targets(5)
    total, _ = LOSS([output], targets)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(output.class_logits.grad).all()
    with torch.no_grad():
        assert_is_scalar_loss(LOSS, output, targets)


def test_a_batch_without_objects_has_a_class_loss_only():
    output = learnable(make_output(2))
    total, parts = LOSS([output], make_targets(0, 0))
    assert [parts[n].item() for n in (*NAMES[1:], "objects", "conflicts")] == [0, 0, 0, 0]
    total.backward()
    assert (output.class_logits.grad > 0).all()
    assert not output.size_wh.grad.any(), "zero, not None"
    assert not output.offset_xy.grad.any()


def test_size_and_offset_learn_at_the_cells_of_the_centres_only():
    output = learnable(make_output())
    LOSS([output], [make_target([0, 1], [[8, 8, 15, 13], [40, 20, 80, 60]], SIZE)])[0].backward()
    for tensor in (output.size_wh, output.offset_xy):
        assert tensor.grad[0].any(dim=1).nonzero().flatten().tolist() == [2 * 24 + 2, 10 * 24 + 15]


def test_objects_that_share_a_cell_are_conflicts_and_learn_there_both():
    boxes = [[8, 8, 15, 13], [6, 6, 17, 15], [6, 6, 17, 16], [40, 20, 80, 60]]
    there = make_target([0, 2, 2, 1], boxes, SIZE)
    output, targets = make_output(2), [there, make_target([0], boxes[:1], SIZE)]
    _, parts = LOSS([output], targets)
    assert parts["conflicts"].item() == 2, "cells of other images do not conflict"
    assert parts["conflicts"].dtype == torch.int64
    assert parts["objects"].item() == 5
    assert_is_scalar_loss(LOSS, output, targets)


def test_nothing_is_learnt_of_a_class_inside_its_crowds_but_objects():
    crowds = (1, [20.0, 10, 60, 50]), (1, [40.0, 10, 90, 50]), (0, [0.0, 0, 9, 9])
    boxes = [[30, 20, 46, 38], [10, 10, 50, 60], [70, 30, 95, 63]]
    target = with_crowd(make_target([1, 0, 1], boxes, SIZE), *crowds)
    output = learnable(make_output(2))
    targets = [make_targets(3)[0], target]
    for loss in (LOSS, WIDE):
        with torch.no_grad():
            assert_is_scalar_loss(loss, output, targets)
    LOSS([output], targets)[0].backward()
    grad = output.class_logits.grad[1].view(*GRID, K)
    inside = grad[3:12, 5:22, 1]  # points 14..46 and 22..86
    assert inside.nonzero().tolist() == [[4, 4], [8, 15]]
    assert inside[4, 4] < 0, "objects are learnt"
    assert inside[8, 15] < 0, "objects are learnt"
    assert grad[3:12, 5:22, 2].all(), "other classes learn"


def test_pieces_sum_up_to_the_loss_of_the_batch():
    output, targets = make_output(3), make_targets(4, 0, 2)
    whole, whole_parts = LOSS([output], targets)
    pieces = []
    for images in (slice(0, 1), slice(1, 3)):
        names = ("class_logits", "size_wh", "offset_xy")
        piece = replace(output, **{n: getattr(output, n)[images] for n in names})
        pieces.append(LOSS([piece], targets[images], num_objects=6))
    torch.testing.assert_close(sum(total for total, _ in pieces), whole)
    for name in (*NAMES, "objects", "conflicts"):
        torch.testing.assert_close(sum(parts[name] for _, parts in pieces), whole_parts[name])
    torch.testing.assert_close(whole, sum(whole_parts[name] for name in NAMES))


def test_the_lap_comes_when_the_targets_are_built():
    laps = []
    LOSS([make_output()], make_targets(2), None, laps.append)
    assert laps == ["match"]


def test_the_device_is_not_waited_for():
    """The meta device has no data, so reading a value raises."""
    output, names = make_output(2), ("class_logits", "size_wh", "offset_xy", "points_xy")
    output = replace(output, **{name: getattr(output, name).to("meta") for name in names})
    output = learnable(output)
    targets = [with_crowd(t, (1, [20.0, 10, 60, 50])).to("meta") for t in make_targets(3, 2)]
    total, parts = LOSS([output], targets)
    total.backward()
    assert {parts[name].device.type for name in NAMES} == {"meta"}


# --- boxes ---


def test_decoding_by_hand():
    output = make_output(1, (2, 3))
    output.offset_xy[0, 4] = torch.tensor([0.25, 1.5])
    output.size_wh[0, 4] = torch.tensor([10.0, -3.0])
    expected = [4 + 1 - 5, 4 + 6, 4 + 1 + 5, 4 + 6]  # negative sizes are 0
    assert output.boxes_xyxy[0, 4].tolist() == expected


def test_selected_boxes_are_those_of_all():
    output, slots = make_output(2), torch.tensor([3, 300, 3, 0])
    some = output.boxes_at(1, slots)
    assert "boxes_xyxy" not in vars(output), "computed on first use"
    assert torch.equal(output.boxes_xyxy[1, slots], some)
    assert (output.boxes_xyxy[..., 2:] >= output.boxes_xyxy[..., :2]).all()


# --- the network ---


def make_model(neck: str = "fpn", width: int = 8, **options) -> CenterNet:
    torch.manual_seed(0)
    backbone = make_backbone("tiny")
    neck = make_neck(neck, backbone.feature_info.channels(), 8)
    return CenterNet(backbone, K, neck=neck, width=width, **options)


def make_images(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, generator=seeded())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (160, 32)])
@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (6, 3)])
def test_shapes_and_a_finite_loss(training, size, counts):
    model = make_model().train(training)
    sizes_hw = torch.tensor([[size[0] - 3, size[1]], [size[0] - 7, size[1] - 9]])
    (output,) = model(make_images(2, size), sizes_hw, num_heads=7)
    grid = (size[0] // 4, size[1] // 4)
    slots = math.prod(grid)
    assert output.grid_hw == grid
    assert output.class_logits.shape == (2, slots, K)
    assert output.size_wh.shape == output.offset_xy.shape == (2, slots, 2)
    assert output.boxes_xyxy.shape == (2, slots, 4)
    assert torch.equal(output.points_xy, grid_points(*grid, 4))
    if training:
        hw = (size[0] - 7, size[1] - 9)
        total, _ = model.loss([output], make_targets(*counts, size_hw=hw))
        assert torch.isfinite(total)


def test_a_cell_reads_its_own_place_on_the_map():
    """Against hand-written heads, on a non-square map."""
    model, images = make_model().eval(), make_images()
    (output,) = model(images)
    feature = model.neck(model.backbone(images))
    for head, values, unit in (
        (model.heatmap, output.class_logits, 1),
        (model.size, output.size_wh, 4),
        (model.offset, output.offset_xy, 1),
    ):
        hidden = torch.relu(torch.conv2d(feature, head.features.weight, head.features.bias, 1, 1))
        maps = torch.einsum("bchw,oc->bhwo", hidden, head.output.weight[:, :, 0, 0])
        maps = unit * (maps + head.output.bias)
        torch.testing.assert_close(values.view(maps.shape), maps, rtol=1e-4, atol=1e-4)


def test_settings_are_heard():
    model = make_model(width=5, prior=0.02)
    assert model.heatmap.features.weight.shape[0] == 5
    scores = model.eval()(make_images())[0].class_logits.sigmoid()
    assert scores.median().item() == pytest.approx(0.02, rel=0.5)
    assert make_model().heatmap.output.bias[0].item() == pytest.approx(-2.19, abs=0.01)


def test_it_is_registered():
    assert DETECTORS["centernet"].load() is CenterNet
    assert DETECTORS["centernet"].peaks


@pytest.mark.parametrize("neck", sorted(NECKS))
@pytest.mark.parametrize("counts", [(4, 2), (0, 0)])
def test_every_parameter_has_a_gradient_in_every_step(neck, counts):
    model = make_model(neck)
    for name, parameter in model.named_parameters():
        if "bn" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)  # timm initialises residual branches to 0
    model.loss(model(make_images()), make_targets(*counts))[0].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, grad in gradients.items() if grad is None]
    dead = [name for name, grad in gradients.items() if not grad.any()]
    no_objects = not any(counts)
    assert not [n for n in dead if not (no_objects and n.startswith(("size.", "offset.")))]


def test_under_autocast_the_answer_is_float32():
    model, images = make_model(), make_images()
    exact = model(images)[0]
    with torch.autocast("cpu", torch.bfloat16):
        (output,) = model(images)
    total, _ = model.loss([output], make_targets(3, 2))
    total.backward()
    for name in ("class_logits", "size_wh", "offset_xy", "boxes_xyxy"):
        tensor = getattr(output, name)
        assert tensor.dtype == torch.float32, name
        assert not torch.equal(tensor, tensor.bfloat16().float()), "not rounded to bfloat16"
        torch.testing.assert_close(tensor, getattr(exact, name), rtol=0.1, atol=0.3)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_image_is_predicted_alike_alone_and_in_a_batch():
    model, images = make_model().eval(), make_images(3)
    sizes_hw = torch.tensor([[64, 96], [40, 61], [33, 96]])
    (together,) = model(images, sizes_hw)
    for i in range(3):
        (alone,) = model(images[i : i + 1], sizes_hw[i : i + 1])
        for name in ("class_logits", "boxes_xyxy"):
            a, b = getattr(alone, name)[0], getattr(together, name)[i]
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_nothing_is_answered_in_the_padding():
    model, images = make_model(), make_images()
    sizes_hw = torch.tensor([[64, 96], [41, 60]])
    assert torch.isfinite(model(images, sizes_hw)[0].class_logits).all(), "unmasked in training"
    (output,) = model.eval()(images, sizes_hw)
    silent = (output.class_logits == -torch.inf).all(dim=2).view(2, *GRID)
    assert not silent[0].any()
    expected = torch.ones(GRID, dtype=torch.bool)
    expected[:11, :15] = False  # the cell from 40 to 44 is partly inside
    assert torch.equal(silent[1], expected)
    assert torch.isfinite(output.class_logits.view(2, *GRID, K)[1, :11, :15]).all()
    inside = model(images)[0].class_logits
    assert torch.equal(output.class_logits[0], inside[0])


@pytest.mark.slow
def test_it_learns_an_image_by_heart():
    model = make_model(width=16)
    images = make_images()
    targets = [
        make_target([0, 2], [[4, 6, 30, 40], [50, 20, 90, 60]], SIZE),
        make_target([1], [[20, 10, 60, 50]], SIZE),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        total, _ = model.loss(model(images), targets)
        total.backward()
        optimizer.step()
    batch = top_k(model(images)[0], [SIZE] * 2, 2, peaks=True)
    for detections, target in zip(batch, targets, strict=True):
        for label, box in zip(target.gt_labels, target.gt_xyxy, strict=True):
            same = detections.labels == label
            assert iou_and_giou(detections.boxes_xyxy[same], box)[0].max() > 0.7
