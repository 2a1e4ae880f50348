"""A trained network in use: `load`, `predict`, and the command line.

Run: pytest tests/test_inference.py
"""

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onenet import load, predict
from onenet.config.compose import from_dict
from onenet.data.loading import DetectionDataset
from onenet.errors import UserError
from onenet.evaluation.predict import predict as predict_data_set
from onenet.inference.detector import TrainedDetector
from onenet.inference.formats import write_safetensors
from onenet.inference.images import find_images, short_names, to_pixels
from onenet.inference.load import CONFIG_FILE
from onenet.system.files import read_json, write_json
from tests.conftest import Pictures, make_annotations
from tests.trained import CLASSES, finished_run

SIZES_HW = ((50, 70), (200, 64), (33, 97))  # odd, tall, wide


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs"), "heads=2")


@pytest.fixture(scope="module")
def detector(run) -> TrainedDetector:
    return load(run.path)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (height, width) in enumerate(SIZES_HW):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def same(one, other) -> None:
    np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.names == other.names


# --- load ---


def test_importing_the_package_brings_no_torch():
    code = "import onenet, sys; assert 'torch' not in sys.modules; onenet.load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_is_found_by_its_folder_its_name_and_its_id(run, detector):
    assert detector.id == run.id
    assert detector.classes == CLASSES
    root = run.path.parent
    for name in (str(run.path), run.path.name, run.id):
        assert load(name, runs=root).id == run.id


def test_the_network_is_in_evaluation_mode_and_returns_its_outputs(detector):
    assert not detector.network.training
    first, second = detector.network(torch.zeros(1, 3, 64, 96))
    assert first.class_logits.shape == second.class_logits.shape == (1, 16 * 24, 5)


def test_an_export_of_weights_is_loaded_with_the_heads_that_inference_needs(run, tmp_path):
    original = load(run.path)
    image = np.zeros((50, 70, 3), np.uint8)
    expected = original.predict(image, score=0)
    write_safetensors(original, tmp_path)
    loaded = load(tmp_path)
    assert len(loaded.network.head.features) == 1
    same(loaded.predict(image, score=0), expected)
    assert str(run.path.parent) not in (tmp_path / CONFIG_FILE).read_text()


def test_what_cannot_be_loaded_is_named(run, tmp_path):
    def refused(name) -> str:
        with pytest.raises(UserError) as error:
            load(name, runs=run.path.parent)
        return str(error.value)

    assert "no run 0123456789" in refused("0123456789")
    assert "is not the folder of a run" in refused(tmp_path)
    unfinished = finished_run(tmp_path, state="failed")
    assert "is failed, not done" in refused(unfinished.path)
    missing = finished_run(tmp_path / "a")
    missing.checkpoint_file.unlink()
    assert "last.pt" in refused(missing.path)
    other = finished_run(tmp_path / "b")
    torch.save(
        {"id": other.id, "progress": {}, "model": {}, "optimizer": {}}, other.checkpoint_file
    )
    assert "cannot be used: Error(s) in loading state_dict" in refused(other.path)


class Code:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_a_checkpoint_with_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished_run(tmp_path)
    run.checkpoint_file.write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match=r"last.pt is missing or unusable"):
        load(run.path)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"classes": {"ids": [1], "names": []}}, "is not that of an export: Classes"),
        ({"config": None}, "is not that of an export"),
        ({"heads": "many"}, "is not that of an export"),
    ],
)
def test_a_damaged_export_is_named(run, tmp_path, change, why):
    write_safetensors(load(run.path), tmp_path)
    write_json(tmp_path / CONFIG_FILE, read_json(tmp_path / CONFIG_FILE) | change)
    with pytest.raises(UserError, match=why) as error:
        load(tmp_path)
    assert CONFIG_FILE in str(error.value)


def test_an_export_cannot_name_code(run, tmp_path):
    write_safetensors(load(run.path), tmp_path)
    values = read_json(tmp_path / CONFIG_FILE)
    values["config"]["neck"]["own"] = {"_target_": "os.system", "command": "true"}
    write_json(tmp_path / CONFIG_FILE, values)
    with pytest.raises(UserError, match="must not"):
        load(tmp_path)


def test_torn_weights_are_named(run, tmp_path):
    write_safetensors(load(run.path), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors cannot be used"):
        load(tmp_path)


# --- predict ---


def test_predictions_equal_those_of_an_evaluation(detector, images):
    pixels = [np.asarray(Image.open(images / f"{n}.png")) for n in range(len(SIZES_HW))]
    source = Pictures(make_annotations(SIZES_HW, [[]] * len(SIZES_HW), classes=5), pixels)
    dataset = DetectionDataset(source, detector.size)
    expected, _ = predict_data_set(detector.network, dataset, batch=1)
    for number, objects in enumerate(detector.predict(images, score=0)):
        rows = expected.image == number
        np.testing.assert_allclose(objects.boxes_xyxy, expected.boxes_xyxy[rows])
        np.testing.assert_allclose(objects.scores, expected.scores[rows])
        np.testing.assert_array_equal(objects.labels, expected.labels[rows])
        kept = detector.predict(pixels[number], score=0, nms=0.5)
        np.testing.assert_allclose(kept.scores, expected.scores[rows & expected.nms_keep[0.5]])
        assert objects.size_hw == SIZES_HW[number]
        assert objects.names == [CLASSES.names[label] for label in objects.labels]


def test_an_image_may_come_in_any_form(detector, images):
    path = images / "0.png"
    expected = detector.predict(path, score=0)
    assert len(expected) > 20
    picture = Image.open(path)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for form in (str(path), picture, array, array[:, ::1], tensor):
        same(detector.predict(form, score=0), expected)
    one, other = detector.predict([path, array], score=0)
    same(one, expected)
    same(other, expected)


def test_a_rotated_image_is_turned_as_its_exif_data_says(detector, images, tmp_path):
    picture = Image.open(images / "1.png")
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees to see it
    picture.save(tmp_path / "rotated.png", exif=exif)
    upright = np.rot90(np.asarray(picture), -1)
    expected = detector.predict(upright, score=0)
    same(detector.predict(tmp_path / "rotated.png", score=0), expected)
    same(detector.predict(Image.open(tmp_path / "rotated.png"), score=0), expected)
    assert expected.size_hw == SIZES_HW[1][::-1]


def test_grey_is_grey_in_all_channels():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(to_pixels(grey)[..., 2], grey)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        torch.zeros(5, 5, dtype=torch.uint8),
        torch.zeros(3, 5, 5),
        7,
        None,
    ],
    ids=str,
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(UserError, match=r"must be \[|is not an image"):
        to_pixels(image)


