"""Reading COCO-format folders: arrays, error messages, the cleaning report, unusual files.

pytest tests/test_coco.py
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from onenet.data.coco import read_coco
from onenet.data.images import BadImage
from onenet.data.loading import DetectionDataset, collate, evaluation_batches
from onenet.data.sizes import ImageSize
from onenet.errors import UserError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


def annotation(number: int, image_id: int = 7, category_id: int = 3, **changes) -> dict:
    whole = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2, 3, 10, 5],
        "area": 40,
        "iscrowd": 0,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def content(*annotations: dict) -> dict:
    """Two 40×30 images with ids 7 and 5; categories 90 and 3, unsorted and with a gap."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 5, "file_name": "a.png", "width": 40, "height": 30},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
    }


def write(folder: Path, data, images: bool = True) -> tuple[Path, Path]:
    """Returns the image folder and annotation file; `data`: JSON content or text."""
    (folder / "images").mkdir(exist_ok=True)
    if images and isinstance(data, dict):
        for entry in data["images"]:
            path = folder / "images" / entry["file_name"]
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (entry["width"], entry["height"]), "red").save(path)
    file = folder / "instances.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return folder / "images", file


def read(folder: Path, data, images: bool = True):
    return read_coco(*write(folder, data, images), "train")


def message_of(folder: Path, data, images: bool = True) -> str:
    """The error message; it is short and names the file."""
    files = write(folder, data, images)
    with pytest.raises(UserError) as raised:
        read_coco(*files, "train")
    message = str(raised.value)
    assert len(message.splitlines()) <= 3
    assert "data.train." in message
    assert str(files[1]) in message
    return message


def test_annotations_are_grouped_by_image_in_the_order_of_the_file(tmp_path):
    data = content(
        annotation(1, image_id=5, bbox=[0, 0, 1, 2]),
        annotation(2, image_id=7, category_id=90, bbox=[1.5, 2, 3, 4.25]),
        annotation(3, image_id=5, bbox=[5, 6, 7, 8]),
    )
    source = read(tmp_path, data)
    annotations = source.annotations
    assert [source.path(image).name for image in range(2)] == ["b.png", "a.png"]
    assert annotations.image_ids.tolist() == [7, 5]
    assert annotations.sizes_hw.tolist() == [[30, 40], [30, 40]]
    assert annotations.first.tolist() == [0, 1, 3]
    assert annotations.boxes_xyxy.tolist() == [[1.5, 2, 4.5, 6.25], [0, 0, 1, 2], [5, 6, 12, 14]]
    assert annotations.boxes_xyxy.dtype == np.float64
    assert annotations.labels.dtype == np.int64
    assert list(annotations.report) == []
    assert annotations.parts_xyxy is None


def test_category_ids_with_gaps_become_contiguous_labels_sorted_by_id(tmp_path):
    annotations = read(tmp_path, content(annotation(1, category_id=90), annotation(2))).annotations
    assert list(annotations.category_ids) == [3, 90]
    assert list(annotations.category_names) == ["car", "brush"]
    assert annotations.labels.tolist() == [1, 0]


def test_missing_area_is_width_times_height_and_missing_iscrowd_is_0(tmp_path):
    data = content(
        annotation(1, area=None, iscrowd=None), annotation(2, iscrowd=1), annotation(3, area=-1)
    )
    annotations = read(tmp_path, data).annotations
    assert annotations.areas.tolist() == [50, 40, 50]
    assert annotations.crowd.tolist() == [False, True, False]
    assert len(annotations.report) == 1
    assert "2 boxes" in annotations.report[0]
    assert "annotation ids 1, 3" in annotations.report[0]


def test_a_crowd_with_a_mask_is_its_box(tmp_path):
    mask = {"counts": [0, 200], "size": [30, 40]}
    annotations = read(tmp_path, content(annotation(1, segmentation=mask, iscrowd=1))).annotations
    assert annotations.boxes_xyxy.tolist() == [[2, 3, 12, 8]]
    assert annotations.crowd.tolist() == [True]


