"""Scores against plain pycocotools and AP by hand; duplicates against scalar counts.

Run: pytest tests/test_coco_metrics.py
"""

import io
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from analysis.speed.evaluation import plain_pycocotools, twelve_numbers
from onenet.data.annotations import Annotations
from onenet.evaluation import duplicates, overlaps, per_image
from onenet.evaluation.coco_metrics import Scorer, area_ranges
from onenet.evaluation.evaluators import EVALUATORS
from onenet.evaluation.overlaps import Overlaps
from onenet.evaluation.predictions import Predictions
from onenet.system.files import REPOSITORY
from tests.conftest import make_annotations, make_predictions

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in pycocotools' order
CLASSES = 4  # the last one has no objects


# --- data ---


def random_data(seed: int = 0, images: int = 12) -> tuple[Annotations, Predictions]:
    """Objects of all sizes, some of them crowds, and detections: near objects (some twice, some
    of a wrong class), in crowds, and many false positives. Image ids are unordered."""
    rng = np.random.default_rng(seed)

    def box(least: float, most: float) -> np.ndarray:
        wh = np.exp(rng.uniform(np.log(least), np.log(most), 2))
        corner = rng.uniform(0, np.array([400, 300]) - wh)
        return np.concatenate([corner, corner + wh])

    objects, detections = [], []
    for image in range(images):
        of_image = []
        for _ in range(rng.integers(0, 7)):
            here, label, crowd = box(6, 250), int(rng.integers(CLASSES - 1)), rng.random() < 0.25
            of_image.append((label, here, crowd))
            for _ in range(rng.integers(0, 4)):
                side = np.tile(here[2:] - here[:2], 2)
                near = here + rng.uniform(-0.15, 0.15, 4) * side
                guess = label if rng.random() < 0.8 else int(rng.integers(CLASSES))
                detections.append((image, near, rng.uniform(0.2, 1), guess))
        objects.append(of_image)
        for _ in range(rng.integers(0, 12)):
            detections.append((image, box(6, 250), rng.uniform(0, 0.8), int(rng.integers(CLASSES))))
    ids = rng.permutation(np.arange(100, 100 + 3 * images, 3))
    annotations = make_annotations([(300, 400)] * images, objects, CLASSES, ids)
    return annotations, make_predictions(*zip(*detections, strict=True))


def tied_data(seed: int) -> tuple[Annotations, Predictions]:
    """The same on a 25-pixel grid, with scores in tenths: equal boxes, IoUs and scores, IoUs of
    exactly 0.5, and repeated objects."""
    annotations, predictions = random_data(seed)

    def on_grid(boxes: np.ndarray) -> np.ndarray:
        boxes = 25 * np.round(boxes / 25)
        return np.hstack([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2] + 25)])

    rows = np.arange(len(annotations.labels))
    twice = np.repeat(rows, np.where(rows % 3 == 0, 2, 1))
    boxes = on_grid(annotations.boxes_xyxy)[twice]
    tied = replace(
        annotations,
        first=np.searchsorted(twice, annotations.first),
        boxes_xyxy=boxes,
        labels=annotations.labels[twice],
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        crowd=annotations.crowd[twice],
    )
    return tied, make_predictions(
        predictions.image,
        on_grid(predictions.boxes_xyxy),
        np.round(predictions.scores, 1),
        predictions.labels,
    )


