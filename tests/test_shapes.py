"""The built-in images: reproducible, within their bounds, and consistent with their boxes.

Run: pytest tests/test_shapes.py
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from onenet.config.compose import compose
from onenet.data.images import DrawnImages
from onenet.data.shapes import (
    BODIES,
    MAX_COVERED,
    MAX_IOU,
    MAX_PART_COVERED,
    OUTLINES,
    PLACEMENT_TRIES,
    Scene,
    ShapeSettings,
    draw_scene,
    make_annotations,
    make_scene,
    scene_of,
)
from onenet.data.sources import open_split
from onenet.evaluation.coco_metrics import Scorer
from tests.conftest import make_predictions
from tests.test_boxes import scalar_iou_and_giou

KINDS = ("rigid", "parts", "crowded")
kinds = pytest.mark.parametrize("kind", KINDS)
kinds_without_pairs = pytest.mark.parametrize("kind", ["rigid", "parts"])


def scenes(kind: str, count: int = 100, split: str = "val", **changes) -> list[Scene]:
    config = ShapeSettings(kind=kind, **changes)
    return [make_scene(config, split, image) for image in range(count)]


def same(a: Scene, b: Scene) -> bool:
    arrays = ("labels", "boxes_xyxy", "parts_xyxy")
    return a.size_hw == b.size_hw and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


# --- reproducibility ---


@kinds
def test_images_are_a_function_of_seed_split_and_number(kind):
    config = ShapeSettings(kind=kind, seed=3)
    first, again = (make_scene(config, "train", 7) for _ in range(2))
    assert same(first, again)
    pixels = draw_scene(config, "train", 7, first)
    assert np.array_equal(pixels, draw_scene(config, "train", 7, again))
    for other in (
        make_scene(config, "val", 7),
        make_scene(config, "train", 8),
        make_scene(replace(config, seed=4), "train", 7),
    ):
        assert not same(first, other)


@kinds
def test_neither_the_number_of_images_nor_the_order_of_reading_matters(kind):
    config = ShapeSettings(kind=kind)
    few, many = make_annotations(config, "train", 3), make_annotations(config, "train", 6)
    for name in ("image_ids", "sizes_hw", "boxes_xyxy", "labels", "parts_xyxy"):
        assert np.array_equal(getattr(few, name), getattr(many.limit(3), name)), name
    one, other = DrawnImages(few, config, "train"), DrawnImages(many, config, "train")
    forwards = [one.read(i) for i in (0, 1, 2)]
    backwards = [other.read(i) for i in (5, 2, 1, 0)]
    for a, b in zip(forwards, reversed(backwards), strict=False):
        assert np.array_equal(a, b)
    assert np.array_equal(one.read(1), forwards[1])  # read twice


def test_splits_and_seeds_have_pixels_of_their_own():
    config = ShapeSettings()
    scene = make_scene(config, "train", 0)
    pictures = [
        draw_scene(config, "train", 0, scene),
        draw_scene(config, "val", 0, scene),
        draw_scene(config, "train", 1, scene),
        draw_scene(replace(config, seed=1), "train", 0, scene),
    ]
    for a, b in combinations(pictures, 2):
        assert (a != b).any(axis=-1).mean() > 0.9


# --- bit-identical to a plain version, so that trainings can be repeated ---


def plain_scene(config: ShapeSettings, image: int) -> Scene:
    """All boxes at once, in arrays."""
    rng = np.random.default_rng([config.seed, 0, image, 0])
    short = int(rng.integers(config.min_short, config.max_short + 1))
    long = round(short * config.max_aspect ** rng.uniform(0, 1) ** 2)
    size_hw = (short, long) if rng.random() < 0.6 else (long, short)
    labels, boxes, parts = [], np.zeros((0, 4)), np.zeros((0, 4))
    count = int(rng.integers(1, config.max_objects + 1))
    if config.kind == "crowded":
        return plain_crowd(rng, config, size_hw, count)
    for _ in range(count):
        for _ in range(PLACEMENT_TRIES):
            box, part = plain_place(rng, config, size_hw)
            if plain_fits(box, boxes, parts):
                labels.append(int(rng.integers(len(OUTLINES))))
                boxes, parts = np.vstack([boxes, box]), np.vstack([parts, part])
                break
    return Scene(size_hw, np.array(labels), boxes, parts)


def plain_place(rng, config: ShapeSettings, size_hw) -> tuple[np.ndarray, np.ndarray]:
    side = min(size_hw) * config.min_side * (config.max_side / config.min_side) ** rng.random()
    side *= config.body_scale if config.kind == "parts" else 1
    stretch = 2 ** rng.uniform(-0.5, 0.5)
    limit_wh = np.array(size_hw[::-1]) - 1.0
    wh = np.minimum([side * stretch, side / stretch], limit_wh)
    corner = rng.uniform(0, limit_wh - wh)
    box = np.concatenate([corner, corner + wh])
    if config.kind != "parts":
        return box, box
    glyph = config.part_side * wh.min()
    corner = corner + rng.uniform(0.05, 0.95, 2) * (wh - glyph)
    return box, np.concatenate([corner, corner + glyph])


def plain_crowd(rng, config: ShapeSettings, size_hw, count: int) -> Scene:
    labels, boxes, partner = [], np.zeros((0, 4)), {}  # number of the object that each one joins
    for _ in range(count):
        last = len(boxes) - 1
        joins = last >= 0 and last not in partner and (not partner or rng.random() < 0.5)
        for _ in range(PLACEMENT_TRIES):
            if joins:
                box = boxes[-1] + plain_shift(rng, boxes[-1])
            else:
                box, _ = plain_place(rng, config, size_hw)
            others = boxes[:-1] if joins else boxes
            lower = boxes[[*partner.values()]]
            sides = np.minimum(box[2:], lower[:, 2:]) - np.maximum(box[:2], lower[:, :2])
            inside = (box >= 0).all() and (box[2:] <= np.array(size_hw[::-1]) - 1).all()
            touches = (sides > 0).all(axis=1).any()
            if inside and plain_fits(box, others, others) and not touches:
                labels.append(labels[-1] if joins else int(rng.integers(len(OUTLINES))))
                boxes = np.vstack([boxes, box])
                partner |= {last + 1: last} if joins else {}
                break
    count = len(boxes) if partner else 1
    return Scene(size_hw, np.array(labels[:count]), boxes[:count], boxes[:count])


def plain_shift(rng, box: np.ndarray) -> np.ndarray:
    iou = rng.uniform(0.52, 0.68)
    common, along_x = 2 * iou / (1 + iou), rng.random()
    share = np.array([1 - common**along_x, 1 - common ** (1 - along_x)])
    return np.tile((2 * rng.integers(0, 2, 2) - 1) * share * (box[2:] - box[:2]), 2)


def plain_fits(box: np.ndarray, boxes: np.ndarray, parts: np.ndarray) -> bool:
    def overlap(others: np.ndarray) -> np.ndarray:
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        return np.clip(sides, 0, None).prod(axis=1)

    def area(of: np.ndarray) -> np.ndarray:
        return (of[..., 2:] - of[..., :2]).prod(axis=-1)

    iou = overlap(boxes) / (area(box) + area(boxes) - overlap(boxes))
    hidden, whole = overlap(parts) / area(parts), (parts == boxes).all(axis=1)
    return bool(
        (iou <= MAX_IOU).all()
        and (overlap(boxes) <= MAX_COVERED * area(boxes)).all()
        and (hidden <= np.where(whole, MAX_COVERED, MAX_PART_COVERED)).all()
    )


def plain_picture(config: ShapeSettings, image: int, scene: Scene) -> np.ndarray:
    rng = np.random.default_rng([config.seed, 0, image, 1])
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    double_wh = (2 * scene.size_hw[1], 2 * scene.size_hw[0])
    picture = Image.fromarray(coarse).resize(double_wh, Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    for label, box, part in zip(scene.labels, scene.boxes_xyxy, scene.parts_xyxy, strict=True):
        x, y = ((box[:2] + box[2:]) / 2 * 2).astype(int).tolist()
        color = (np.array(picture.getpixel((x, y))) + rng.integers(90, 167, 3)) % 256
        if config.kind == "parts":
            BODIES[rng.integers(2)](canvas, tuple(box * 2), tuple(color))
            color = (color + rng.integers(90, 166, 3)) % 256
        list(OUTLINES.values())[label](canvas, tuple(part * 2), tuple(color))
    pixels = np.asarray(picture.reduce(2), dtype=np.int16)
    noise = rng.integers(-8, 9, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@kinds
@pytest.mark.parametrize("changes", [{}, {"seed": 3, "max_objects": 30, "max_side": 0.7}])
def test_scenes_and_pixels_are_those_of_the_plain_version(kind, changes):
    config = ShapeSettings(kind=kind, **changes)
    for image in range(60):
        scene = make_scene(config, "train", image)
        assert same(scene, plain_scene(config, image))
        pixels = draw_scene(config, "train", image, scene)
        assert np.array_equal(pixels, plain_picture(config, image, scene))


@kinds
def test_what_is_read_is_drawn_from_the_annotations(kind):
    config = ShapeSettings(kind=kind)
    annotations = make_annotations(config, "val", 5)
    source = DrawnImages(annotations, config, "val")
    for image in range(5):
        scene = make_scene(config, "val", image)
        assert same(scene_of(annotations, image), scene)
        assert np.array_equal(source.read(image), draw_scene(config, "val", image, scene))


# --- bounds ---


@kinds
def test_sizes_and_aspects(kind):
    drawn = scenes(kind, min_short=50, max_short=60)
    for scene in drawn:
        assert 50 <= min(scene.size_hw) <= 60
        assert max(scene.size_hw) <= 2 * min(scene.size_hw)
    aspects = [scene.size_hw[1] / scene.size_hw[0] for scene in drawn]
    assert min(aspects) < 0.7
    assert max(aspects) > 1.5


@kinds
def test_every_image_has_one_to_max_objects_of_all_classes(kind):
    counts = [len(scene.labels) for scene in scenes(kind, max_objects=5)]
    assert set(counts) == {1, 2, 3, 4, 5}
    labels = np.concatenate([scene.labels for scene in scenes(kind)])
    shares = np.bincount(labels, minlength=len(OUTLINES)) / len(labels)
    assert len(shares) == len(OUTLINES)
    assert (abs(shares - 1 / len(OUTLINES)) < 0.07).all()


@kinds
def test_boxes_are_inside_the_image_and_of_the_size_asked_for(kind):
    for scene in scenes(kind, min_side=0.1, max_side=0.4, body_scale=1.25):
        low, high = scene.boxes_xyxy[:, :2], scene.boxes_xyxy[:, 2:]
        assert (low >= 0).all()
        assert (high <= np.array(scene.size_hw[::-1])).all()
        side = np.sqrt((high - low).prod(axis=1)) / min(scene.size_hw)
        larger = 1.25 if kind == "parts" else 1
        assert (side >= 0.1 * larger - 1e-9).all()
        assert (side <= 0.4 * larger + 1e-9).all()


def test_the_part_that_shows_the_class_lies_in_the_body():
    positions = []
    for scene in scenes("parts"):
        box, part = scene.boxes_xyxy, scene.parts_xyxy
        assert (part[:, :2] >= box[:, :2]).all()
        assert (part[:, 2:] <= box[:, 2:]).all()
        sides, body = part[:, 2:] - part[:, :2], box[:, 2:] - box[:, :2]
        np.testing.assert_allclose(sides, 0.7 * np.tile(body.min(axis=1)[:, None], 2))
        positions.append((part[:, :2] - box[:, :2]) / (body - sides))
    positions = np.concatenate(positions)
    assert positions.min() < 0.1  # anywhere in it
    assert positions.max() > 0.9


def test_the_whole_box_of_a_rigid_object_shows_its_class():
    assert all(np.array_equal(s.parts_xyxy, s.boxes_xyxy) for s in scenes("rigid"))


@kinds_without_pairs
def test_no_two_boxes_overlap_enough_for_nms(kind):
    most = 0.0
    for scene in scenes(kind):
        pairs = combinations(scene.boxes_xyxy.tolist(), 2)
        most = max([most, *(scalar_iou_and_giou(a, b)[0] for a, b in pairs)])
    assert 0.1 < most <= MAX_IOU < 0.5  # they do overlap


def oracle(kind: str) -> dict:
    """The metrics of the ground truth given as detections of score 1."""
    source = open_split(compose([f"data.shapes.kind={kind}", "data.limit=150"]).data, "val")
    truth = source.annotations
    shuffled = np.random.default_rng(0).permutation(len(truth.labels))
    image = np.repeat(np.arange(150), np.diff(truth.first))[shuffled]
    predictions = make_predictions(
        image, truth.boxes_xyxy[shuffled], np.ones(len(image)), truth.labels[shuffled]
    )
    return Scorer(truth).score(predictions).metrics


@kinds_without_pairs
def test_nms_does_not_touch_the_ground_truth_given_as_detections(kind):
    metrics = oracle(kind)
    assert metrics["AP"] == pytest.approx(100)
    assert metrics["AP_nms"] >= 99
    assert metrics["duplicates_per_object"] == 0


def test_nms_deletes_one_of_each_pair_of_neighbours():
    """A third of the objects. At 0.7 NMS spares them; at 0.6 about half of the pairs."""
    metrics = oracle("crowded")
    assert metrics["AP"] == pytest.approx(100)
    assert 55 < metrics["AP_nms"] < 75
    assert metrics["AP_nms"] + 5 < metrics["AP_nms_06"] < 95
    assert metrics["AP_nms_07"] == pytest.approx(100)


def neighbours(scene: Scene) -> list[tuple[int, int, float]]:
    """The pairs of boxes with an IoU of 0.3 or more, and their IoU."""
    boxes = scene.boxes_xyxy.tolist()
    pairs = combinations(range(len(boxes)), 2)
    ious = [(i, j, scalar_iou_and_giou(boxes[i], boxes[j])[0]) for i, j in pairs]
    return [pair for pair in ious if pair[2] >= 0.3]


@pytest.mark.parametrize("changes", [{}, {"max_objects": 2}, {"max_objects": 40, "max_side": 0.8}])
def test_neighbours_are_pairs_of_one_class_with_an_iou_of_a_half_to_seven_tenths(changes):
    ious, objects, in_pairs = [], 0, 0
    for scene in scenes("crowded", 300, **changes):
        pairs = neighbours(scene)
        assert bool(pairs) == (len(scene.labels) >= 2)
        numbers = [number for i, j, _ in pairs for number in (i, j)]
        assert len(numbers) == len(set(numbers))  # no triple
        for i, j, iou in pairs:
            assert scene.labels[i] == scene.labels[j]
            ious.append(iou)
        objects, in_pairs = objects + len(scene.labels), in_pairs + len(numbers)
    assert 0.5 < min(ious) < 0.55
    assert 0.65 < max(ious) < 0.7
    assert 0.6 < in_pairs / objects <= 1


def test_nothing_hides_the_rest_of_a_lower_neighbour():
    for scene in scenes("crowded", 200):
        boxes = scene.boxes_xyxy
        for lower, upper, _ in neighbours(scene):
            for other in boxes[upper + 1 :].tolist():
                assert scalar_iou_and_giou(boxes[lower].tolist(), other)[0] == 0


def test_objects_too_large_for_a_neighbour_stay_alone():
    for scene in scenes("crowded", 50, min_side=1, max_side=1, max_aspect=1):
        pairs = neighbours(scene)
        assert bool(pairs) == (len(scene.labels) >= 2)


# --- pixels ---


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The bounding box [4] of all changed pixels."""
    ys, xs = (before != after).any(axis=-1).nonzero()
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def shrunk(boxes: np.ndarray) -> np.ndarray:
    """The boxes, with the last one shrunk to a dot."""
    middle = (boxes[-1, :2] + boxes[-1, 2:]) / 2
    return np.vstack([boxes[:-1], np.concatenate([middle, middle + 0.01])])