@pytest.mark.parametrize(
    "mask",
    ["[[1,2,3.5]]", "[[1, 2.5e1], [-3,4]]", "[ [\n1,\n2 ] ]", "[]", "[[]]", "null", '[["a"]]'],
)
def test_masks_of_any_form_change_nothing(tmp_path, mask):
    data = content(annotation(1, segmentation="MASK"), annotation(2, 5, segmentation="MASK"))
    data["categories"][1]["name"] = 'a "segmentation": [[1]]'
    data["images"][0]["file_name"] = '"segmentation": [[1]].png'
    source = read(tmp_path, data)
    for key in (": ", " :\n"):
        text = json.dumps(data).replace('": "MASK"', '"' + key + mask)
        again = read_coco(*write(tmp_path, text), "train")
        assert again.annotations.boxes_xyxy.tolist() == source.annotations.boxes_xyxy.tolist()
        assert again.annotations.category_names == ['a "segmentation": [[1]]', "brush"]
        assert again.path(0).name == '"segmentation": [[1]].png'


def test_an_image_without_objects_is_kept(tmp_path):
    source = read(tmp_path, content(annotation(1, image_id=5)))
    assert source.annotations.first.tolist() == [0, 0, 1]
    _, target, _, bad = DetectionDataset(source, ImageSize(32, 2.0))[0, 0]
    assert target.gt_xyxy.shape == (0, 4)
    assert target.gt_labels.shape == (0,)
    assert bad == []


def test_a_file_without_any_object_can_be_read(tmp_path):
    annotations = read(tmp_path, content()).annotations
    assert annotations.boxes_xyxy.shape == (0, 4)
    assert annotations.first.tolist() == [0, 0, 0]


def test_parts_are_read_where_every_annotation_has_one(tmp_path):
    one, other = annotation(1, part_xyxy=[3, 4, 5, 6]), annotation(2, 5, part_xyxy=[1, 2, 3, 4.5])
    assert read(tmp_path, content(other, one)).annotations.parts_xyxy.tolist() == [
        [3, 4, 5, 6],
        [1, 2, 3, 4.5],
    ]
    assert read(tmp_path, content(one, annotation(2))).annotations.parts_xyxy is None


def test_the_report_counts_what_was_dropped_and_what_leaves_the_image(tmp_path):
    data = content(
        *(annotation(i, bbox=[5, 5, 0, 3]) for i in range(4)),
        annotation(4, bbox=[5, 5, 3, -1]),
        annotation(5, bbox=[40, 0, 5, 5]),
        annotation(6, bbox=[-5, -5, 5, 30]),
        annotation(7, bbox=[-3, 2, 10, 50], image_id=5),
        annotation(8, bbox=[0, 0, 40, 30]),
    )
    annotations = read(tmp_path, data).annotations
    assert annotations.boxes_xyxy.tolist() == [[0, 0, 40, 30], [-3, 2, 7, 52]]
    assert annotations.first.tolist() == [0, 1, 2]
    no_area, outside, partly = annotations.report
    assert no_area == "5 boxes without area dropped (annotation ids 0, 1, 2, …)"
    assert outside == "2 boxes wholly outside the image dropped (annotation ids 5, 6)"
    assert partly == ("1 box partly outside the image kept, clipped in training (annotation id 7)")


def test_boxes_partly_outside_are_clipped_in_training(tmp_path):
    source = read(tmp_path, content(annotation(1, bbox=[-3, 2, 10, 50])))
    _, target, _, _ = DetectionDataset(source, ImageSize(60, 2.0))[0, 0]
    assert target.gt_xyxy.tolist() == [[0, 4, 14, 60]]


def test_crowds_are_not_trained_on(tmp_path):
    source = read(tmp_path, content(annotation(1, iscrowd=1), annotation(2, category_id=90)))
    _, target, _, _ = DetectionDataset(source, ImageSize(32, 2.0))[0, 0]
    assert target.gt_labels.tolist() == [1]


