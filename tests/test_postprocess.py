"""From predictions to detections: top_k against a loop, NMS against plain Python.

Run: pytest tests/test_postprocess.py
"""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from onenet.boxes import grid_points
from onenet.postprocess import nms_keep, nms_masks, suppress_non_peaks, top_k
from onenet.structures import Detections, HeadOutput, UndecodedOutput
from tests.conftest import random_boxes, random_output, seeded
from tests.test_boxes import scalar_iou_and_giou
from tests.test_costs import sigmoid


def scalar_top_k(output: HeadOutput, image: int, size_hw, k: int) -> list[tuple]:
    """(score, label, box) of all pairs, sorted by descending score, slot, label."""
    height, width = size_hw
    pairs = [
        (-logit, slot, label)
        for slot, logits in enumerate(output.class_logits[image].tolist())
        for label, logit in enumerate(logits)
    ]
    detections = []
    for minus_logit, slot, label in sorted(pairs)[:k]:
        x1, y1, x2, y2 = output.boxes_xyxy[image, slot].tolist()
        box = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
        if box[2] > box[0] and box[3] > box[1]:
            detections.append((sigmoid(-minus_logit), label, box))
    return detections


def assert_equals(detections: Detections, expected: list[tuple]) -> None:
    assert len(detections.scores) == len(expected)
    assert detections.labels.tolist() == [label for _, label, _ in expected]
    assert detections.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    boxes = torch.tensor([box for _, _, box in expected]).reshape(-1, 4)
    torch.testing.assert_close(detections.boxes_xyxy, boxes)


@pytest.mark.parametrize("k", [1, 7, 60, 100])
def test_top_k_equals_a_loop_over_slots_and_classes(k):
    output = random_output(3, 4, seeded())  # 60 pairs; some boxes leave the image
    sizes = [(40, 60), (20, 60), (36, 10)]
    for image, detections in enumerate(top_k(output, sizes, k)):
        assert_equals(detections, scalar_top_k(output, image, sizes[image], k))


@pytest.mark.parametrize("values", [1, 2, 5, 40])
@pytest.mark.parametrize(("grid_hw", "classes"), [((1, 1), 1), ((3, 7), 1), ((5, 3), 6)])
def test_equal_scores_are_ranked_by_slot_then_by_class(grid_hw, classes, values):
    """Few values give ties at the last rank, within a slot and between slots."""
    for seed in range(5):
        output = random_output(2, classes, seeded(seed), grid_hw)
        rounded = torch.randint(values, output.class_logits.shape, generator=seeded(seed))
        output = replace(output, class_logits=rounded.float())
        for k in (1, 4, 20, 100):
            for image, detections in enumerate(top_k(output, [(40, 60)] * 2, k)):
                assert_equals(detections, scalar_top_k(output, image, (40, 60), k))


def test_the_other_images_of_a_batch_change_no_bit():
    output = random_output(5, 7, seeded(), (9, 11))
    output.class_logits[1] = output.class_logits[1].round()  # ties in one image only
    sizes = [(36, 44), (20, 44), (36, 10), (30, 30), (36, 44)]
    for image, detections in enumerate(top_k(output, sizes, 13)):
        rows = slice(image, image + 1)
        alone = replace(
            output, class_logits=output.class_logits[rows], boxes_xyxy=output.boxes_xyxy[rows]
        )
        (expected,) = top_k(alone, sizes[rows], 13)
        for name, values in vars(expected).items():
            assert torch.equal(getattr(detections, name), values), name


@pytest.mark.parametrize("grid_hw", [(1, 1), (3, 5), (7, 4)])
def test_peaks_are_the_slots_that_no_neighbour_is_above(grid_hw):
    height, width = grid_hw
    logits = torch.randint(4, (2, height * width, 3), generator=seeded()).float()  # with ties
    result = suppress_non_peaks(logits, grid_hw)
    for image in range(2):
        for slot in range(height * width):
            y, x = divmod(slot, width)
            around = [
                v * width + u
                for v in range(max(0, y - 1), min(height, y + 2))
                for u in range(max(0, x - 1), min(width, x + 2))
            ]
            for label in range(3):
                value = logits[image, slot, label]
                peak = all(value >= logits[image, other, label] for other in around)
                assert result[image, slot, label] == (value if peak else -torch.inf)


