"""A finished run on another data set: classes by name, the result beside the others.

Run: pytest tests/test_evaluate.py
"""

import json

import numpy as np
import pytest
from PIL import Image

from onenet import evaluate, load
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.system.files import read_json
from tests.conftest import make_annotations
from tests.trained import CLASSES, finished_run


@pytest.fixture
def run(tmp_path):
    return finished_run(tmp_path / "runs", "heads=2")


@pytest.fixture
def data(tmp_path):
    """Four images in COCO's format with two of the run's classes, by other ids, and one more."""
    names = {1: "zebra", 4: "triangle", 9: "Ellipse"}
    folder = tmp_path / "data"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        for category in names:
            box = [5 * category, 10 + number, 30, 20]
            entry = {"image_id": number, "category_id": category, "bbox": box, "area": 600}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **entry})
    categories = [{"id": i, "name": name} for i, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def command(run, *overrides) -> int:
    return evaluate.main([str(run.path), *map(str, overrides)])


def test_classes_are_matched_by_name_and_the_result_lies_beside_the_others(run, data, capsys):
    assert command(run, "data=coco", f"data.root={data}") == 0
    output = capsys.readouterr().out
    assert "the data set has them but the detector has not: zebra" in output
    assert "the detector has them but the data set has not: rectangle, cross, hourglass" in output
    (folder,) = (run.path / "evaluations").iterdir()
    assert folder.name.startswith("h1-64x1.5-relative-val@data-")
    result = read_json(folder / "result.json")
    assert result["id"] == run.id
    assert result["classes"] == ["triangle", "Ellipse"]
    assert result["metrics"]["AP"] is not None
    assert "train_seconds" not in result["metrics"]
    assert (folder / "detections.json.gz").is_file()
    assert (folder / "per_image.npz").is_file()
    assert read_json(run.result_file)["metrics"]["AP"] == 12.3  # that of its own data

    # By hand: label 2 (triangle) is 0 here, label 0 (ellipse) is 1.
    detector = load(run.path)
    config = evaluate.evaluation_config(detector, ["data=coco", f"data.root={data}"])
    source = evaluate.open_split(config.data, "val")
    dataset = evaluate.build.evaluation_set(config, source, evaluate.requested_evaluation(config))
    predictions, _ = predict(detector.network, dataset, batch=1)
    objects = [[(0, (20, 10 + n, 50, 30 + n)), (1, (45, 10 + n, 75, 30 + n))] for n in range(4)]
    annotations = make_annotations([(60, 80)] * 4, objects, classes=2, image_ids=range(4))
    relabelled = evaluate.relabel(predictions, [(2, 0), (0, 1)], len(CLASSES))
    expected = Scorer(annotations, (64 / 512) ** 2).score(relabelled).metrics
    for metric in ("AP", "AP50", "AP_nms", "duplicates_per_object"):
        assert result["metrics"][metric] == pytest.approx(expected[metric]), metric


def test_only_settings_of_the_evaluation_can_be_changed(run, data, capsys):
    words = ("data=coco", f"data.root={data}")
    assert command(run, *words, "eval.size.short=96", "infer_heads=2", "eval.area=coco") == 0
    (folder,) = (run.path / "evaluations").iterdir()
    assert folder.name.startswith("h2-96x1.5-coco-val@data-")
    for override, why in (
        ("seed=1", "a finished run cannot be changed"),
        ("infer_heads=3", "infer_heads=3 is more than heads=2"),
        ("eval.size=7", "eval.size"),
        ("eval.backend=coco", "eval.backend=coco"),
        ("data.root=/nowhere", "/nowhere"),
    ):
        assert command(run, "data=coco", f"data.root={data}", override) == 2
        assert why in capsys.readouterr().err


def test_data_without_a_shared_class_is_refused(run, data, capsys):
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for category in content["categories"]:
        category["name"] += " of another kind"
    file.write_text(json.dumps(content))
    assert command(run, "data=coco", f"data.root={data}") == 2
    assert "none of the detector's classes" in capsys.readouterr().err
    assert not (run.path / "evaluations").exists()


def test_a_run_in_use_is_named(run, data, capsys):
    with run.lock():
        assert command(run, "data=coco", f"data.root={data}") == 2
    assert "cannot be written" in capsys.readouterr().err