def dense_data(seed: int) -> tuple[Annotations, Predictions]:
    """Each detection overlaps several objects and crowds, often with the same IoU."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corners = 10.0 * rng.integers(0, 4, (count, 2))
        return np.hstack([corners, corners + 10 * rng.integers(3, 6, (count, 2))])

    objects = [
        list(zip(rng.integers(0, 2, 12), boxes(12), rng.random(12) < 0.3, strict=True))
        for _ in range(8)
    ]
    annotations = make_annotations([(100, 100)] * 8, objects, CLASSES)
    count = 8 * 30
    columns = boxes(count), np.round(rng.random(count), 1), rng.integers(0, 2, count)
    return annotations, make_predictions(np.arange(count) // 30, *columns)


def one_class(seed: int) -> tuple[Annotations, Predictions]:
    annotations, predictions = random_data(seed)
    alone = replace(
        annotations, category_ids=[7], category_names=["a"], labels=0 * annotations.labels
    )
    return alone, replace(predictions, labels=0 * predictions.labels)


def nothing() -> Predictions:
    return make_predictions(*(np.zeros(0, dtype=kind) for kind in (int, float, float, int)))


def rows_of(predictions: Predictions, rows: np.ndarray) -> Predictions:
    return Predictions(
        predictions.image[rows],
        predictions.boxes_xyxy[rows],
        predictions.scores[rows],
        predictions.labels[rows],
        {iou: keep[rows] for iou, keep in predictions.nms_keep.items()},
    )


def truth_of(annotations: Annotations) -> COCO:
    truth = COCO()
    truth.dataset = annotations.to_coco()
    truth.createIndex()
    return truth


def pycocotools_numbers(
    annotations: Annotations, predictions: Predictions, area_scale: float = 1.0
) -> np.ndarray:
    """All 12 numbers, 0..100."""
    results = [predictions.to_coco(annotations)]
    return 100 * plain_pycocotools(annotations.to_coco(), results, area_scale)[0]


each = pytest.mark.parametrize("backend", EVALUATORS)


# --- AP and AR ---


def test_the_random_data_holds_what_the_tests_are_about():
    annotations, predictions = random_data()
    assert annotations.crowd.any()
    assert (np.diff(annotations.image_ids) < 0).any()
    assert (np.diff(annotations.first) == 0).any()
    assert CLASSES - 1 not in annotations.labels
    assert CLASSES - 1 in predictions.labels
    assert not predictions.nms_keep[0.5].all()
    assert (predictions.nms_keep[0.5] != predictions.nms_keep[0.7]).any()


def assert_equal_to_pycocotools(annotations, predictions, backend, area_scale=1.0) -> None:
    """All 12 numbers and the named metrics, without and with NMS."""
    metrics = Scorer(annotations, area_scale, backend).score(predictions).metrics
    evaluator = EVALUATORS[backend](annotations)
    loaded = evaluator.load(predictions)
    for suffix, keep in (
        ("", np.ones(len(loaded), bool)),
        ("_nms", predictions.nms_keep[0.5]),
    ):
        expected = pycocotools_numbers(annotations, rows_of(predictions, keep), area_scale)
        numbers = twelve_numbers(evaluator.evaluate(loaded[keep], area_ranges(area_scale)))
        least = 1e-9 if backend == "faster" else 0  # the others are bit-identical
        np.testing.assert_allclose(100 * numbers, expected, rtol=0, atol=least)
        named = [*zip(NUMBERS, expected[:6], strict=True), ("AR100", expected[8])]
        for name, value in named:
            assert metrics[name + suffix] == (
                None if value == -100 else pytest.approx(value, abs=1e-9)
            ), name


@each
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", [random_data, tied_data, dense_data, one_class])
def test_the_scorer_equals_plain_pycocotools(data, seed, backend):
    assert_equal_to_pycocotools(*data(seed), backend)


@each
@pytest.mark.parametrize("area_scale", [0.05, 4.0])
def test_it_does_so_with_other_bounds_of_the_areas(area_scale, backend):
    assert_equal_to_pycocotools(*random_data(3), backend, area_scale)


@each
def test_it_does_so_where_detections_are_of_some_images_and_classes_only(backend):
    annotations, predictions = random_data(4)
    few = (predictions.image % 5 == 0) & (predictions.labels == 1)
    assert_equal_to_pycocotools(annotations, rows_of(predictions, few), backend)
    missed = rows_of(predictions, predictions.labels == CLASSES - 1)
    assert_equal_to_pycocotools(annotations, missed, backend)
    first = rows_of(predictions, np.arange(len(predictions.scores)) == 0)
    assert_equal_to_pycocotools(annotations, first, backend)


@each
def test_it_does_so_where_only_crowds_are_found(backend):
    annotations, predictions = random_data(5)
    crowds = replace(annotations, crowd=np.ones_like(annotations.crowd))
    assert_equal_to_pycocotools(crowds, predictions, backend)


@pytest.mark.parametrize(
    ("backend", "method"),
    [
        ("hotcoco", "hotcoco.COCOeval.evaluate"),
        ("faster", "faster_coco_eval.COCOeval_faster.evaluate"),
        ("pycocotools", "pycocotools.cocoeval.COCOeval.evaluate"),
    ],
)
def test_the_backend_is_the_package_that_computes(backend, method, monkeypatch):
    annotations, predictions = random_data()
    evaluator = EVALUATORS[backend](annotations)
    loaded = evaluator.load(predictions)

    def called(*_):
        raise RuntimeError(method)

    monkeypatch.setattr(method, called)
    with pytest.raises(RuntimeError, match=method):
        evaluator.evaluate(loaded, area_ranges(1.0))


@pytest.mark.parametrize("seed", range(2))
def test_numbers_with_nms_are_those_of_the_detections_that_nms_leaves(seed):
    annotations, predictions = random_data(seed)
    metrics = Scorer(annotations).score(predictions).metrics
    for iou, name in ((0.6, "AP_nms_06"), (0.7, "AP_nms_07")):
        expected = pycocotools_numbers(annotations, rows_of(predictions, predictions.nms_keep[iou]))
        assert metrics[name] == pytest.approx(expected[0], abs=1e-9)
    assert metrics["nms_gain"] == pytest.approx(metrics["AP_nms"] - metrics["AP"])
    assert metrics["AP50_nms_gain"] == pytest.approx(metrics["AP50_nms"] - metrics["AP50"])
    assert metrics["nms_gain"] != 0


def two_images(second_box=(0, 0, 10, 10)) -> tuple[Annotations, Predictions]:
    """One object each. By score: a hit, a false positive, a box for the second object."""
    box = (0, 0, 10, 10)
    annotations = make_annotations([(40, 40)] * 2, [[(0, box)], [(0, box)]], classes=1)
    boxes = [box, (20, 20, 30, 30), second_box]
    return annotations, make_predictions([0, 0, 1], boxes, [0.9, 0.8, 0.7], [0, 0, 0])


@each
def test_ap_by_hand(backend):
    annotations, predictions = two_images()
    metrics, notes, _ = Scorer(annotations, backend=backend).score(predictions)
    # Precision 1 up to recall 0.5 (51 of the 101 points), 2/3 beyond (50).
    by_hand = 100 * (51 + 50 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "APs", "AP_nms", "AP_nms_06", "AP_nms_07"):
        assert metrics[name] == pytest.approx(by_hand), name
    assert metrics["AR100"] == 100
    assert metrics["nms_gain"] == 0
    assert metrics["APm"] is metrics["APl_nms"] is None
    assert notes["APm"] == "there are no medium objects to find"
    assert notes["APl_nms"] == "there are no large objects to find"
    assert set(notes) == {"APm", "APl", "APm_nms", "APl_nms"}


def test_ap_by_hand_with_a_box_that_is_good_enough_at_three_thresholds_only():
    annotations, predictions = two_images(second_box=(0, 0, 10, 6.2))  # IoU 0.62
    metrics = Scorer(annotations).score(predictions).metrics
    high, low = 100 * (51 + 50 * 2 / 3) / 101, 100 * 51 / 101
    assert metrics["AP"] == pytest.approx((3 * high + 7 * low) / 10)
    assert metrics["AP50"] == pytest.approx(high)
    assert metrics["AP75"] == pytest.approx(low)
    assert metrics["AR100"] == pytest.approx(100 * (3 * 1 + 7 * 0.5) / 10)


def test_perfect_detections_score_a_hundred():
    annotations, _ = random_data()
    single = ~annotations.crowd
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    predictions = make_predictions(
        image[single],
        annotations.boxes_xyxy[single],
        np.random.default_rng(0).random(single.sum()),
        annotations.labels[single],
    )
    metrics = Scorer(annotations).score(predictions).metrics
    for name in (*NUMBERS, "AR100"):
        assert metrics[name] == pytest.approx(100), name
    assert metrics["duplicates_per_object"] == 0


@each
def test_no_detections_at_all_score_zero(backend):
    metrics, notes, _ = Scorer(two_images()[0], backend=backend).score(nothing())
    for name in ("AP", "AP50", "AP75", "APs", "AR100", "nms_gain", "AP50_nms_gain"):
        assert metrics[name] == 0, name
    for name in ("AP_nms", "AP50_nms", "AP75_nms", "APs_nms", "AR100_nms", "AP_nms_06"):
        assert metrics[name] == 0, name
    assert metrics["APm"] is None
    assert notes["APm"] == notes["APm_nms"] == "there are no medium objects to find"
    assert metrics["duplicates_per_object"] is metrics["score_threshold"] is None
    assert notes["duplicates_per_object"] == notes["score_threshold"] == "no object was found"


def test_a_crowd_is_no_object_to_find():
    objects = [[(0, (0, 0, 10, 10)), (0, (0, 0, 200, 200), True)]]
    annotations = make_annotations([(300, 300)], objects, classes=1)
    for predictions in (nothing(), make_predictions([0], [(0, 0, 10, 10)], [0.5], [0])):
        metrics, notes, _ = Scorer(annotations).score(predictions)
        assert metrics["APs"] == pytest.approx(100 if len(predictions.scores) else 0)
        assert metrics["APl"] is None
        assert notes["APl"] == "there are no large objects to find"


@each
@pytest.mark.parametrize("detected", [True, False])
def test_without_objects_nothing_is_defined(detected, backend):
    annotations = make_annotations([(40, 40)] * 2, [[], []], classes=1)
    scorer = Scorer(annotations, backend=backend)
    metrics, notes, _ = scorer.score(two_images()[1] if detected else nothing())
    assert set(metrics.values()) == {None}
    assert notes["AP"] == notes["nms_gain"] == "there are no objects to find"
    assert set(notes) == set(metrics)


def test_a_number_is_none_exactly_where_a_note_says_why():
    for seed in range(2):
        annotations, predictions = random_data(seed)
        metrics, notes, _ = Scorer(annotations).score(predictions)
        assert {name for name, value in metrics.items() if value is None} == set(notes)


def test_the_bounds_of_small_medium_and_large_scale_with_the_image():
    """Half-size images with quarter bounds score as full-size images with COCO's."""
    annotations, predictions = random_data()
    half = replace(
        annotations,
        boxes_xyxy=annotations.boxes_xyxy / 2,
        areas=annotations.areas / 4,
    )
    half_predictions = replace(predictions, boxes_xyxy=predictions.boxes_xyxy / 2)
    whole = Scorer(annotations).score(predictions).metrics
    relative = Scorer(half, area_scale=0.25).score(half_predictions).metrics
    fixed = Scorer(half).score(half_predictions).metrics
    for name in NUMBERS:
        assert relative[name] == pytest.approx(whole[name], abs=1e-6), name
    assert fixed["APl"] != pytest.approx(whole["APl"], abs=0.1)
    assert fixed["AP"] == pytest.approx(whole["AP"], abs=1e-6)


