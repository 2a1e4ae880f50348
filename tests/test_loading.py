"""Batches: sizes, padding, flips and scales fit the pixels; the order depends on the seed.

Run: pytest tests/test_loading.py
"""

import os
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from analysis.speed.data import plain_batch
from onenet.data.augment import Augmentation, View, draw_view, whole_view
from onenet.data.images import BadImage, DrawnImages, ImageFiles
from onenet.data.loading import (
    PILLOW_PIXELS,
    DetectionDataset,
    collate,
    evaluation_batches,
    resample,
    training_batches,
)
from onenet.data.normalization import PADDING_RGB, normalize
from onenet.data.order import training_order
from onenet.data.shapes import ShapeSettings, make_annotations
from onenet.data.sizes import ImageSize, pad_to_multiple
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import FPN
from onenet.detectors.onenet import OneNet
from onenet.evaluation.predict import predict
from onenet.structures import HeadOutput
from tests import conftest
from tests.conftest import Pictures, make_target

AS_IN_THE_PAPER = Augmentation(flip=0.5, min_scale=0.8125)
NO_CHANGE = Augmentation(flip=0.0, min_scale=1.0)


def drawn(count: int, split: str = "train") -> DrawnImages:
    config = ShapeSettings(min_short=40, max_short=50, max_objects=4)
    return DrawnImages(make_annotations(config, split, count), config, split)


def dataset_of(source, short=40, ratio=1.5, augmentation=AS_IN_THE_PAPER, seed=0):
    return DetectionDataset(source, ImageSize(short, ratio), augmentation, seed)


