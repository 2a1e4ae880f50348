"""Conversion of Pascal VOC to the COCO layout: boxes, splits, difficult objects, broken input.

pytest tests/test_voc.py
"""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from onenet.data.coco import read_coco
from onenet.data.voc import main

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def voc_object(name: str, *corners, difficult: int | None = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox>{part}</object>"


def add_image(root: Path, stem: str, *objects: str, size: str = SIZE, suffix: str = ".jpg") -> None:
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(root / "JPEGImages" / f"{stem}{suffix}")
    xml = f"<annotation><filename>old.jpg</filename>{size}{''.join(objects)}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(xml)


def add_split(root: Path, name: str, *stems: str) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two training images (one empty), one for validation; three classes."""
    root = tmp_path / "VOC2007"
    add_image(
        root,
        "000005",
        voc_object("train", 1, 1, 40, 30),
        voc_object("boat", 11, 6, 20, 15, difficult=1),
        voc_object("boat", "3.5", " 4 ", 10, 12, difficult=None),
    )
    add_image(root, "000009")
    add_image(root, "000012", voc_object("cat", 5, 5, 5, 5), size="", suffix=".png")
    add_split(root, "train", "000005", "000009")
    add_split(root, "val", "000012")
    return root


def converted(out: Path, split: str) -> dict:
    return json.loads((out / "annotations" / f"instances_{split}2017.json").read_text())


def error_of(capsys, *arguments) -> str:
    """The error message: short, and the only output."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) <= 3
    return printed.err


def test_boxes_are_those_computed_by_hand(voc, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(voc), str(out)]) == 0
    train = converted(out, "train")
    assert train["categories"] == [
        {"id": 1, "name": "boat"},
        {"id": 2, "name": "cat"},
        {"id": 3, "name": "train"},
    ]
    assert train["images"] == [
        {"id": 1, "file_name": "000005.jpg", "width": 40, "height": 30},
        {"id": 2, "file_name": "000009.jpg", "width": 40, "height": 30},
    ]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    assert [tuple(entry[key] for key in keys) for entry in train["annotations"]] == [
        (1, 1, 3, [0, 0, 40, 30], 1200, 0),  # the whole image: 1..40 and 1..30, inclusive
        (2, 1, 1, [10, 5, 10, 10], 100, 1),
        (3, 1, 1, [2.5, 3, 7.5, 9], 67.5, 0),
    ]
    val = converted(out, "val")
    assert val["categories"] == train["categories"]
    assert val["images"] == [{"id": 1, "file_name": "000012.png", "width": 40, "height": 30}]
    assert val["annotations"][0]["bbox"] == [4, 4, 1, 1]  # one pixel
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) == 1
    assert f"{out}: 2 train images with 3 boxes, 1 val image with 1 box, 3 classes" in printed


def test_the_result_is_read_as_a_coco_folder(voc, tmp_path):
    out = tmp_path / "out"
    main([str(voc), str(out)])
    source = read_coco(out / "train2017", out / "annotations" / "instances_train2017.json", "train")
    assert source.annotations.boxes_xyxy[0].tolist() == [0, 0, 40, 30]
    assert source.annotations.crowd.tolist() == [False, True, False]
    assert list(source.annotations.report) == []
    assert source.read(1).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("choice", "flags"), [("crowd", [0, 1, 0]), ("keep", [0, 0, 0]), ("drop", [0, 0])]
)
def test_difficult_objects_are_treated_as_chosen(voc, tmp_path, choice, flags):
    out = tmp_path / "out"
    assert main([str(voc), str(out), "--difficult", choice]) == 0
    assert [entry["iscrowd"] for entry in converted(out, "train")["annotations"]] == flags


def test_images_are_whole_files_of_their_own_even_if_the_input_links_elsewhere(voc, tmp_path):
    image = voc / "JPEGImages" / "000009.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    out = tmp_path / "out"
    assert main([str(voc), str(out)]) == 0
    assert not (out / "train2017" / "000009.jpg").is_symlink()
    (tmp_path / "elsewhere.jpg").unlink()
    assert Image.open(out / "train2017" / "000009.jpg").size == (40, 30)


