"""The index of an annotation file equals a fresh read, never fails, and is fast and small.

Run: pytest tests/test_index.py (-m slow: also at COCO's size)
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from analysis.benchmark_data import measure, write_data
from onenet.config.compose import compose
from onenet.data import coco, index
from onenet.data.coco import read_coco
from onenet.data.images import ImageFiles
from onenet.data.sources import check_splits, open_split
from onenet.errors import UserError
from tests.test_coco import annotation, content, write


def fails(*_):
    raise AssertionError("The annotation file is read.")


@pytest.fixture
def no_reading(monkeypatch):
    """A function that makes later reads of annotation files fail, so only an index works."""
    return lambda: monkeypatch.setattr(coco, "load_instances", fails)


def assert_equal(one: ImageFiles, other: ImageFiles) -> None:
    first, second = vars(one.annotations), vars(other.annotations)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert type(value) is type(second[name]), name
        if isinstance(value, np.ndarray):
            assert value.dtype == second[name].dtype, name
            assert value.shape == second[name].shape, name
            assert np.array_equal(value, second[name]), name
        else:
            assert value == second[name], name
    paths = [[s.path(image) for image in range(len(s.annotations))] for s in (one, other)]
    assert paths[0] == paths[1]


def unicode_content() -> dict:
    data = content(annotation(1))
    data["images"][0]["file_name"] = "straße/日本 😀.png"
    data["categories"][0]["name"] = "Fußgänger 🚶"
    data["categories"][1]["name"] = "\ud800"  # a lone surrogate is valid JSON
    return data


def large_content() -> dict:
    data = content(annotation(2**60, image_id=2**62, category_id=-(2**62)))
    data["images"][0]["id"], data["categories"][0]["id"] = 2**62, -(2**62)
    return data


@pytest.mark.parametrize(
    "data",
    [
        content(annotation(1), annotation(2, image_id=5, category_id=90, iscrowd=1, area=0.1)),
        content(annotation(1, part_xyxy=[3, 4, 5, 6.5]), annotation(2, 5, part_xyxy=[1, 2, 3, 4])),
        content(annotation(1, bbox=[5, 5, 0, 3]), annotation(2, area=None, bbox=[-3, 2, 10, 50])),
        content(),
        unicode_content(),
        large_content(),
    ],
    ids=["boxes", "parts", "report", "no annotations", "unicode", "large ids"],
)
def test_an_index_gives_what_a_fresh_read_gives(tmp_path, no_reading, data):
    images, file = write(tmp_path, data)
    fresh = read_coco(images, file, "train")
    assert_equal(fresh, read_coco(images, file, "train", tmp_path / "cache"))
    no_reading()
    assert_equal(fresh, read_coco(images, file, "train", tmp_path / "cache"))
    assert_equal(fresh, read_coco(images, file, "val", tmp_path / "cache"))


def test_without_a_cache_nothing_is_written(tmp_path):
    images, file = write(tmp_path, content())
    before = sorted(tmp_path.rglob("*"))
    read_coco(images, file, "train")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_index_goes_by_the_content_of_the_file_and_its_format(tmp_path, monkeypatch, no_reading):
    images, file = write(tmp_path, content(annotation(1)))
    cache = tmp_path / "cache"
    read_coco(images, file, "train", cache)
    file.write_text(json.dumps(content(annotation(1), annotation(2))))
    assert len(read_coco(images, file, "train", cache).annotations.labels) == 2
    moved = file.rename(tmp_path / "other.json")
    no_reading()
    assert len(read_coco(images, moved, "train", cache).annotations.labels) == 2
    monkeypatch.setattr(index, "FORMAT", index.FORMAT + 1)
    with pytest.raises(AssertionError, match="is read"):
        read_coco(images, moved, "train", cache)


def test_a_file_that_changes_while_it_is_read_gets_no_index(tmp_path, monkeypatch):
    images, file = write(tmp_path, content(annotation(1)))
    load = coco.load_instances

    def change_and_load(*arguments):
        file.write_text(json.dumps(content()))
        return load(*arguments)

    monkeypatch.setattr(coco, "load_instances", change_and_load)
    read_coco(images, file, "train", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def with_index(folder: Path) -> tuple[ImageFiles, Path]:
    """The source and the path of its index."""
    images, file = write(folder, content(annotation(1, part_xyxy=[3, 4, 5, 6]), annotation(2, 5)))
    source = read_coco(images, file, "train", folder / "cache")
    (path,) = (folder / "cache").iterdir()
    return source, path


def reread(folder: Path) -> ImageFiles:
    return read_coco(folder / "images", folder / "instances.json", "train", folder / "cache")


def foreign(path: Path) -> None:
    np.savez(path, other=np.arange(3))


class Trap:
    """Unpickling creates a folder next to the index."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled(path: Path) -> None:
    np.savez(path, texts=np.array([Trap(path.parent / "trap")], dtype=object))