def test_a_score_is_the_lowest_that_is_returned(detector, images):
    all_objects = detector.predict(images / "0.png", score=0)
    least = float(np.median(all_objects.scores))
    some = detector.predict(images / "0.png", score=least)
    np.testing.assert_array_equal(some.scores, all_objects.scores[all_objects.scores >= least])
    assert len(detector.predict(images / "0.png", score=1.0)) == 0
    with pytest.raises(UserError, match=r"score=2: must be in 0..1"):
        detector.predict(images / "0.png", score=2)


def test_detections_convert_to_supervision(detector, images):
    pytest.importorskip("supervision")
    for least in (0, 1.0):
        objects = detector.predict(images / "0.png", score=least)
        converted = objects.to_supervision()
        assert len(converted) == len(objects)
        np.testing.assert_allclose(converted.xyxy, objects.boxes_xyxy, rtol=1e-6)
        assert list(converted.data["class_name"]) == objects.names


# --- files ---


def test_names_stand_for_files_folders_and_patterns(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path, tmp_path / "b.jpg"])
    assert [*short_names(found)] == ["a.PNG", "b.jpg", "sub/c.webp"]
    assert [f.name for f in find_images([f"{tmp_path}/*.jpg"])] == ["b.jpg"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    left = find_images([tmp_path], without=tmp_path / "sub")
    assert [*short_names(left)] == ["a.PNG", "b.jpg"]
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", tmp_path / "*.tif", tmp_path / "nothing"):
        with pytest.raises(UserError, match="holds no image|no file"):
            find_images([name])


# --- the command ---


def command(*arguments) -> int:
    return predict.main([*map(str, arguments)])


def test_the_command_writes_detections_and_pictures(run, detector, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(run.path, images, "--out", out, "--score", 0) == 0
    rows = json.loads((out / "detections.json").read_text())
    expected = detector.predict(images, score=0)
    assert len(rows) == sum(map(len, expected))
    for number, objects in enumerate(expected):
        of_image = [row for row in rows if row["file_name"] == f"{number}.png"]
        assert {row["image_id"] for row in of_image} == {number + 1}
        corners = np.array([row["bbox"] for row in of_image])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, objects.boxes_xyxy, atol=2e-3)
        ids = [CLASSES.ids[label] for label in objects.labels]
        assert [row["category_id"] for row in of_image] == ids
        assert Image.open(out / "images" / f"{number}.png").size[0] >= SIZES_HW[number][1]
    assert "3 images" in capsys.readouterr().out
    assert {f.name for f in out.iterdir()} == {"detections.json", "images"}
    assert command(run.path, images, "--out", images / "out", "--nms") == 0  # into the same folder
    assert command(run.path, images, "--out", images / "out", "--nms", 0.7) == 0
    assert len([*(images / "out" / "images").iterdir()]) == len(SIZES_HW)


def test_unreadable_images_are_named_and_skipped(run, images, tmp_path, capsys):
    (images / "text.jpg").write_text("not an image")
    assert command(run.path, images, "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "text.jpg" in captured.err
    assert "1 image could not be read" in captured.out
    assert len([*(tmp_path / "out" / "images").iterdir()]) == len(SIZES_HW)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("RUN", "text.jpg"), "no image could be read"),
        (("RUN", "nothing.jpg"), "no file nothing.jpg"),
        (("RUN", "empty"), "holds no image"),
        (("0123456789", "0.png"), "no run 0123456789"),
        (("RUN", "0.png", "--score", "1.5"), "--score 1.5"),
        (("RUN", "0.png", "--nms", "-1"), "--nms -1"),
    ],
)
def test_invalid_input_is_named_and_nothing_is_written(
    run, images, monkeypatch, capsys, arguments, why
):
    monkeypatch.chdir(images)
    Path("text.jpg").write_text("not an image")
    Path("empty").mkdir()
    words = [str(run.path) if word == "RUN" else word for word in arguments]
    assert command(*words, "--out", "out", "--runs", run.path.parent) == 2
    assert why in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_config_of_an_export_is_whole(run, tmp_path):
    write_safetensors(load(run.path), tmp_path)
    assert from_dict(read_json(tmp_path / CONFIG_FILE)["config"]).heads == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(run, images, tmp_path):
    """The peak after 1,000 images is that after 100, but for what Python keeps of freed memory."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number:04}.png").symlink_to(images / "0.png")
    files = find_images([folder])
    with predict.Report(load(run.path), tmp_path / "out") as report:
        for number, file in enumerate(files):
            report.add(file, file.name, score=0, nms=None)
            if number == 100:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert report.finish(seconds=1.0) == 0
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert growth < 20 * 1024  # KiB; the detections alone would be 30 MiB