def test_the_area_of_an_object_is_that_of_the_file_not_of_the_box():
    annotations, predictions = two_images()
    masks = replace(annotations, areas=np.array([2000.0, 20_000.0]))
    metrics = Scorer(masks).score(predictions).metrics
    assert metrics["APs"] is None
    assert metrics["APm"] is not None
    assert metrics["APl"] is not None


def test_results_name_images_and_categories_by_the_ids_of_the_file():
    annotations = make_annotations([(40, 40)] * 2, [[], []], classes=3, image_ids=[7, 5])
    predictions = make_predictions([0, 1], [(1, 2, 4, 8), (0, 0, 5.12345, 5)], [0.5, 0.25], [2, 0])
    assert predictions.to_coco(annotations) == [
        {"image_id": 7, "bbox": [1, 2, 3, 6], "score": 0.5, "category_id": 8},
        {"image_id": 5, "bbox": [0, 0, 5.123, 5], "score": 0.25, "category_id": 2},
    ]


# --- TIDE ---

BOX, LOW, FAR = (0, 0, 10, 10), (0, 0, 10, 4), (20, 20, 30, 30)  # LOW has IoU 0.4 with BOX
HIT = (0, BOX, 0.9, 0)


def tide(*detections: tuple, labels: tuple[int, int] = (0, 0)) -> dict[str, float]:
    """Nonzero errors in points of AP50; each of two images has one object, BOX."""
    annotations = make_annotations([(40, 40)] * 2, [[(label, BOX)] for label in labels], 2)
    metrics = Scorer(annotations).score(make_predictions(*zip(*detections, strict=True))).metrics
    return {name: v for name, v in metrics.items() if name.startswith("dAP") and v}