def array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    "spoil",
    [
        foreign,
        pickled,
        array,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("{}"),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, path.stat().st_size - 1),
    ],
    ids=["foreign", "pickled", "array", "empty", "text", "half", "last byte"],
)
def test_an_index_that_cannot_be_used_is_written_again(tmp_path, recwarn, no_reading, spoil):
    source, path = with_index(tmp_path)
    spoil(path)
    assert_equal(source, reread(tmp_path))
    no_reading()
    assert_equal(source, reread(tmp_path))
    assert list(path.parent.iterdir()) == [path]
    assert not recwarn.list


def test_a_damaged_byte_anywhere_changes_nothing_that_is_read(tmp_path):
    source, path = with_index(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert_equal(source, reread(tmp_path))


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    images, file = write(tmp_path, content(annotation(1)))
    fresh = read_coco(images, file, "train")
    assert_equal(fresh, read_coco(images, file, "train", file))
    assert_equal(fresh, read_coco(images, file, "train", file / "below"))
    (tmp_path / "cache").mkdir()
    _, path = with_index(tmp_path)
    path.unlink()
    path.mkdir()
    reread(tmp_path)
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize(
    "data", ["[]", '{"images": [', json.dumps(content(annotation(1, image_id=99)))]
)
def test_errors_are_raised_each_time_and_get_no_index(tmp_path, data):
    images, file = write(tmp_path, data)
    with pytest.raises(UserError) as alone:
        read_coco(images, file, "train")
    for _ in range(2):
        with pytest.raises(UserError) as cached:
            read_coco(images, file, "train", tmp_path / "cache")
        assert str(cached.value) == str(alone.value)
    assert not (tmp_path / "cache").exists()


def test_images_and_files_that_are_gone_are_named_in_spite_of_an_index(tmp_path):
    source, _ = with_index(tmp_path)
    source.path(1).unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 2 images[^']*'a\.png'"):
        reread(tmp_path)
    with pytest.raises(UserError, match=r"data\.train\.images=.*no does not exist"):
        read_coco(tmp_path / "no", tmp_path / "instances.json", "train", tmp_path / "cache")
    (tmp_path / "instances.json").unlink()
    with pytest.raises(UserError, match=r"data\.train\.annotations=.* does not exist"):
        reread(tmp_path)


def rewrite(folder: Path) -> ImageFiles:
    """Reads 50 times and deletes the index before each."""
    for _ in range(50):
        for path in (folder / "cache").glob("*.npz"):
            path.unlink(missing_ok=True)
        source = reread(folder)
    return source


def test_several_processes_may_write_an_index_at_once(tmp_path, no_reading):
    source, path = with_index(tmp_path)
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as processes:
        for result in processes.map(rewrite, [tmp_path] * 3):
            assert_equal(source, result)
    assert list((tmp_path / "cache").iterdir()) == [path]
    no_reading()
    assert_equal(source, reread(tmp_path))


def test_open_split_and_check_splits_pass_the_cache_on(tmp_path, no_reading):
    images, file = write(tmp_path, content(annotation(1), annotation(2, 5, bbox=[1, 1, 0, 1])))
    overrides = ["data=coco", f"data.root={tmp_path}", "data.limit=1"]
    for split in ("train", "val"):
        overrides += [f"data.{split}.images={images}", f"data.{split}.annotations={file}"]
    data = compose(overrides).data
    cache = tmp_path / "cache"
    report = check_splits(data, cache)
    assert [line.partition(":")[0] for line in report] == ["data.train", "data.val"]
    no_reading()
    assert check_splits(data, cache) == report
    assert open_split(data, "val", cache).annotations.image_ids.tolist() == [7]
    assert len(read_coco(images, file, "train", cache).annotations) == 2


def test_any_file_name_keeps_its_path():
    names = ["a.png", "straße/日本 😀.png", "\udcff.png", "/abs/b.png"]
    source = ImageFiles(None, Path("/data"), names)
    assert [source.path(image) for image in range(4)] == [Path("/data") / name for name in names]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc of Linux")
def test_coco_itself_is_read_again_at_once_and_stays_small_with_four_workers(tmp_path):
    for name in ("tiny", "large"):
        (tmp_path / name).mkdir()
    tiny, _ = measure(*write_data(tmp_path / "tiny", 20, 100), tmp_path / "cache")
    images, file = write_data(tmp_path / "large", 118_287, 860_001)
    assert 400e6 < file.stat().st_size < 500e6
    first, again = measure(images, file, tmp_path / "cache")
    assert again.seconds < first.seconds / 3
    assert again.peak_mb < first.peak_mb / 3
    assert again.array_mb == first.array_mb < 80
    for reading in (first, again):
        assert len(reading.worker_mb) == 4
        assert max(reading.worker_mb) < max(tiny.worker_mb) + 20