@kinds
def test_an_object_fills_its_box_and_nothing_else(kind):
    """Removing the last object changes pixels up to all four sides of its box, none outside."""
    config = ShapeSettings(kind=kind)
    for image in range(25):
        scene = make_scene(config, "val", image)
        boxes = shrunk(scene.boxes_xyxy)
        parts = np.vstack([scene.parts_xyxy[:-1], boxes[-1]])
        without = replace(scene, boxes_xyxy=boxes, parts_xyxy=parts)
        box = changed(*(draw_scene(config, "val", image, s) for s in (scene, without)))
        assert abs(box - scene.boxes_xyxy[-1]).max() <= 1.5, image


@kinds
def test_the_class_shows_in_the_part_and_nowhere_else(kind):
    config = ShapeSettings(kind=kind)
    for image in range(25):
        scene = make_scene(config, "val", image)
        labels = scene.labels.copy()
        labels[-1] = (labels[-1] + 1) % len(OUTLINES)
        other = replace(scene, labels=labels)
        box = changed(*(draw_scene(config, "val", image, s) for s in (scene, other)))
        part = scene.parts_xyxy[-1]
        assert (box[:2] >= part[:2] - 1.5).all(), image
        assert (box[2:] <= part[2:] + 1.5).all(), image


def test_pictures_have_the_size_of_the_scene_and_are_not_flat():
    config = ShapeSettings()
    scene = make_scene(config, "train", 2)
    pixels = draw_scene(config, "train", 2, scene)
    assert pixels.shape == (*scene.size_hw, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10