# With one class and one of two objects found, AP50 is 51 of the 101 recall points.
HALF = 100 * 50 / 101


@pytest.mark.parametrize(
    ("error", "detections", "points"),
    [
        ("cls", [HIT, (1, BOX, 0.8, 1)], HALF),  # with the right class, it is a hit
        ("loc", [HIT, (1, LOW, 0.8, 0)], HALF),  # with the right box, it is a hit
        ("miss", [HIT], HALF),  # without the object, all are found
        # The second hit follows the duplicate: at precision 2/3 instead of 1.
        ("dupe", [HIT, (0, BOX, 0.8, 0), (1, BOX, 0.7, 0)], HALF / 3),
        # Both hits follow the false positive: precision 1/2 and 2/3, interpolated to 2/3.
        ("bkg", [HIT, (1, FAR, 0.95, 0), (1, BOX, 0.8, 0)], 100 / 3),
    ],
)
def test_tides_errors_by_hand(error, detections, points):
    assert tide(*detections)[f"dAP_{error}"] == pytest.approx(points)
    alone = {"cls", "loc", "miss", "dupe", "bkg"} - {error}
    assert not {f"dAP_{other}" for other in alone} & tide(*detections).keys()


def test_tides_error_of_class_and_box_by_hand():
    """A class-0 detection with IoU 0.4 to a class-1 object outranks the hit: AP50 1/2."""
    errors = tide(HIT, (1, LOW, 0.95, 0), labels=(0, 1))
    assert errors["dAP_both"] == pytest.approx(100 * (1 - 1 / 2) / 2)  # the mean of two classes