def ap_of_the_ground_truth(dataset: dict) -> float:
    """pycocotools' AP, 0..1, when every object is detected exactly with score 1."""
    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    keys = ("image_id", "category_id", "bbox")
    detections = [
        {key: entry[key] for key in keys} | {"score": 1.0}
        for entry in dataset["annotations"]
        if not entry["iscrowd"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_annotation_id_0_and_missing_keys_do_not_harm_the_evaluation(tmp_path, capsys):
    data = content(
        annotation(0, area=None, iscrowd=None),
        annotation(1, image_id=5, category_id=90, bbox=[1.25, 2.5, 30.1, 20.7]),
        annotation(2, image_id=5, bbox=[20, 2, 18, 20], iscrowd=1),
        annotation(3, bbox=[30, 20, 25, 25], area=None),
    )
    assert ap_of_the_ground_truth(read(tmp_path, data).annotations.to_coco()) == pytest.approx(1.0)


def test_what_to_coco_writes_is_read_back_the_same(tmp_path):
    first = read(tmp_path, content(annotation(0, bbox=[0.5, 1, 2.25, 3]), annotation(9, 5)))
    again = first.annotations.to_coco()
    for image, entry in enumerate(again["images"]):
        entry["file_name"] = first.path(image).name
    second = read(tmp_path, again).annotations
    for name in ("image_ids", "sizes_hw", "first", "boxes_xyxy", "labels", "areas", "crowd"):
        assert np.array_equal(getattr(first.annotations, name), getattr(second, name)), name


# Errors


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_image_folder_is_named_with_its_key(tmp_path, split):
    _, file = write(tmp_path, content())
    with pytest.raises(UserError) as raised:
        read_coco(tmp_path / "no", file, split)
    message = str(raised.value)
    assert message.startswith(f"data.{split}.images={tmp_path / 'no'} does not exist")
    assert f"data.{split}.images=FOLDER" in message
    assert len(message.splitlines()) <= 3


def test_an_image_folder_that_is_a_file_is_named(tmp_path):
    _, file = write(tmp_path, content())
    with pytest.raises(UserError, match=r"data\.train\.images=.* is not a folder"):
        read_coco(file, file, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_annotation_file_is_named_with_its_key(tmp_path, split):
    images, _ = write(tmp_path, content())
    with pytest.raises(UserError) as raised:
        read_coco(images, tmp_path / "no.json", split)
    message = str(raised.value)
    assert message.startswith(f"data.{split}.annotations={tmp_path / 'no.json'} does not exist")
    assert f"data.{split}.annotations=FILE" in message
    assert len(message.splitlines()) <= 3


def test_an_annotation_file_that_is_a_folder_is_named(tmp_path):
    images, _ = write(tmp_path, content())
    with pytest.raises(UserError, match=r"data\.train\.annotations=.* cannot be read"):
        read_coco(images, images, "train")


def test_broken_json_says_where(tmp_path):
    whole = json.dumps(content(), indent=1)
    assert "line 5 column " in message_of(tmp_path, "\n".join(whole.splitlines()[:4]) + "\n")
    assert "line 1 column 1 (char 0)" in message_of(tmp_path, "")
    _, file = write(tmp_path, "")
    file.write_bytes(b"\x1f\x8b\x08 packed")
    with pytest.raises(UserError, match="not valid JSON: .*position 1"):
        read_coco(tmp_path, file, "train")


def test_broken_json_after_a_mask_says_where(tmp_path):
    text = json.dumps(content(annotation(1, segmentation=[[1, 2, 3, 4, 5, 6]])))
    mask, after = text.index("3, 4, 5"), text.index('"brush"')
    assert f"(char {after})" in message_of(tmp_path, text.replace('"brush"', "brush"))
    assert "is not valid JSON" in message_of(tmp_path, text[:mask])
    assert f"(char {mask + 2})" in message_of(tmp_path, text.replace("3, 4, 5", "3 x, 5"))


def test_json_that_is_not_coco_says_what_is_missing(tmp_path):
    assert "of type list" in message_of(tmp_path, "[]")
    message = message_of(tmp_path, '{"images": [], "annotations": {}, "info": 1}')
    assert "no list of annotations and of categories" in message
    assert "'info'" in message
    assert "categories[1] is not an object: 'car'" in message_of(
        tmp_path, content() | {"categories": [{"id": 1, "name": "x"}, "car"]}
    )


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_no_images_or_no_categories_at_all_is_an_error(tmp_path, kind):
    assert f"has no {kind}" in message_of(tmp_path, content() | {kind: []})


@pytest.mark.parametrize("key", ["id", "file_name", "width", "height"])
def test_an_image_without_a_needed_key_is_named(tmp_path, key):
    data = content()
    del data["images"][1][key]
    message = message_of(tmp_path, data, images=False)
    assert f"has no {key}" in message
    assert ("images[1]" if key == "id" else "image id 5") in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("id", "7"), ("file_name", ""), ("width", 0), ("height", "30"), ("height", float("nan"))],
)
def test_an_image_with_an_impossible_value_is_named(tmp_path, key, value):
    data = content()
    data["images"][0][key] = value
    message = message_of(tmp_path, data, images=False)
    assert f"{key} {value!r}" in message
    assert ("images[0]" if key == "id" else "image id 7") in message


def test_an_image_id_that_stands_twice_is_named_with_both_files(tmp_path):
    data = content()
    data["images"][1]["id"] = 7
    message = message_of(tmp_path, data)
    assert "images has id 7 twice, for 'b.png' and 'a.png'" in message


def test_a_category_without_id_or_name_or_twice_is_named(tmp_path):
    base = content()
    message = message_of(tmp_path, base | {"categories": [{"name": "car"}]})
    assert "categories[0] has no id" in message
    message = message_of(tmp_path, base | {"categories": [{"id": 3}]})
    assert "category id 3 has no name" in message
    twice = [{"id": 3, "name": "car"}, {"id": 3, "name": "bus"}]
    message = message_of(tmp_path, base | {"categories": twice})
    assert "categories has id 3 twice, for 'car' and 'bus'" in message


def test_an_unknown_image_id_is_named_with_the_ids_known(tmp_path):
    message = message_of(tmp_path, content(annotation(1), annotation(42, image_id=99)))
    assert "annotation id 42 has image_id 99" in message
    assert "Ids in images: 5, 7\n" in message


@pytest.mark.parametrize("value", [1, "3", [3], float("nan")])
def test_an_unknown_category_id_is_named_with_the_ids_known(tmp_path, value):
    message = message_of(tmp_path, content(annotation(1), annotation(42, category_id=value)))
    assert f"annotation id 42 has category_id {value!r}" in message
    assert "Ids in categories: 3, 90\n" in message


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox"])
def test_an_annotation_without_a_needed_key_is_named(tmp_path, key):
    message = message_of(tmp_path, content(annotation(1), annotation(42, **{key: None})))
    assert f"annotation id 42 has no {key}" in message


def test_an_annotation_without_id_is_named_by_its_position(tmp_path):
    message = message_of(tmp_path, content(annotation(1), annotation(None, bbox=None)))
    assert "annotations[1] has no bbox" in message


@pytest.mark.parametrize(
    "box",
    [
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, "4"],
        [1, 2, 3, None],
        [1, 2, 3, [4]],
        [1, 2, 3, float("nan")],
        [1, 2, 3, float("inf")],
        [1, 2, 3, 10**400],
        "1234",
        {"x": 1},
        5,
    ],
    ids=str,
)
def test_a_box_that_is_not_four_finite_numbers_is_named(tmp_path, box):
    message = message_of(tmp_path, content(annotation(1), annotation(42, bbox=box)))
    assert "annotation id 42 has bbox " in message
    assert "four finite numbers" in message