def test_what_is_no_peak_is_no_answer():
    points = grid_points(2, 2, 8)
    output = UndecodedOutput(
        class_logits=torch.tensor([[[0.0, 3.0], [1.0, 2.0], [5.0, 1.0], [4.0, 0.0]]]),
        ltrb=torch.full((1, 4, 4), 4.0),
        points_xy=points,
        grid_hw=(2, 2),
    )
    (detections,) = top_k(output, [(16, 16)], peaks=True)
    assert detections.labels.tolist() == [0, 1]
    assert detections.scores.tolist() == pytest.approx([sigmoid(5), sigmoid(3)])
    assert len(top_k(output, [(16, 16)])[0].scores) == 8


def test_boxes_that_are_decoded_late_are_the_same():
    generator = seeded()
    points = grid_points(4, 6, 8)
    output = UndecodedOutput(
        class_logits=torch.randn(2, 24, 3, generator=generator),
        ltrb=8 * torch.randn(2, 24, 4, generator=generator),  # some below 0
        points_xy=points,
        grid_hw=(4, 6),
    )
    sizes = [(32, 48), (30, 40)]
    expected = torch.cat([points, points], dim=1) + output.ltrb.clamp(min=0) * torch.tensor(
        [-1, -1, 1, 1]
    )
    torch.testing.assert_close(output.boxes_xyxy, expected)
    decoded = HeadOutput(output.class_logits, expected, points)
    for image, detections in enumerate(top_k(output, sizes, 20)):
        assert_equals(detections, scalar_top_k(decoded, image, sizes[image], 20))


def test_the_default_is_the_best_hundred_without_threshold():
    points = grid_points(8, 8, 4)
    boxes = torch.cat([points - 1, points + 1], dim=1)[None]
    logits = torch.randn(1, 64, 3, generator=seeded()) - 50
    (detections,) = top_k(HeadOutput(logits, boxes, points), [(32, 32)])
    assert len(detections.scores) == 100
    torch.testing.assert_close(
        detections.scores, logits.flatten().sigmoid().sort(descending=True).values[:100]
    )


def test_fewer_pairs_than_k_are_all_answered():
    """32×32 pixels at stride 4 with one class: 64 slots."""
    points = grid_points(8, 8, 4)
    boxes = torch.cat([points - 1, points + 1], dim=1)[None]
    logits = torch.randn(1, 64, 1, generator=seeded())
    (detections,) = top_k(HeadOutput(logits, boxes, points), [(32, 32)])
    assert len(detections.scores) == 64
    assert sorted(detections.boxes_xyxy.tolist()) == sorted(boxes[0].tolist())


def test_boxes_are_clipped_and_what_is_left_empty_is_dropped():
    boxes = torch.tensor([[[-5.0, -5, 70, 50], [60, 3, 70, 9], [9, 9, 9, 20], [1, 2, 3, 4]]])
    logits = torch.tensor([[[4.0], [3], [2], [1]]])
    (detections,) = top_k(HeadOutput(logits, boxes, torch.zeros(4, 2)), [(40, 60)])
    assert detections.boxes_xyxy.tolist() == [[0, 0, 60, 40], [1, 2, 3, 4]]
    assert detections.scores.tolist() == pytest.approx([sigmoid(4), sigmoid(1)])


def test_one_slot_may_answer_two_classes():
    logits = torch.tensor([[[2.0, 1.0], [-3.0, -4.0]]])
    boxes = torch.tensor([[[1.0, 1, 5, 5], [2, 2, 6, 6]]])
    (detections,) = top_k(HeadOutput(logits, boxes, torch.zeros(2, 2)), [(10, 10)], k=3)
    assert detections.labels.tolist() == [0, 1, 0]
    assert detections.boxes_xyxy.tolist() == [[1, 1, 5, 5], [1, 1, 5, 5], [2, 2, 6, 6]]


def test_nothing_is_left_where_all_boxes_are_empty():
    boxes = torch.full((1, 4, 4), 9.0)
    (detections,) = top_k(HeadOutput(torch.zeros(1, 4, 2), boxes, torch.zeros(4, 2)), [(40, 60)])
    assert detections.boxes_xyxy.shape == (0, 4)
    assert nms_keep(detections).shape == (0,)


