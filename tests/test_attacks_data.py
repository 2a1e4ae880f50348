"""Hostile data sets: images that are none, names that lead elsewhere or hold terminal escapes.

Run: pytest tests/test_attacks_data.py
"""

import ast
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from onenet.data import voc
from onenet.data.coco import read_coco
from onenet.data.images import FORMATS, BadImage, ImageFiles
from onenet.data.loading import DetectionDataset, evaluation_batches
from onenet.data.sizes import ImageSize
from onenet.errors import UserError
from onenet.system.files import REPOSITORY, read_json, write_json
from onenet.system.printable import printable

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 70\n%%EndComments\nshowpage\n"
LATIN_1 = os.fsdecode(b"caf\xe9.png")  # what a name that is not valid UTF-8 reads as
ESCAPES = "\x1b[2J\x1b[31mFAKE: all fine.png"


def write(folder: Path, name: str, class_name: str = "car", size_wh=(90, 70)) -> tuple[Path, Path]:
    """The folder of images, without any, and an annotation file with one image: id 7."""
    (folder / "img").mkdir(exist_ok=True)
    width, height = size_wh
    content = {
        "images": [{"id": 7, "file_name": name, "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [9, 9, 40, 30]}],
        "categories": [{"id": 3, "name": class_name}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "img", folder / "a.json"


def save_image(path: Path, size_wh=(90, 70)) -> None:
    Image.new("RGB", size_wh, "red").save(path, "PNG")


def header_of_png(width: int, height: int) -> bytes:
    """A PNG without pixels, which says that it has width × height of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# --- images that are none ---


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "not a file, but a folder, pipe or device"),
        (os.mkdir, "not a file, but a folder, pipe or device"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file, but a folder, pipe or device"),
        (lambda path: path.write_bytes(POSTSCRIPT), "not an image in one of the formats JPEG, PNG"),
        (lambda path: path.write_text("root:x:0:0"), "not an image in one of the formats JPEG"),
        (lambda path: path.write_bytes(b""), "not an image in one of the formats JPEG"),
        (
            lambda path: path.write_bytes(header_of_png(13_000, 13_000)),
            "is 13000×13000, but its annotations say 90×70",  # not: image file is truncated
        ),
        (
            lambda path: path.write_bytes(header_of_png(30_000, 30_000)),
            "Image size (900000000 pixels) exceeds limit",
        ),
        (lambda path: save_image(path, (70, 90)), "is 70×90, but its annotations say 90×70"),
    ],
    ids=[
        *("pipe", "folder", "device", "PostScript", "text", "empty"),
        *("small file of a huge image", "decompression bomb", "turned image"),
    ],
)
def test_a_file_that_is_no_such_image_is_refused_at_once(tmp_path, make, problem):
    images, file = write(tmp_path, "b.jpg")
    make(images / "b.jpg")
    with pytest.raises(BadImage) as raised:
        read_coco(images, file, "train").read(0)
    assert str(images / "b.jpg") in str(raised.value)
    assert problem in str(raised.value)


def test_every_image_of_a_converted_voc_folder_can_be_read():
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert suffixes >= voc.IMAGE_SUFFIXES


@pytest.mark.parametrize(
    ("content", "problem"),
    [(POSTSCRIPT, "not an image in one of"), (header_of_png(30_000, 30_000), "exceeds limit")],
    ids=["PostScript", "decompression bomb"],
)
def test_a_voc_image_is_opened_as_carefully(tmp_path, capsys, content, problem):
    """Its size is read from the image if the XML has none."""
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    for stem in ("\x1b[2J", "\x1b[31m"):
        (tmp_path / "Annotations" / f"{stem}.xml").write_text("<annotation/>")
        (tmp_path / "JPEGImages" / f"{stem}.jpg").write_bytes(content)
    assert voc.main([str(tmp_path), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert problem in message
    assert r"\x1b[" in message
    assert "\x1b" not in message
    assert len(message.splitlines()) <= 3


# --- names that leave the folder ---


@pytest.mark.parametrize(
    "name",
    [
        "{root}/secret.png",
        "../secret.png",
        "sub/../../secret.png",
        "../img2/secret.png",  # a folder whose name starts like that of the images
        "link/../secret.png",  # link leads to {root}/other/sub
    ],
)
def test_a_name_that_leaves_the_folder_needs_permission(tmp_path, name):
    for folder in ("img/sub", "img2", "other/sub"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "img" / "link").symlink_to(tmp_path / "other" / "sub")
    for folder in ("", "img2", "other"):
        save_image(tmp_path / folder / "secret.png")
    name = name.format(root=tmp_path)
    images, file = write(tmp_path, name)
    with pytest.raises(UserError) as raised:
        read_coco(images, file, "val")
    message = str(raised.value)
    assert message.startswith(f"data.val.annotations={file}: image id 7 has file_name {name!r}")
    assert "data.allow_outside=true" in message
    assert len(message.splitlines()) <= 3
    assert read_coco(images, file, "val", allow_outside=True).read(0).shape == (70, 90, 3)


@pytest.mark.parametrize("name", ["sub/../b.png", "{root}/img/b.png", "link.png", "far/b.png"])
def test_a_name_in_the_folder_needs_none_and_links_lead_anywhere(tmp_path, name):
    for folder in ("img/sub", "other"):
        (tmp_path / folder).mkdir(parents=True)
        save_image(tmp_path / folder.partition("/")[0] / "b.png")
    (tmp_path / "img" / "link.png").symlink_to(tmp_path / "other" / "b.png")
    (tmp_path / "img" / "far").symlink_to(tmp_path / "other")
    images, file = write(tmp_path, name.format(root=tmp_path))
    assert read_coco(images, file, "train").read(0).shape == (70, 90, 3)


# --- names that cannot be printed ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Käse 日本 👩‍🚀 a\\b", "Käse 日本 👩‍🚀 a\\b"),
        ("\x1b[2J\n\r\t", r"\x1b[2J\n\r\t"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        (LATIN_1 + "\ud800", r"caf\udce9.png\ud800"),
    ],
)
def test_only_what_cannot_be_printed_is_escaped(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


@pytest.mark.parametrize("name", [LATIN_1, ESCAPES])
def test_a_bad_image_is_named_readably(tmp_path, name):
    images, file = write(tmp_path, name)
    (images / name).write_bytes(b"no image")
    with pytest.raises(BadImage) as raised:
        read_coco(images, file, "train").read(0)
    message = str(raised.value)
    assert printable(name) in message
    assert printable(message) == message


def test_an_image_whose_name_is_not_valid_utf_8_is_read(tmp_path):
    images, file = write(tmp_path, LATIN_1)
    save_image(images / LATIN_1)
    assert read_coco(images, file, "train").read(0).shape == (70, 90, 3)


def test_a_bad_image_is_skipped_whatever_its_name(tmp_path):
    images, file = write(tmp_path, LATIN_1)
    annotations = read_coco_of_two(images, file, "good.png")
    source = ImageFiles(annotations, images, [LATIN_1, "good.png"])
    (images / LATIN_1).write_bytes(b"no image")
    dataset = DetectionDataset(source, ImageSize(64, 2.0), on_bad_image="skip")
    (batch,) = evaluation_batches(dataset, batch=2)
    write_json(tmp_path / "result.json", {"bad_images": batch.bad_images})
    (message,) = read_json(tmp_path / "result.json")["bad_images"]
    assert r"caf\udce9.png: not an image" in message


def read_coco_of_two(images: Path, file: Path, other: str):
    """The annotations after a good image, `other`, is added as id 8."""
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0] | {"id": 8, "file_name": other})
    file.write_text(json.dumps(content))
    for entry in content["images"]:
        save_image(images / entry["file_name"])
    return read_coco(images, file, "train").annotations


@pytest.mark.parametrize("name", ["\ud800 truck", "\x1b]0;owned\x07"])
def test_a_class_is_named_readably(tmp_path, name):
    images, file = write(tmp_path, "b.png", class_name=name)
    save_image(images / "b.png")
    for _ in range(2):  # from the file, then from its index
        annotations = read_coco(images, file, "train", tmp_path / "cache").annotations
        assert annotations.category_names == [printable(name)]


def test_json_holds_any_text(tmp_path):
    """A lone surrogate comes back as it was."""
    values = {"path": f"a\\{LATIN_1}", "name": '"\ud800"', "é": "日本"}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values
    assert "日本" in (tmp_path / "a.json").read_text(encoding="utf-8")


# --- weights ---


def test_every_file_of_tensors_is_read_without_code():
    """torch.load runs code in the file unless weights_only=True."""
    files = [*REPOSITORY.glob("onenet/**/*.py"), *REPOSITORY.glob("analysis/**/*.py")]
    calls = [
        ast.unparse(node)
        for file in files
        if "load" in file.read_text()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]
    reads = [c for c in calls if c.startswith(("torch.load(", "timm.models.load_state_dict("))]
    assert len(reads) >= 4
    assert [call for call in reads if "weights_only=True" not in call] == []


# --- whole runs ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "status", "said"),
    [
        ("b.jpg", os.mkfifo, 1, "not a file, but a folder, pipe or device"),
        (LATIN_1, lambda path: path.write_bytes(b""), 0, ""),
        (ESCAPES, lambda path: path.write_bytes(b""), 1, r"\x1b[2J\x1b[31mFAKE: all fine.png: not"),
    ],
    ids=["pipe", "not UTF-8, skipped", "escapes"],
)
def test_a_run_reports_a_hostile_image_and_ends(tmp_path, name, make, status, said):
    images, file = write(tmp_path, name, class_name="\ud800")
    read_coco_of_two(images, file, "good.png")
    (images / name).unlink()
    make(images / name)
    words = ["debug=tiny", "tracker=none", "steps=2", "data=coco", f"data.root={tmp_path}"]
    for split in ("train", "val"):
        words += [f"data.{split}.images={images}", f"data.{split}.annotations={file}"]
    words += [f"runs_root={tmp_path / 'runs'}"] + ([] if status else ["data.on_bad_image=skip"])
    command = [sys.executable, str(REPOSITORY / "run.py"), *words]
    run = subprocess.run(command, capture_output=True, timeout=240)
    assert run.returncode == status, run.stdout + run.stderr
    assert said in run.stdout.decode()  # in UTF-8
    assert b"\x1b[2J" not in run.stdout + run.stderr
    if status == 0:
        (result,) = (tmp_path / "runs").glob("*/result.json")
        assert r"caf\udce9.png" in read_json(result)["bad_images"][0]