def test_an_iscrowd_that_is_no_flag_is_named(tmp_path):
    message = message_of(tmp_path, content(annotation(42, iscrowd="0")))
    assert "annotation id 42 has iscrowd '0'" in message


def test_missing_image_files_are_counted_and_the_first_is_named(tmp_path):
    data = content()
    data["images"][0]["file_name"] = "sub/b.png"
    images, file = write(tmp_path, data)
    assert read_coco(images, file, "val").path(0) == images / "sub" / "b.png"
    os.remove(images / "sub" / "b.png")
    with pytest.raises(UserError) as raised:
        read_coco(images, file, "val")
    message = str(raised.value)
    assert message.startswith(f"data.val.images={images} lacks 1 of the 2 images of {file}")
    assert "'sub/b.png'" in message
    assert "data.val.images=FOLDER" in message
    assert len(message.splitlines()) <= 3
    os.rmdir(images / "sub")
    os.remove(images / "a.png")
    with pytest.raises(UserError, match="lacks 2 of the 2 images"):
        read_coco(images, file, "val")


# Image files, read as in training and evaluation


def one_image(folder: Path, name: str, size_wh: tuple[int, int]) -> tuple[Path, dict]:
    """The path for the image, and the content that declares its size."""
    data = content()
    data["images"] = [{"id": 7, "file_name": name, "width": size_wh[0], "height": size_wh[1]}]
    return write(folder, data, images=False)[0] / name, data