def test_nms_takes_the_duplicates_from_tides_errors():
    errors = tide(HIT, (0, BOX, 0.8, 0), (1, BOX, 0.7, 0))
    assert errors.keys() == {"dAP_dupe"}


def test_tide_does_not_count_what_lies_in_a_crowd():
    objects = [[(0, BOX), (0, (0, 0, 30, 30), True)], [(0, BOX)]]
    annotations = make_annotations([(40, 40)] * 2, objects, 1)
    inside = (0, (12, 12, 28, 28), 0.95, 0)
    predictions = make_predictions(*zip(inside, HIT, (1, BOX, 0.8, 0), strict=True))
    metrics = Scorer(annotations).score(predictions).metrics
    assert metrics["AP50"] == 100
    assert not any(value for name, value in metrics.items() if name.startswith("dAP"))


# --- duplicates ---


def scalar_count(scores, labels, ious, gt_labels, least: float) -> tuple[int, int]:
    """Objects found, and duplicates, among detections scoring at least `least`."""
    matched: set[int] = set()
    left_over = []
    for at in sorted(range(len(scores)), key=lambda at: (-scores[at], at)):
        if scores[at] < least:
            continue
        fitting = [
            gt
            for gt in range(len(gt_labels))
            if gt_labels[gt] == labels[at] and ious[at][gt] >= 0.5
        ]
        free = [gt for gt in fitting if gt not in matched]
        if free:
            matched.add(max(free, key=lambda gt: (ious[at][gt], -gt)))
        elif fitting:
            left_over.append(at)
    return len(matched), len(left_over)


def match(images: list[tuple]) -> duplicates.Matching:
    """`images`: per image, scores [D] in any order, labels [D], IoUs [D, N] with its objects, and
    their labels [N]."""
    first_row = first_object = 0
    columns = []
    for scores, labels, ious, gt_labels in images:
        near = (np.array(labels)[:, None] == np.array(gt_labels)) & (ious >= 0.5)
        detection, object_ = np.nonzero(near)
        turn = np.argsort(np.argsort(-scores, kind="stable"))
        columns.append((detection + first_row, object_ + first_object, ious[near], scores, turn))
        first_row, first_object = first_row + len(scores), first_object + len(gt_labels)
    *pairs, scores, turn = (np.concatenate(column) for column in zip(*columns, strict=True))
    return duplicates.match(Overlaps(*pairs), scores, turn)


def random_images(count: int) -> list[tuple]:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        detections, objects = rng.integers(0, 15), rng.integers(0, 9)
        images.append(
            (
                np.round(rng.random(detections), 1),  # many ties
                rng.integers(0, 2, detections),
                np.round(rng.random((detections, objects)), 1),
                rng.integers(0, 2, objects),
            )
        )
    return images


def test_the_iou_is_cocoevals_also_in_crowds_and_of_boxes_without_area():
    rng = np.random.default_rng(0)
    a, b = (np.hstack([20 * rng.random((60, 2)), 15 * rng.random((60, 2))]) for _ in range(2))
    a[:5, 2:], b[5:10, 2:], b[10:20] = 0, 0, a[10:20]
    crowd = rng.random(60) < 0.5
    for one, other, many in zip(a, b, crowd, strict=True):
        expected = mask.iou(one[None], other[None], [int(many)]).item()
        iou = overlaps.coco_iou(one[None], other[None], np.array([many])).item()
        assert iou == pytest.approx(expected, abs=1e-12)