def marked(size_hw: tuple[int, int], box: tuple[int, int, int, int]) -> Pictures:
    """A black image with a white rectangle at its only object."""
    pixels = np.zeros((*size_hw, 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return Pictures(conftest.make_annotations([size_hw], [[(1, box)]]), [pixels])


def white_box(image: torch.Tensor) -> list[int]:
    rows, columns = (image[0] > 127).nonzero(as_tuple=True)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [int(corner) for corner in corners]


def scenery(size_hw: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size_hw[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def files(folder: Path, names: list[str], sizes_hw: list[tuple[int, int]]) -> ImageFiles:
    """Each image has one object, at its centre."""
    boxes = [[(1, (w / 4, h / 4, w / 2, h / 2))] for h, w in sizes_hw]
    return ImageFiles(conftest.make_annotations(sizes_hw, boxes), folder, names)


def assert_equal_batches(one: list, other: list) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.original_hw == b.original_hw
        for s, t in zip(a.targets, b.targets, strict=True):
            assert torch.equal(s.gt_xyxy, t.gt_xyxy)
            assert torch.equal(s.gt_labels, t.gt_labels)
            assert torch.equal(s.crowd_xyxy, t.crowd_xyxy)
            assert torch.equal(s.crowd_labels, t.crowd_labels)
            assert (s.image_id, s.size_hw) == (t.image_id, t.size_hw)


# --- files ---


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": "4:4:4", "quality": 95}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_blocks": 3}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_a_jpeg_has_the_pixels_that_pillow_sees(tmp_path, mode, options):
    scenery((123, 201)).convert(mode).save(tmp_path / "a.jpg", **options)
    pixels = files(tmp_path, ["a.jpg"], [(123, 201)]).read(0)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_read_as_pillow_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    scenery((40, 64)).save(tmp_path / "a.jpg", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    pixels = files(tmp_path, ["a.jpg"], [expected.shape[:2]]).read(0)
    assert np.array_equal(pixels, expected)


def test_a_jpeg_cut_off_anywhere_is_bad_and_named(tmp_path):
    scenery((64, 80)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    source = files(tmp_path, ["a.jpg"], [(64, 80)])
    for length in (0, 2, 100, len(whole) // 2, len(whole) - 40):
        (tmp_path / "a.jpg").write_bytes(whole[:length])
        with pytest.raises(BadImage, match=r"a\.jpg"):
            source.read(0)


def test_a_jpeg_of_another_size_than_annotated_is_bad(tmp_path):
    scenery((64, 80)).save(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match=r"a\.jpg is 80×64, but its annotations say 81×64"):
        files(tmp_path, ["a.jpg"], [(64, 81)]).read(0)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path, name):
    values = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    Image.fromarray(values).save(tmp_path / name)
    pixels = files(tmp_path, [name], [(40, 60)]).read(0)
    assert np.array_equal(pixels, np.repeat((values // 256)[:, :, None], 3, axis=2))


def test_grey_of_16_bits_is_turned(tmp_path):
    values = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90° clockwise
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    pixels = files(tmp_path, ["a.png"], [(60, 40)]).read(0)
    assert np.array_equal(pixels[:, :, 1], np.rot90(values // 256, -1))


# --- sizes ---


@pytest.mark.parametrize(
    ("original", "short", "ratio", "expected"),
    [
        ((480, 640), 512, 1.25, (480, 640)),  # 512×683 would be too long
        ((480, 640), 512, 1.667, (512, 683)),
        ((640, 480), 512, 1.667, (683, 512)),
        ((500, 500), 512, 1.25, (512, 512)),
        ((300, 700), 512, 1.667, (366, 853)),
        ((300, 700), 512, 5 / 3, (366, 853)),
        ((1024, 1280), 512, 1.25, (512, 640)),
        ((1, 1000), 512, 1.25, (1, 640)),
        ((96, 192), 80, 1.2, (48, 96)),
    ],
)
def test_shortest_and_longest_side(original, short, ratio, expected):
    assert ImageSize(short, ratio).of(original) == expected


def test_no_side_is_longer_than_the_size_says():
    rng = np.random.default_rng(0)
    for original in rng.integers(20, 900, (300, 2)).tolist():
        height, width = ImageSize(512, 1.667).of(original)
        assert max(height, width) <= 853
        assert min(height, width) <= 512
        assert max(height, width) == 853 or min(height, width) == 512
        assert height / width == pytest.approx(original[0] / original[1], rel=0.06)


def test_a_jittered_shortest_side_keeps_the_limit_of_the_longest():
    size = ImageSize(512, 1.25)
    assert size.of((480, 640), 416) == (416, 555)
    assert size.of((300, 900), 416) == (213, 640)


def test_padded_sizes_are_multiples_of_32():
    assert pad_to_multiple((1, 32)) == (32, 32)
    assert pad_to_multiple((33, 640)) == (64, 640)


# --- resizing ---


def by_pillow(pixels: np.ndarray, view: View) -> np.ndarray:
    """[h, w, 3] int16."""
    image = Image.fromarray(pixels).crop(tuple(map(int, view.crop_xyxy)))
    image = image.resize(view.size_hw[::-1], Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(image) if view.flip else image, dtype=np.int16)


@pytest.mark.parametrize("short", [120, 300, 430, 512])
@pytest.mark.parametrize("flip", [False, True])
def test_a_photograph_is_resized_as_by_pillow(short, flip):
    pixels = np.array(scenery((427, 640), short))
    assert pixels[:, :, 0].size > PILLOW_PIXELS
    view = replace(whole_view((427, 640), ImageSize(short, 1.667)), flip=flip)
    resized = resample(pixels, view)
    assert resized.dtype == torch.uint8
    assert resized.is_contiguous()
    off = abs(resized.permute(1, 2, 0).numpy() - by_pillow(pixels, view))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size_hw", "crop"), [((96, 192), (0, 0, 192, 96)), ((427, 640), (30, 41, 610, 400))]
)
def test_small_images_and_parts_are_exactly_pillows(size_hw, crop, flip):
    pixels = np.array(scenery(size_hw))
    view = View(crop, (52, 61) if crop[0] == 0 else (crop[3] - crop[1], crop[2] - crop[0]), flip)
    resized = resample(pixels, view)
    assert resized.is_contiguous()
    assert np.array_equal(resized.permute(1, 2, 0).numpy(), by_pillow(pixels, view))


def test_the_benchmark_compares_like_with_like(tmp_path):
    """Batches of torchvision's reference code against ours, both normalized."""
    sizes = [(300, 400), (260, 300), (280, 420)]
    names = [f"{number}.jpg" for number in range(3)]
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        scenery(size, number).save(tmp_path / name)
    dataset = dataset_of(files(tmp_path, names, sizes), 256, 1.4)
    keys = [(epoch, number) for epoch in range(3) for number in range(3)]
    views = {key: dataset.view(*key) for key in keys}
    assert len({view.flip for view in views.values()}) == 2
    plain, boxes = plain_batch(dataset.source, keys, views)
    batch = collate([dataset[key] for key in keys])
    for one, other, target in zip(plain, normalize(batch.images), batch.targets, strict=True):
        height, width = target.size_hw
        off = (one - other)[:, :height, :width].abs()
        assert one.shape == other.shape
        assert off.max() < 1.01 / 255 / 0.224
        assert (off > 1e-4).float().mean() < 0.02
    for one, target in zip(boxes, batch.targets, strict=True):
        torch.testing.assert_close(one, target.gt_xyxy)


# --- padding ---


def test_images_of_a_batch_are_padded_right_and_below_with_the_mean_colour():
    sizes = [(20, 30), (45, 33)]
    pictures = [torch.randint(256, (3, *hw), dtype=torch.uint8) for hw in sizes]
    batch = collate(
        [(p, make_target([], [], hw), hw, []) for p, hw in zip(pictures, sizes, strict=True)]
    )
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    for image, (height, width), pixels in zip(batch.images, sizes, pictures, strict=True):
        assert torch.equal(image[:, :height, :width], pixels)
        padding = torch.ones(64, 64, dtype=torch.bool)
        padding[:height, :width] = False
        assert (image[:, padding] == torch.tensor(PADDING_RGB)[:, None]).all()
        assert normalize(image)[:, padding].abs().max() < 0.02
    assert [target.size_hw for target in batch.targets] == batch.original_hw == sizes


# --- boxes follow the pixels ---


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_flip_moves_box_and_pixels_alike(flip):
    source = marked((40, 64), (5, 9, 20, 31))
    pixels, target, _, _ = dataset_of(source, 40, 2.0, Augmentation(flip, 1.0))[0, 0]
    assert pixels.shape == (3, 40, 64)
    assert target.gt_xyxy.tolist() == [[5, 9, 20, 31] if not flip else [44, 9, 59, 31]]
    assert white_box(pixels) == target.gt_xyxy[0].tolist()
    assert target.gt_labels.tolist() == [1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_change_of_size_moves_box_and_pixels_alike(flip):
    source = marked((100, 160), (12, 20, 70, 90))
    for epoch in range(10):
        pixels, target, original_hw, _ = dataset_of(source, 80, 1.5, Augmentation(flip, 0.5))[
            epoch, 0
        ]
        height, width = target.size_hw
        assert pixels.shape[1:] == (height, width)
        assert original_hw == (100, 160)
        scale = np.array([width / 160, height / 100] * 2)
        expected = np.array([90, 20, 148, 90] if flip else [12, 20, 70, 90]) * scale
        np.testing.assert_allclose(target.gt_xyxy[0], expected, rtol=1e-5)
        assert abs(np.array(white_box(pixels)) - expected).max() <= 1


def test_half_of_the_images_are_flipped():
    source = marked((40, 64), (5, 9, 20, 31))
    dataset = dataset_of(source, 40, 2.0, Augmentation(0.5, 1.0))
    flipped = [dataset[epoch, 0][1].gt_xyxy[0, 0].item() == 44 for epoch in range(200)]
    assert 70 < sum(flipped) < 130


def test_boxes_are_clipped_to_the_image():
    objects = [(0, (-5, 10, 30, 90)), (2, (50, 30, 70, 41))]
    source = Pictures(conftest.make_annotations([(40, 60)], [objects]))
    target = dataset_of(source, 80, 2.0, None)[0, 0][1]
    assert target.gt_labels.tolist() == [0, 2]
    assert target.gt_xyxy.tolist() == [[0, 20, 60, 80], [100, 60, 120, 80]]
    assert target.image_id == 1


@pytest.mark.parametrize(
    ("crowd", "learnt", "left_alone"),
    [("ignore", [0, 2], [1]), ("drop", [0, 2], []), ("keep", [0, 1, 2], [])],
)
def test_crowds_are_left_alone_or_background_or_objects(crowd, learnt, left_alone):
    objects = [(0, (5, 10, 30, 30)), (1, (-9, 0, 30, 20), True), (2, (50, 30, 60, 40))]
    source = Pictures(conftest.make_annotations([(40, 60)], [objects]))
    size, augmentation = ImageSize(80, 2.0), Augmentation(1.0, 1.0)
    target = DetectionDataset(source, size, augmentation, crowd=crowd)[0, 0][1]
    assert target.gt_labels.tolist() == learnt
    assert target.crowd_labels.tolist() == left_alone
    if left_alone:
        assert target.crowd_xyxy.tolist() == [[60, 0, 120, 40]]


# --- crops ---


def test_a_crop_moves_box_and_pixels_alike():
    source = marked((100, 160), (40, 30, 120, 80))
    views = set()
    for epoch in range(60):
        dataset = dataset_of(source, 64, 1.5, Augmentation(0.5, 0.8, crop=1.0))
        pixels, target, original_hw, _ = dataset[epoch, 0]
        view = dataset.view(epoch, 0)
        assert pixels.shape[1:] == target.size_hw == view.size_hw
        assert original_hw == (100, 160)
        assert len(target.gt_labels) == 1  # crops are too large to miss this box
        assert abs(np.array(white_box(pixels)) - target.gt_xyxy[0].numpy()).max() <= 1
        views.add(view)
    assert len(views) == 60
    assert len({view.flip for view in views}) == 2


def test_crops_are_as_large_as_the_released_code_cuts_them():
    """At a shortest side of 512: resized to 400, 500 or 600, then cropped to 384..600."""
    size, augmentation = ImageSize(512, 1.667), Augmentation(0.0, 1.0, crop=1.0)
    sides = []
    for seed in range(2000):
        view = draw_view((480, 640), size, augmentation, np.random.default_rng(seed))
        x1, y1, x2, y2 = view.crop_xyxy
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 480
        sides.append((y2 - y1, x2 - x1))
        assert view.size_hw == size.of(sides[-1])
    height, width = np.array(sides).T
    # The smallest are 384 pixels of an image resized to 600, the largest the whole image.
    assert height.min() == pytest.approx(384 / 1.25, abs=2)
    assert height.max() == pytest.approx(480, abs=2)
    assert width.min() == pytest.approx(384 / 1.25, abs=2)
    assert width.max() == pytest.approx(640, abs=2)


def test_half_of_the_images_are_cropped_and_sizes_come_in_steps():
    augmentation = Augmentation(0.0, 0.8125, size_step=32, crop=0.5)
    views = [
        draw_view((512, 512), ImageSize(512, 1.667), augmentation, np.random.default_rng(seed))
        for seed in range(400)
    ]
    whole = [view for view in views if view.crop_xyxy == (0, 0, 512, 512)]
    assert 150 < len(whole) < 250
    assert {min(view.size_hw) for view in views} == {416, 448, 480, 512}


@pytest.mark.parametrize(
    ("short", "sizes"), [(64, {52, 56, 60, 64}), (1024, {832, 896, 960, 1024})]
)
def test_the_step_between_sizes_scales_with_the_size(short, sizes):
    size, augmentation = ImageSize(short, 1.5), Augmentation(0.0, 0.8125, size_step=32)
    results = {
        draw_view((512, 512), size, augmentation, np.random.default_rng(seed)).size_hw
        for seed in range(60)
    }
    assert results == {(side, side) for side in sizes}


def test_what_a_crop_leaves_nothing_of_is_no_object():
    view = View((10.0, 0.0, 50.0, 40.0), (80, 80), flip=True)
    boxes, visible = view.transform_boxes(
        np.array([[0, 0, 10, 40], [0, 5, 20, 50], [60, 0, 70, 9.0]])
    )
    assert visible.tolist() == [False, True, False]
    assert boxes.dtype == np.float32
    assert boxes[1].tolist() == [60, 10, 80, 80]


def test_reading_leaves_the_annotations_and_the_pixels_alone():
    source = drawn(4)
    boxes = source.annotations.boxes_xyxy.copy()
    pixels = [source.read(i).copy() for i in range(4)]
    dataset = dataset_of(source, augmentation=Augmentation(1.0, 0.5))
    for batch in training_batches(dataset, 2, 0, 6):
        batch.images.zero_()
        for target in batch.targets:
            target.gt_xyxy.zero_()
            target.gt_labels.zero_()
    assert np.array_equal(source.annotations.boxes_xyxy, boxes)
    assert source.annotations.labels.any()
    assert all(np.array_equal(source.read(i), p) for i, p in enumerate(pixels))


# --- scale jitter ---


def test_the_shortest_side_is_drawn_from_the_whole_range():
    source = Pictures(conftest.make_annotations([(48, 50)], [[]]))
    dataset = dataset_of(source, 40, 2.0, Augmentation(0.0, 0.8125))
    sides = Counter(min(dataset[epoch, 0][1].size_hw) for epoch in range(300))
    assert set(sides) == set(range(32, 41))  # 0.8125 * 40 is 32.5, rounded to even
    assert min(sides.values()) > 10


def test_without_augmentation_every_epoch_is_alike():
    source = drawn(2)
    for augmentation in (None, NO_CHANGE):
        dataset = dataset_of(source, augmentation=augmentation)
        first, later = dataset[0, 1], dataset[9, 1]
        assert torch.equal(first[0], later[0])
        assert torch.equal(first[1].gt_xyxy, later[1].gt_xyxy)


# --- the order of training ---


SIZES = np.array([(40, 60), (60, 40), (50, 50), (40, 41), (70, 40)] * 3 + [(40, 60)] * 2)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_every_epoch_visits_every_image_once(batch):
    visits = Counter(
        key for group in islice(training_order(SIZES, batch, seed=0), 120) for key in group
    )
    assert set(visits.values()) == {1}
    whole = 120 * batch // len(SIZES) - 3  # the last epochs may be incomplete
    for epoch in range(whole):
        assert {image for e, image in visits if e == epoch} == set(range(len(SIZES)))


def test_batches_are_wide_or_tall_never_both():
    wide = SIZES[:, 1] > SIZES[:, 0]
    kinds = set()
    for group in islice(training_order(SIZES, 4, seed=0), 50):
        assert len(group) == 4
        of_group = {bool(wide[image]) for _, image in group}
        assert len(of_group) == 1
        kinds |= of_group
    assert kinds == {True, False}


def test_order_is_a_function_of_the_seed_and_differs_between_epochs():
    def order(seed: int) -> list:
        return list(islice(training_order(SIZES, 1, seed), 3 * len(SIZES)))

    assert order(0) == order(0)
    assert order(0) != order(1)
    by_epoch = [[image for [(e, image)] in order(0) if e == epoch] for epoch in range(3)]
    assert by_epoch[0] != by_epoch[1] != by_epoch[2]
    assert by_epoch[0] != sorted(by_epoch[0])


def test_augmentation_is_a_function_of_seed_epoch_and_image():
    source = Pictures(conftest.make_annotations([(48, 50)] * 2, [[(0, (1, 2, 30, 40))]] * 2))

    def draws(seed: int, image: int) -> list:
        dataset = dataset_of(source, 40, 2.0, Augmentation(0.5, 0.5), seed)
        return [dataset[epoch, image][1].gt_xyxy.tolist() for epoch in range(8)]

    assert draws(0, 0) == draws(0, 0)
    assert draws(0, 0) != draws(0, 1)
    assert draws(0, 0) != draws(1, 0)
    assert len({str(box) for box in draws(0, 0)}) > 4


def test_worker_processes_change_nothing():
    dataset = dataset_of(drawn(6))
    alone = list(training_batches(dataset, 2, 0, 7, workers=0))
    assert_equal_batches(alone, list(training_batches(dataset, 2, 0, 7, workers=2)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_a_batch_from_a_worker_takes_few_open_files():
    dataset, before = dataset_of(drawn(40)), len(os.listdir("/proc/self/fd"))
    (batch,) = training_batches(dataset, 40, 0, 1, workers=1)
    assert len(batch.targets) == 40
    assert len(os.listdir("/proc/self/fd")) < before + 40


def test_in_the_place_of_a_bad_image_stands_the_next_as_it_is_seen_itself():
    class Damaged(Pictures):
        def read(self, image: int) -> np.ndarray:
            if image == 1:
                raise BadImage("b.jpg: truncated")
            return super().read(image)

    source = Damaged(conftest.make_annotations([(48, 50), (50, 70), (40, 44)], [[]] * 3))
    dataset = dataset_of(source)
    for epoch in range(8):
        pixels, target, original_hw, bad = dataset[epoch, 1]
        expected, expected_target, expected_hw, _ = dataset[epoch, 2]
        assert torch.equal(pixels, expected)
        assert (target.image_id, original_hw) == (expected_target.image_id, expected_hw)
        assert bad == ["b.jpg: truncated"]


def test_a_later_start_continues_where_an_earlier_one_was():
    dataset = dataset_of(drawn(5))
    straight = list(training_batches(dataset, 2, 0, 8))
    assert len(straight) == 8
    assert_equal_batches(straight[3:], list(training_batches(dataset, 2, 3, 8)))
    assert_equal_batches(straight[3:5], list(training_batches(dataset, 2, 3, 5)))


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2), (2, 2), (3, 1)])
def test_the_pieces_of_a_batch_are_the_whole_batch(processes, accumulate):
    dataset = dataset_of(drawn(9))
    whole = list(training_batches(dataset, 5, 1, 4))
    of_ranks = [
        list(
            training_batches(
                dataset, 5, 1, 4, rank=rank, processes=processes, accumulate=accumulate
            )
        )
        for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        span = slice(step * accumulate, (step + 1) * accumulate)
        # Micro-batch m * processes + r is number m of process r.
        parts = zip(*(batches[span] for batches in of_ranks), strict=True)
        micro_batches = [micro_batch for part in parts for micro_batch in part]
        assert len(micro_batches) == processes * accumulate
        assert all(len(micro_batch.targets) for micro_batch in micro_batches)
        assert {micro_batch.images.shape[1:] for micro_batch in micro_batches} == {
            batch.images.shape[1:]
        }
        assert torch.equal(
            torch.cat([micro_batch.images for micro_batch in micro_batches]), batch.images
        )
        targets = [target for micro_batch in micro_batches for target in micro_batch.targets]
        for one, other in zip(targets, batch.targets, strict=True):
            assert one.image_id == other.image_id
            assert torch.equal(one.gt_xyxy, other.gt_xyxy)


@pytest.mark.parametrize("batch", [3, 64])
def test_the_order_is_that_of_the_plain_loop(batch):
    """Each image in turn joins the batch of its orientation."""

    def plain(wide, seed):
        waiting, epoch = {True: [], False: []}, 0
        while True:
            for image in np.random.default_rng([seed, 0, epoch]).permutation(len(wide)).tolist():
                group = waiting[bool(wide[image])]
                group.append((epoch, image))
                if len(group) == batch:
                    yield list(group)
                    group.clear()
            epoch += 1

    wide = SIZES[:, 1] > SIZES[:, 0]
    one, other = training_order(SIZES, batch, 3), plain(wide, 3)
    assert list(islice(one, 80)) == list(islice(other, 80))


# --- evaluation ---


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_evaluation_sees_every_image_once_in_batches_of_one_padded_size(batch):
    source = drawn(11)
    dataset = dataset_of(source, 60, 2.0, augmentation=None)
    ids, shapes = [], set()
    for loaded in evaluation_batches(dataset, batch):
        assert len(loaded.targets) <= batch
        sizes = {pad_to_multiple(target.size_hw) for target in loaded.targets}
        assert sizes == {tuple(loaded.images.shape[2:])}
        shapes |= sizes
        ids += [target.image_id for target in loaded.targets]
    assert sorted(ids) == source.annotations.image_ids.tolist()
    assert len(shapes) > 2


def small_onenet() -> OneNet:
    """Random, with scores so far apart that rounding keeps their order."""
    torch.manual_seed(0)
    backbone = make_backbone("tiny")
    model = OneNet(backbone, 5, neck=FPN(backbone.feature_info.channels(), 8))
    model.head.class_conv.weight.data *= 10
    return model


def test_predictions_do_not_depend_on_the_batch_size():
    source = drawn(9, "val")
    dataset, model = dataset_of(source, 60, 2.0, augmentation=None), small_onenet()
    (one, bad), (five, _) = predict(model, dataset, batch=1), predict(model, dataset, batch=5)
    assert not bad
    assert set(one.image) == set(five.image) == set(range(9))
    for image in range(9):
        a, b = one.image == image, five.image == image
        assert abs(a.sum() - b.sum()) <= 1
        for score, label, box in zip(
            one.scores[a][:90], one.labels[a][:90], one.boxes_xyxy[a][:90], strict=True
        ):
            twin = (
                (abs(five.scores[b] - score) < 1e-4)
                & (five.labels[b] == label)
                & (abs(five.boxes_xyxy[b] - box).max(axis=1) < 1e-2)
            )
            assert twin.any()


class Fixed(torch.nn.Module):
    """Detects the same box in every resized image, five times."""

    def forward(self, images, sizes_hw, num_heads):
        count = len(images)
        boxes = torch.tensor([3.0, 6, 18, 30]).repeat(count, 5, 1)
        logits = torch.tensor([0.0, 1, 4, 3, 2])[:, None].repeat(count, 1, 1)
        return [HeadOutput(logits, boxes, torch.zeros(5, 2))] * num_heads


def test_predictions_are_in_pixels_of_the_original_image_best_first():
    source = Pictures(conftest.make_annotations([(100, 33), (30, 90)], [[], []], image_ids=[9, 4]))
    dataset = dataset_of(source, 40, 1.5, augmentation=None)  # resized to 60×20 and 20×60
    predictions, bad = predict(Fixed(), dataset, batch=2)
    assert not bad
    assert predictions.image.tolist() == [0] * 5 + [1] * 5
    expected = [[4.95, 10, 29.7, 50]] * 5 + [[4.5, 9, 27, 30]] * 5
    np.testing.assert_allclose(predictions.boxes_xyxy, expected, rtol=1e-6)
    scores = [1 / (1 + np.exp(-logit)) for logit in (4, 3, 2, 1, 0)]
    np.testing.assert_allclose(predictions.scores, scores * 2, rtol=1e-6)
    assert set(predictions.nms_keep) == {0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
    for keep in predictions.nms_keep.values():
        assert keep.tolist() == [True, False, False, False, False] * 2


def test_the_answer_is_that_of_the_head_asked_for():
    class Counting(Fixed):
        def forward(self, images, sizes_hw, num_heads):
            heads = super().forward(images, sizes_hw, num_heads)
            return [replace(h, class_logits=h.class_logits + 10 * i) for i, h in enumerate(heads)]

    dataset = dataset_of(drawn(2), augmentation=None)
    best = [predict(Counting(), dataset, batch=2, infer_heads=n)[0].scores.max() for n in (1, 2)]
    np.testing.assert_allclose(best, [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-14))], rtol=1e-6)