def batch_of(folder: Path, data: dict, on_bad_image: str = "error"):
    """All images in one batch, at stored size."""
    source = read(folder, data, images=False)
    size = ImageSize(int(source.annotations.sizes_hw[0].min()), 10.0)
    dataset = DetectionDataset(source, size, on_bad_image=on_bad_image)
    return collate([dataset[0, image] for image in range(len(dataset))])


def save_halves(path: Path, mode: str, **options) -> None:
    """A 40×20 image, left half black and right half white."""
    halves = Image.new("L", (40, 20))
    halves.paste(255, (20, 0, 40, 20))
    halves.convert("RGB").convert(mode).save(path, **options)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.jpg", "L"),
        ("cmyk.jpg", "CMYK"),
        ("palette.png", "P"),
        ("alpha.png", "RGBA"),
        ("bits.png", "1"),
    ],
)
def test_any_colour_mode_becomes_rgb(tmp_path, name, mode):
    path, data = one_image(tmp_path, name, (40, 20))
    save_halves(path, mode)
    with Image.open(path) as stored:
        assert stored.mode == mode
    batch = batch_of(tmp_path, data)
    assert batch.images.shape == (1, 3, 32, 64)
    assert (batch.images[0, :, :20, :18] < 10).all()
    assert (batch.images[0, :, :20, 22:40] > 245).all()
    assert batch.bad_images == []


@pytest.mark.parametrize("annotated", ["turned", "raw"])
def test_a_rotated_image_is_read_the_way_its_annotations_were_drawn(tmp_path, annotated):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated 90° clockwise: the black left half moves to the top
    path, data = one_image(tmp_path, "a.png", (20, 40) if annotated == "turned" else (40, 20))
    save_halves(path, "RGB", exif=exif)
    image = batch_of(tmp_path, data).images[0]
    if annotated == "turned":
        assert (image[:, :20, :20] == 0).all()
        assert (image[:, 20:40, :20] == 255).all()
    else:
        assert (image[:, :20, :20] == 0).all()
        assert (image[:, :20, 20:40] == 255).all()


def test_an_image_upside_down_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # 180°: the size cannot tell, so it is rotated, as in most tools
    path, data = one_image(tmp_path, "a.png", (40, 20))
    save_halves(path, "RGB", exif=exif)
    image = batch_of(tmp_path, data).images[0]
    assert (image[:, :20, :20] == 255).all()
    assert (image[:, :20, 20:40] == 0).all()