def test_images_are_copied_where_links_are_refused(voc, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"
    assert main([str(voc), str(out)]) == 0
    copy, original = out / "train2017" / "000005.jpg", voc / "JPEGImages" / "000005.jpg"
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()


def test_a_second_conversion_replaces_the_first(voc, tmp_path):
    out = tmp_path / "out"
    main([str(voc), str(out)])
    before = converted(out, "train")
    (voc / "JPEGImages" / "000009.jpg").unlink()
    add_image(voc, "000009", voc_object("cat", 1, 1, 9, 9))
    assert main([str(voc), str(out)]) == 0
    after = converted(out, "train")
    assert len(after["annotations"]) == len(before["annotations"]) + 1
    again = out / "train2017" / "000009.jpg"
    assert again.samefile(voc / "JPEGImages" / "000009.jpg")


def test_other_splits_can_be_chosen_and_an_overlap_is_said(voc, tmp_path, capsys):
    add_split(voc, "trainval", "000005", "000009", "000012")
    out = tmp_path / "out"
    assert main([str(voc), str(out), "--train", "trainval"]) == 0
    assert len(converted(out, "train")["images"]) == 3
    assert "Warning: 1 image in both splits." in capsys.readouterr().out


def test_without_image_sets_a_fifth_is_val_the_same_one_each_time(tmp_path, capsys):
    root = tmp_path / "export"
    for i in range(20):
        add_image(root, f"cell_{i}", voc_object("RBC", 1, 1, 5, 5))
    splits = []
    for name in ("one", "two"):
        assert main([str(root), str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out
        assert "20% of the images, by a hash of their names, are val" in printed
        files = {
            split: {entry["file_name"] for entry in converted(tmp_path / name, split)["images"]}
            for split in ("train", "val")
        }
        assert len(files["val"]) == 4
        assert len(files["train"]) == 16
        assert not files["val"] & files["train"]
        splits.append(files)
    assert splits[0] == splits[1]


# Errors


@pytest.mark.parametrize("nesting", ["VOC2007", "VOCdevkit/VOC2007"])
def test_a_folder_above_is_pointed_to_the_right_one(tmp_path, capsys, nesting):
    add_image(tmp_path / nesting, "000005", voc_object("cat", 1, 1, 5, 5))
    message = error_of(capsys, tmp_path, tmp_path / "out")
    assert f"Did you mean {tmp_path / nesting} ?" in message


def test_a_folder_that_is_no_voc_is_said(tmp_path, capsys):
    message = error_of(capsys, tmp_path, tmp_path / "out")
    assert "has no folder Annotations and no JPEGImages" in message
    assert "no does not exist" in error_of(capsys, tmp_path / "no", tmp_path / "out")


def test_a_split_that_does_not_exist_lists_those_that_do(voc, tmp_path, capsys):
    add_split(voc, "cat_val", "000012 1")
    message = error_of(capsys, voc, tmp_path / "out", "--val", "test")
    assert "test.txt does not exist" in message
    assert "--val NAME (train, val)" in message


def test_an_empty_split_is_named(voc, tmp_path, capsys):
    add_split(voc, "val")
    assert "val.txt names no image" in error_of(capsys, voc, tmp_path / "out")


def test_a_split_cannot_be_chosen_without_image_sets(tmp_path, capsys):
    for stem in "abc":
        add_image(tmp_path / "voc", stem, voc_object("cat", 1, 1, 5, 5))
    message = error_of(capsys, tmp_path / "voc", tmp_path / "out", "--train", "trainval")
    assert "ImageSets/Main does not exist" in message


def test_one_image_cannot_be_split(tmp_path, capsys):
    add_image(tmp_path / "voc", "a", voc_object("cat", 1, 1, 5, 5))
    assert "holds 1 file *.xml" in error_of(capsys, tmp_path / "voc", tmp_path / "out")


def test_no_object_at_all_is_an_error(tmp_path, capsys):
    add_image(tmp_path / "voc", "a")
    add_image(tmp_path / "voc", "b")
    assert "none of the images has an object" in error_of(
        capsys, tmp_path / "voc", tmp_path / "out"
    )


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("<annotation><object>", "not valid XML: no element found: line 1"),
        (f"<a>{SIZE}{voc_object('', 1, 1, 5, 5)}</a>", "object 1 has no name"),
        (f"<a>{SIZE}<object><name>cat</name></object></a>", "object 1 (cat) has xmin None"),
        (f"<a>{SIZE}{voc_object('cat', 1, 'x', 5, 5)}</a>", "object 1 (cat) has ymin 'x'"),
        (f"<a>{SIZE}{voc_object('cat', 1, 1, 5, 'inf')}</a>", "object 1 (cat) has ymax 'inf'"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_broken_annotation_is_named_and_nothing_is_written(
    voc, tmp_path, capsys, broken, expected
):
    path = voc / "Annotations" / "000012.xml"
    path.unlink() if broken is None else path.write_text(broken)
    message = error_of(capsys, voc, tmp_path / "out")
    assert str(path) in message
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_a_missing_image_is_named_and_nothing_is_written(voc, tmp_path, capsys):
    (voc / "JPEGImages" / "000009.jpg").unlink()
    assert "has no image 000009" in error_of(capsys, voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_without_any_size_is_named(voc, tmp_path, capsys):
    (voc / "JPEGImages" / "000012.png").write_bytes(b"no image")
    message = error_of(capsys, voc, tmp_path / "out")
    assert "000012.xml has no size, and " in message


def test_no_annotation_file_is_left_half_written(voc, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    main([str(voc), str(out)])
    capsys.readouterr()
    before = converted(out, "train")

    def fail(*_):
        raise OSError("disk full")

    add_image(voc, "000009", voc_object("cat", 1, 1, 9, 9))
    monkeypatch.setattr(os, "replace", fail)
    assert "disk full" in error_of(capsys, voc, out)
    assert converted(out, "train") == before
    assert not list(out.rglob("*.tmp"))


def test_a_place_that_cannot_be_written_is_said(voc, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert str(tmp_path / "out") in error_of(capsys, voc, tmp_path / "out")