def test_duplicates_equal_a_scalar_count_at_every_threshold():
    images = random_images(200)
    most = 0
    for image in images:
        matching = match([image])
        for least in (0.0, 0.25, 0.5, 0.75):
            expected = scalar_count(*(column.tolist() for column in image), least)
            counts = (
                (matching.matched_scores >= least).sum(),
                (matching.duplicate_scores >= least).sum(),
            )
            assert counts == expected
            most = max(most, expected[1])
    assert most > 3


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_duplicates_per_object_equals_a_scalar_count_over_all_images(share):
    images = random_images(60)
    matching = match(images)
    all_matched = sum(scalar_count(*(c.tolist() for c in image), 0.0)[0] for image in images)
    needed = math.ceil(share * all_matched)
    candidates = sorted({s for image in images for s in image[0].tolist()}, reverse=True)
    for least in candidates:  # the highest threshold that finds enough objects
        counts = [scalar_count(*(c.tolist() for c in image), least) for image in images]
        if sum(matched for matched, _ in counts) >= needed:
            break
    assert duplicates.threshold(matching, share) == least
    ratio = sum(extra for _, extra in counts) / sum(matched for matched, _ in counts)
    assert duplicates.per_object(matching, share) == pytest.approx(ratio)


def image_of(*detections: tuple[float, int, list[float]], gt_labels=(0,)) -> tuple:
    scores, labels, ious = zip(*detections, strict=True)
    return np.array(scores), np.array(labels), np.array(ious), np.array(gt_labels)


def test_an_object_with_three_boxes_has_two_duplicates():
    three = image_of((0.7, 0, [0.9]), (0.9, 0, [0.6]), (0.8, 0, [0.5]))
    matching = match([three])
    assert matching.matched_scores.tolist() == [0.9]
    assert sorted(matching.duplicate_scores) == [0.7, 0.8]
    faint = image_of((0.1, 0, [0.9]))
    assert duplicates.per_object(match([three, faint]), 0.9) == 1  # 2 duplicates, 2 objects found
    equal = image_of(*[(0.1, 0, [0.9])] * 3)
    assert duplicates.per_object(match([three, equal]), 0.9) == 2


def test_only_boxes_of_the_class_and_on_the_object_are_duplicates():
    matching = match([image_of((0.9, 0, [0.9]), (0.8, 1, [0.9]), (0.7, 0, [0.49]))])
    assert matching.duplicate_scores.tolist() == []


def test_duplicates_below_the_threshold_are_not_counted():
    first = image_of((0.9, 0, [0.9]), (0.3, 0, [0.9]), (0.6, 0, [0.8]))
    matching = match([first, image_of((0.5, 0, [0.9]))])
    assert duplicates.threshold(matching, 0.9) == 0.5
    assert duplicates.per_object(matching, 0.9) == 0.5
    assert duplicates.threshold(matching, 0.5) == 0.9
    assert duplicates.per_object(matching, 0.5) == 0


def test_a_box_between_two_objects_takes_the_free_one():
    matching = match([image_of((0.9, 0, [0.9, 0.6]), (0.8, 0, [0.8, 0.6]), gt_labels=(0, 0))])
    assert sorted(matching.matched_scores) == [0.8, 0.9]
    assert not len(matching.duplicate_scores)


def test_nothing_found_has_no_duplicates_per_object():
    assert duplicates.per_object(duplicates.find(nothing(), random_data()[0]), 0.9) is None
    assert duplicates.per_object(match([image_of((0.9, 1, [0.9]))]), 0.9) is None


@pytest.mark.parametrize("data", [random_data, tied_data, dense_data])
def test_duplicates_of_a_data_set_are_those_of_its_images(data, monkeypatch):
    monkeypatch.setattr(overlaps, "BLOCK", 7)
    annotations, predictions = data(1)
    images = []
    for image in range(len(annotations)):
        of_image = predictions.image == image
        single = ~annotations.crowd[annotations.rows(image)]
        boxes = annotations.boxes_xyxy[annotations.rows(image)][single]
        detected = torch.from_numpy(predictions.boxes_xyxy[of_image])
        images.append(
            (
                predictions.scores[of_image],
                predictions.labels[of_image],
                box_iou(detected, torch.from_numpy(boxes)).numpy(),
                annotations.labels[annotations.rows(image)][single],
            )
        )
    expected, matching = match(images), duplicates.find(predictions, annotations)
    assert sorted(matching.matched_scores) == sorted(expected.matched_scores)
    assert sorted(matching.duplicate_scores) == sorted(expected.duplicate_scores)
    assert len(matching.duplicate_scores) > 3


