"""Box geometry against scalar Python, torchvision and hand-worked examples.

Run: pytest tests/test_boxes.py
"""

import math

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from onenet.boxes import clip_to_images, grid_points, iou_and_giou, ltrb_to_xyxy
from tests.conftest import random_boxes, seeded


def scalar_iou_and_giou(a: list[float], b: list[float]) -> tuple[float, float]:
    overlap_w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    overlap_h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = overlap_w * overlap_h
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = overlap / union if union else 0.0
    return iou, iou - ((hull - union) / hull if hull else 0.0)


def test_grid_points_are_cell_centres_row_by_row():
    expected = [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]]
    assert grid_points(2, 3, 4).tolist() == expected


def test_distances_to_the_sides_become_a_box_around_the_point():
    points = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    ltrb = torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]], [[5, 6, 7, 8], [9, 1, 2, 3]]])
    assert ltrb_to_xyxy(points, ltrb).tolist() == [
        [[9, 18, 13, 24], [30, 40, 30, 40]],
        [[5, 14, 17, 28], [21, 39, 32, 43]],
    ]


def test_boxes_are_cut_at_the_border_of_the_image():
    boxes = torch.tensor([[-5.0, -6, 70, 50], [1, 2, 3, 4], [70, 50, 80, 60], [-9, -9, -1, -1]])
    expected = [[0, 0, 60, 40], [1, 2, 3, 4], [60, 40, 60, 40], [0, 0, 0, 0]]
    assert clip_to_images(boxes[None], [(40, 60)])[0].tolist() == expected


def test_iou_and_giou_equal_scalar_python_for_touching_nested_and_distant_boxes():
    generator = seeded()
    corners = torch.randint(0, 7, (2, 40, 2), generator=generator).float()
    boxes = torch.cat([corners.amin(0), corners.amax(0)], dim=1)  # many have no area
    iou, giou = iou_and_giou(boxes[:, None], boxes[None])
    for i, a in enumerate(boxes.tolist()):
        for j, b in enumerate(boxes.tolist()):
            expected = scalar_iou_and_giou(a, b)
            assert (iou[i, j].item(), giou[i, j].item()) == pytest.approx(expected, abs=1e-6)


def test_iou_and_giou_equal_torchvision_where_that_is_defined():
    a = random_boxes(30, (300, 500), seeded(1))
    b = random_boxes(20, (300, 500), seeded(2))
    iou, giou = iou_and_giou(a[:, None], b[None])
    torch.testing.assert_close(iou, box_iou(a, b))
    torch.testing.assert_close(giou, generalized_box_iou(a, b))


def test_pairs_in_a_row_are_the_diagonal_of_all_pairs():
    a, b = random_boxes(8, (30, 50), seeded(3)), random_boxes(8, (30, 50), seeded(4))
    for in_a_row, all_pairs in zip(
        iou_and_giou(a, b), iou_and_giou(a[:, None], b[None]), strict=True
    ):
        torch.testing.assert_close(in_a_row, all_pairs.diagonal())


def test_giou_by_hand():
    a = torch.tensor([0.0, 0, 2, 2])
    assert iou_and_giou(a, torch.tensor([1.0, 1, 3, 3])) == pytest.approx((1 / 7, 1 / 7 - 2 / 9))
    assert iou_and_giou(a, torch.tensor([4.0, 0, 6, 2])) == pytest.approx((0, -1 / 3))
    assert iou_and_giou(a, a) == (1, 1)


@pytest.mark.parametrize(
    "other", [[5, 5, 5, 5], [9, 9, 9, 9], [5, 5, 5, 9], [4, 4, 6, 6], [5, 5, 9, 5]]
)
def test_boxes_without_area_give_numbers_not_nan(other):
    point, other = [5.0, 5, 5, 5], [float(x) for x in other]
    got = iou_and_giou(torch.tensor(point), torch.tensor(other))
    assert not any(math.isnan(value) for value in got)
    assert got == pytest.approx(scalar_iou_and_giou(point, other), abs=1e-6)


def test_boxes_without_area_have_a_finite_gradient():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 9]], requires_grad=True)
    iou, giou = iou_and_giou(boxes[:, None], torch.tensor([[5.0, 5, 5, 5], [1, 1, 9, 9]])[None])
    (iou + giou).sum().backward()
    assert torch.isfinite(boxes.grad).all()


def test_identical_boxes_have_iou_one_at_any_size_and_place():
    for low, side in ((0.0, 0.01), (3.0, 7.0), (1000.3, 33.7), (1e5, 1e3)):
        box = torch.tensor([low, low, low + side, low + side])
        assert iou_and_giou(box, box) == pytest.approx((1, 1))