# --- NMS ---


def plain_nms(detections: Detections, threshold: float) -> list[bool]:
    """Greedy per class: a box is dropped if a kept one overlaps it by more."""
    boxes, labels = detections.boxes_xyxy.tolist(), detections.labels.tolist()
    keep: list[int] = []
    for at in range(len(boxes)):  # best score first
        rivals = [other for other in keep if labels[other] == labels[at]]
        if all(scalar_iou_and_giou(boxes[at], boxes[o])[0] <= threshold for o in rivals):
            keep.append(at)
    return [at in keep for at in range(len(boxes))]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("classes", [1, 3])
def test_nms_equals_plain_python(threshold, classes):
    generator = seeded(classes)
    for _ in range(10):
        clusters = random_boxes(6, (80, 80), generator).repeat(10, 1)
        boxes = clusters + 3 * torch.rand(60, 4, generator=generator)
        detections = Detections(
            boxes,
            torch.rand(60, generator=generator).sort(descending=True).values,
            torch.randint(classes, (60,), generator=generator),
        )
        keep = nms_keep(detections, threshold)
        assert keep.tolist() == plain_nms(detections, threshold)
        assert 0 < keep.sum() < 60


@pytest.mark.parametrize("counts", [[0], [1], [0, 0], [100], [3, 0, 100, 1, 57]])
@pytest.mark.parametrize("classes", [1, 80])
def test_nms_at_several_thresholds_equals_torchvision(counts, classes):
    generator = seeded(classes)
    ious = (0.3, 0.9, 0.5, 1 / 3)  # in any order
    batch = [random_detections(count, classes, generator) for count in counts]
    masks_of = nms_masks(batch, ious)
    for detections, masks in zip(batch, masks_of, strict=True):
        assert masks.shape == (4, len(detections.scores))
        for mask, iou in zip(masks, ious, strict=True):
            columns = detections.boxes_xyxy, detections.scores, detections.labels
            assert mask.nonzero()[0].tolist() == sorted(batched_nms(*columns, iou).tolist())


def random_detections(count: int, classes: int, generator: torch.Generator) -> Detections:
    """Several detections around each of some places, some with equal scores."""
    places = random_boxes(1 + count // 6, (80, 130), generator)
    jitter = 4 * torch.rand(count, 4, generator=generator)
    return Detections(
        places.repeat(6, 1)[:count] + jitter,
        torch.randint(50, (count,), generator=generator).div(50).sort(descending=True).values,
        torch.randint(classes, (count,), generator=generator),
    )


@pytest.mark.parametrize(("other", "iou", "kept"), [
    ([0.0, 0, 10, 3], 0.3, False),  # float32's quotient 0.3 is above the threshold, a double
    ([0.0, 0, 10, 5], 0.5, True),
    ([0.0, 0, 10, 7], 0.7, True),  # and its 0.7 is below it
])  # fmt: skip
def test_nms_at_a_threshold_that_equals_the_iou(other, iou, kept):
    boxes = torch.tensor([[0.0, 0, 10, 10], other])
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    assert nms_keep(detections, iou).tolist() == [True, kept]
    assert nms_masks([detections], [iou])[0].tolist() == [[True, kept]]


def test_nms_leaves_boxes_of_other_classes_alone():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    detections = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
    assert nms_keep(detections).tolist() == [True, True, False]


@pytest.mark.parametrize(("side", "kept"), [(4.9, True), (5.1, False)])
def test_the_default_threshold_is_an_iou_of_one_half(side, kept):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, side]])
    assert box_iou(boxes[:1], boxes[1:]).item() == pytest.approx(side / 10)
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    assert nms_keep(detections).tolist() == [True, kept]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_answers_like_the_cpu():
    output = random_output(2, 4, seeded())
    sizes = [(40, 60), (40, 60)]
    there = HeadOutput(
        output.class_logits.cuda(), output.boxes_xyxy.cuda(), output.points_xy.cuda()
    )
    for a, b in zip(top_k(output, sizes), top_k(there, sizes), strict=True):
        torch.testing.assert_close(a.boxes_xyxy, b.boxes_xyxy.cpu())
        assert torch.equal(nms_keep(a), nms_keep(b))