def test_the_score_of_a_data_set_counts_duplicates_without_crowds():
    box = np.array([10.0, 10, 50, 50])
    objects = [[(0, box)], [(0, box + 5), (0, box, True)]]
    annotations = make_annotations([(80, 80)] * 2, objects, classes=1)
    boxes = [box, box + 1, box + 2, box + 5, box, box]
    predictions = make_predictions(
        [0, 0, 0, 1, 1, 1], boxes, [0.9, 0.8, 0.7, 0.6, 0.95, 0.5], [0] * 6
    )
    metrics = Scorer(annotations).score(predictions).metrics
    # Image 1: two duplicates. Image 2: the box at 0.95 finds the object (IoU 0.62), the others are
    # duplicates. At 0.9 both objects are found, without duplicates.
    assert metrics["score_threshold"] == 0.9
    assert metrics["duplicates_per_object"] == 0
    faint = replace(predictions, scores=np.where(predictions.image == 0, predictions.scores, 0.4))
    metrics = Scorer(annotations).score(faint).metrics
    assert metrics["score_threshold"] == 0.4
    assert metrics["duplicates_per_object"] == (2 + 2) / 2
    assert metrics["duplicates_per_object_half_recall"] == 0
    only_crowd = make_annotations([(80, 80)] * 2, [[(0, box, True)], []], classes=1)
    metrics = Scorer(only_crowd).score(predictions).metrics
    assert metrics["duplicates_per_object"] is None


# --- per_image.npz ---


def stored(annotations: Annotations, predictions: Predictions) -> tuple[dict, int]:
    """The arrays read back from the file, and its size."""
    file = io.BytesIO()
    np.savez_compressed(file, **per_image.pack(annotations, predictions))
    size = file.tell()
    file.seek(0)
    with np.load(file) as arrays:
        return dict(arrays), size


def assert_recomputes(annotations, predictions, weighted=None, weights=None) -> None:
    """`weighted`: the data set with images repeated `weights` times."""
    arrays, _ = stored(annotations, predictions)
    metrics = (
        Scorer((weighted or (annotations,))[0]).score((weighted or (0, predictions))[1]).metrics
    )
    for prefix, suffix in (("raw", ""), ("nms", "_nms")):
        ap, ap50 = per_image.recompute(arrays, prefix, weights)
        assert ap == pytest.approx(metrics[f"AP{suffix}"], abs=1e-9)
        assert ap50 == pytest.approx(metrics[f"AP50{suffix}"], abs=1e-9)