def cut_off_image(folder: Path) -> tuple[Path, dict]:
    """a.png is intact, b.jpg is truncated."""
    data = content(annotation(1), annotation(2, image_id=5, category_id=90))
    data["images"][0]["file_name"] = "b.jpg"
    images, _ = write(folder, data)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "b.jpg")
    whole = (images / "b.jpg").read_bytes()
    (images / "b.jpg").write_bytes(whole[: len(whole) // 2])
    return images / "b.jpg", data


def test_a_truncated_image_ends_the_run_and_is_named(tmp_path):
    path, data = cut_off_image(tmp_path)
    dataset = DetectionDataset(read(tmp_path, data, images=False), ImageSize(32, 2.0))
    with pytest.raises(UserError) as raised:
        list(evaluation_batches(dataset, batch=2))
    message = str(raised.value)
    assert str(path) in message
    assert "data.on_bad_image=skip" in message
    assert len(message.splitlines()) <= 3


def test_a_truncated_image_can_be_skipped_and_is_listed(tmp_path):
    path, data = cut_off_image(tmp_path)
    dataset = DetectionDataset(
        read(tmp_path, data, images=False), ImageSize(32, 2.0), on_bad_image="skip"
    )
    (batch,) = evaluation_batches(dataset, batch=2)
    assert len(batch.bad_images) == 1
    assert str(path) in batch.bad_images[0]
    assert [target.image_id for target in batch.targets] == [5, 5]  # the other replaces it


def test_an_image_of_another_size_than_annotated_is_bad(tmp_path):
    path, data = one_image(tmp_path, "a.png", (41, 20))
    save_halves(path, "RGB")
    source = read(tmp_path, data, images=False)
    with pytest.raises(BadImage, match="a.png is 40×20, but its annotations say 41×20"):
        source.read(0)
    with pytest.raises(UserError, match="None of the 1 images can be read.*a.png"):
        DetectionDataset(source, ImageSize(32, 2.0))[0, 0]


# Real data


@needs_shared
@pytest.mark.parametrize(
    ("split", "images", "boxes", "report"),
    [
        ("train", 292, 3941, ["2 boxes without area dropped (annotation ids 3153, 3197)"]),
        ("val", 72, 945, []),
    ],
)
def test_bccd_is_read_whole(split, images, boxes, report):
    root = SHARED / "bccd"
    source = read_coco(root / split, root / f"annotations/instances_{split}.json", split)
    annotations = source.annotations
    assert len(annotations) == images
    assert all(source.path(image).is_file() for image in range(images))
    assert len(annotations.boxes_xyxy) == boxes
    assert list(annotations.category_names) == ["RBC", "WBC", "Platelets"]
    assert list(annotations.report) == report
    assert source.read(images - 1).shape == (480, 640, 3)


@needs_shared
@pytest.mark.parametrize(
    ("split", "images", "boxes", "empty"), [("train", 48, 408, 1), ("val", 32, 223, 0)]
)
def test_coco_mini_is_read_whole(split, images, boxes, empty):
    root = SHARED / "coco_mini"
    file = root / "annotations" / f"instances_{split}2017.json"
    source = read_coco(root / f"{split}2017", file, split)
    annotations = source.annotations
    assert len(annotations) == images
    assert len(annotations.boxes_xyxy) == boxes
    assert len(annotations.category_ids) == 80
    assert annotations.category_ids[-1] == 90
    assert 0 <= annotations.labels.min() <= annotations.labels.max() < 80
    assert annotations.crowd.sum() == 2
    assert (np.diff(annotations.first) == 0).sum() == empty
    assert ap_of_the_ground_truth(annotations.to_coco()) == pytest.approx(1.0)
    dataset = DetectionDataset(source, ImageSize(64, 1.667))
    batch = collate([dataset[0, image] for image in range(4)])
    assert batch.bad_images == []
    assert all((t.gt_xyxy[:, 2:] > t.gt_xyxy[:, :2]).all() for t in batch.targets)
