"""Why a run was wrong: mistakes against a loop, AP of classes, the page.

Run: pytest tests/test_errors.py
"""

import numpy as np
import pytest
from PIL import Image

from analysis import errors
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.overlaps import coco_iou
from onenet.evaluation.predictions import to_xywh
from tests.conftest import make_annotations, make_predictions
from tests.trained import finished_run


def random_case(seed: int):
    """Objects in three images, some of them crowds, with several detections on each, and others."""
    random = np.random.default_rng(seed)
    objects, rows = [], []
    for image in range(3):
        of_image = []
        for _ in range(random.integers(0, 5)):
            corner, side = random.uniform(0, 60, 2), random.uniform(10, 30, 2)
            box, label = np.concatenate([corner, corner + side]), int(random.integers(2))
            of_image.append((label, tuple(box), bool(random.random() < 0.2)))
            for _ in range(random.integers(0, 4)):
                rows.append((image, box + random.normal(0, 2, 4), random.random(), label))
        rows.append((image, np.array([0.0, 0, 8, 9]), random.random(), 0))
        objects.append(of_image)
    return make_annotations([(100, 100)] * 3, objects, classes=2), make_predictions(
        *map(list, zip(*rows, strict=True))
    )


def mistakes_by_loop(predictions, annotations, threshold):
    """Each detection in turn, best first, takes the best free object of its class."""
    wrong, found = set(), set()
    for image in range(len(annotations)):
        rows = annotations.rows(image)
        detections = np.flatnonzero(predictions.image == image)
        for d in detections[np.argsort(-predictions.scores[detections], kind="stable")]:
            candidates = []
            for o in range(rows.start, rows.stop):
                boxes = predictions.boxes_xyxy[d], annotations.boxes_xyxy[o]
                crowd = annotations.crowd[o : o + 1]
                iou = coco_iou(*(to_xywh(box[None]) for box in boxes), crowd)[0]
                if iou >= 0.5 and annotations.labels[o] == predictions.labels[d] and o not in found:
                    candidates.append((not annotations.crowd[o], iou, o))
            shown = predictions.scores[d] >= threshold
            if candidates:
                is_object, _, o = max(candidates)
                if is_object and shown:
                    found.add(o)
                elif is_object:
                    found.add(("hidden", o))
            elif shown:
                wrong.add(int(d))
    missed = {int(o) for o in np.flatnonzero(~annotations.crowd)} - found
    return wrong, missed


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_mistakes_equal_a_loop(seed, threshold):
    annotations, predictions = random_case(seed)
    found = errors.mistakes(predictions, annotations, threshold)
    wrong, missed = mistakes_by_loop(predictions, annotations, threshold)
    assert set(np.flatnonzero(found.false_positive).tolist()) == wrong
    assert set(np.flatnonzero(found.missed).tolist()) == missed
    assert found.per_image.to_numpy().sum() == len(wrong) + len(missed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backend", ["hotcoco", "faster", "pycocotools"])
def test_ap_is_the_mean_over_the_classes_that_have_objects(seed, backend):
    annotations, predictions = random_case(seed)
    scorer = Scorer(annotations, backend=backend)
    metrics = scorer.score(predictions).metrics
    for metric in ("AP", "AP50"):
        for column, name in enumerate((metric, f"{metric}_nms")):
            values = [row[column] for row in scorer.by_class(predictions, metric)]
            defined = [value for value in values if value is not None]
            assert np.mean(defined) == pytest.approx(metrics[name])


def test_the_command_writes_a_page_and_a_picture(tmp_path, capsys):
    run = finished_run(tmp_path / "runs")
    assert errors.main([str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "dAP_dupe" in printed
    assert "hourglass" in printed
    root, out = str(run.path.parent), str(tmp_path / "out")
    assert errors.main([run.id, "--runs", root, "--out", out]) == 0
    assert (tmp_path / "out" / "errors.md").read_text() == printed
    assert Image.open(tmp_path / "out" / "worst.png").height > 500
    assert errors.main(["0123456789", "--runs", str(run.path.parent)]) == 2
    assert errors.main([run.path.as_posix(), "--out", "/dev/null/x"]) == 2