def packed_from_pycocotools(annotations: Annotations, predictions: Predictions) -> dict:
    """`image`, `label` and `hits` from COCOeval's results per image and class."""
    truth = truth_of(annotations)
    evaluation = COCOeval(truth, truth.loadRes(predictions.to_coco(annotations)), "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    number = {image_id: image for image, image_id in enumerate(annotations.image_ids)}
    rows = []
    for label, category in enumerate(annotations.category_ids):
        ranked = []
        for of_image in filter(None, evaluation.evalImgs):
            if of_image["category_id"] == category:
                for at, score in enumerate(of_image["dtScores"]):
                    matched = of_image["dtMatches"][:, at] > 0
                    ignored = of_image["dtIgnore"][:, at].astype(bool)
                    hits = sum(1 << t for t in range(10) if matched[t] and not ignored[t])
                    hits |= max((t + 1 for t in range(10) if ignored[t]), default=0) << 10
                    ranked.append((score, number[of_image["image_id"]], label, hits))
        ranked.sort(key=lambda row: -row[0])
        while ranked and not ranked[-1][-1] & 0x3FF:
            ranked.pop()
        rows += [row[1:] for row in ranked]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return dict(zip(("image", "label", "hits"), map(list, columns), strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("data", [random_data, tied_data, dense_data, one_class])
def test_the_file_holds_what_pycocotools_matched(data, seed, monkeypatch):
    monkeypatch.setattr(overlaps, "BLOCK", 7)
    annotations, predictions = data(seed)
    arrays = per_image.pack(annotations, predictions)
    after_nms = rows_of(predictions, predictions.nms_keep[0.5])
    for prefix, those in (("raw", predictions), ("nms", after_nms)):
        for name, column in packed_from_pycocotools(annotations, those).items():
            assert arrays[f"{prefix}_{name}"].tolist() == column
    assert arrays["raw_hits"].max() >= 1 << 10


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_recomputed_from_the_file(seed):
    assert_recomputes(*random_data(seed))


def test_ap_is_recomputed_where_a_box_is_good_at_some_thresholds_only():
    assert_recomputes(*two_images(second_box=(0, 0, 10, 6.2)))


def test_a_detection_may_lie_in_a_crowd_at_some_thresholds_only():
    """0.7 of the second box is in the crowd: ignored up to IoU 0.7, wrong above."""
    box = np.array([0.0, 0, 10, 10])
    objects = [[(0, box), (0, (20, 20, 40, 30), True)]]
    annotations = make_annotations([(60, 60)], objects, classes=1)
    predictions = make_predictions([0, 0], [box, (20, 23, 30, 33)], [0.5, 0.9], [0, 0])
    metrics = Scorer(annotations).score(predictions).metrics
    assert metrics["AP50"] == pytest.approx(100)
    assert 50 < metrics["AP"] < 90
    assert_recomputes(annotations, predictions)


def test_no_detections_and_no_objects_are_recomputed_too():
    annotations, predictions = two_images()
    assert per_image.recompute(stored(annotations, nothing())[0], "raw") == (0, 0)
    empty = make_annotations([(40, 40)] * 2, [[], []], classes=1)
    assert per_image.recompute(stored(empty, predictions)[0], "nms") == (None, None)
    missed = make_predictions([0], [(20, 20, 30, 30)], [0.9], [0])
    assert per_image.recompute(stored(annotations, missed)[0], "raw") == (0, 0)


def repeated(annotations: Annotations, predictions: Predictions, times: np.ndarray):
    """The data set with image i repeated times[i] times."""
    images = np.repeat(np.arange(len(times)), times)
    objects = [
        list(
            zip(
                annotations.labels[rows], annotations.boxes_xyxy[rows], annotations.crowd[rows],
                strict=True,
            )
        )
        for rows in (annotations.rows(image) for image in images)
    ]  # fmt: skip
    copies = [
        (copy, box, score, label)
        for copy, image in enumerate(images)
        for box, score, label in zip(
            *(
                column[predictions.image == image]
                for column in (predictions.boxes_xyxy, predictions.scores, predictions.labels)
            ),
            strict=True,
        )
    ]
    more = make_annotations([(300, 400)] * len(images), objects, CLASSES)
    return more, make_predictions(*zip(*copies, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_weights_count_an_image_as_often_as_they_say(seed):
    """As in a bootstrap. Image ids are unordered: images must not swap weights."""
    annotations, predictions = random_data(seed)
    times = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12)
    assert 0 in times
    assert_recomputes(
        annotations, predictions, repeated(annotations, predictions, times), weights=times
    )


def test_weights_of_images_without_objects_leave_nothing_to_compute():
    annotations, predictions = random_data()
    arrays, _ = stored(annotations, predictions)
    without = (np.diff(annotations.first) == 0).astype(int)
    assert per_image.recompute(arrays, "raw", without) == (None, None)


@pytest.mark.slow
def test_the_file_is_read_with_numpy_alone():
    code = (
        "import sys, onenet.evaluation.per_image\n"
        "assert not {'torch', 'pycocotools', 'faster_coco_eval'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_the_file_of_a_whole_evaluation_is_small():
    """400 images with 100 detections each, five classes: under 100 KB."""
    rng = np.random.default_rng(0)
    objects, detections = [], []
    for image in range(400):
        count = int(rng.integers(1, 13))
        low = rng.uniform(0, 80, (count, 2))
        boxes = np.hstack([low, low + rng.uniform(8, 40, (count, 2))])
        labels = rng.integers(0, 5, count)
        objects.append(list(zip(labels.tolist(), boxes, strict=True)))
        at = rng.integers(0, count, 100)
        near = boxes[at] + rng.normal(0, 3, (100, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guess = np.where(rng.random(100) < 0.5, labels[at], rng.integers(0, 5, 100))
        detections.append((np.full(100, image), near, rng.random(100), guess))
    annotations = make_annotations([(120, 120)] * 400, objects, classes=5)
    columns = [np.concatenate(column) for column in zip(*detections, strict=True)]
    _, size = stored(annotations, make_predictions(*columns))
    assert 10_000 < size < 100_000
