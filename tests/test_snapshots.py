"""Snapshots of a training: each match against brute force, and no effect on the weights.

Run: pytest tests/test_snapshots.py
"""

import math

import numpy as np
import pytest
import torch

from onenet import build
from onenet.costs import center_cost, focal_cost, giou_cost, iou_cost, l1_cost
from onenet.data.images import BadImage
from onenet.data.loading import collate
from onenet.data.normalization import normalize
from onenet.data.sources import open_split
from onenet.detectors import DETECTORS
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.job.snapshots import IMAGES, NAME, REPLAY_IMAGES, TERMS, snapshots_of
from onenet.runs.evaluations import default_evaluation
from onenet.runs.folder import RunFolder
from onenet.structures import unpadded_sizes
from tests.conftest import Pictures, make_annotations
from tests.test_loop import Run, assert_equal

WORDS = {
    "onenet": ["neck.channels=8", "cost=loc_cls"],
    "predefined": ["neck.channels=8", "location=predefined", "cost=loc_only"],
    "centernet": ["detector=centernet", "neck.channels=8"],
    "deformable_detr": ["detector=deformable_detr"],
    "sparse_rcnn": ["detector=sparse_rcnn"],
}


def seen(tmp_path, *words: str, source=None, step: int = 0, last: bool = True):
    """A folder with one snapshot of an untrained network; its run and its data."""
    run = Run(*words, source=source)
    validation = source or open_split(run.config.data, "val")
    folder = RunFolder(tmp_path)
    snapshots_of(folder, run.config, run.model, validation).take(run.model, step, last)
    return folder, run, validation


def arrays(file) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


def lines(folder: RunFolder) -> list[dict]:
    return folder.metrics()


def test_all_detectors_are_tried():
    assert {word for words in WORDS.values() for word in words if "detector=" in word} == {
        f"detector={name}" for name in DETECTORS if name != "onenet"
    }


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_every_choice_is_what_the_loss_takes_image_by_image(tmp_path, words):
    folder, run, validation = seen(tmp_path, *words, "data.shapes.kind=parts")
    assignments, model, row = arrays(folder.assignments_file), run.model.eval(), 0
    dataset = build.evaluation_set(run.config, validation, default_evaluation(run.config))
    by_image = {int(i): [] for i in validation.annotations.image_ids}
    for number, image_id in enumerate(assignments["image_id"]):
        by_image[int(image_id)].append(number)
    for image in range(len(dataset)):
        batch = collate([dataset[0, image]])
        (target,), rows = batch.targets, by_image[batch.targets[0].image_id]
        with torch.inference_mode():
            sizes = unpadded_sizes([target], "cpu")
            (output,) = model(normalize(batch.images), sizes, num_heads=1)
            (match,) = run.loss.match(output, [target])
        np.testing.assert_array_equal(assignments["label"][rows], target.gt_labels)
        np.testing.assert_array_equal(assignments["gt_xyxy"][rows], target.gt_xyxy)
        for gt, slot in zip(match.gt_idx.tolist(), match.pred_idx.tolist(), strict=True):
            assert_one_choice(
                assignments, rows[gt], output, slot, gt, target, run.config.cost.l1_format
            )
        parts = validation.annotations.parts_xyxy[validation.annotations.rows(image)]
        height, width = validation.annotations.sizes_hw[image]
        scale = np.array(target.size_hw[::-1] * 2) / [width, height, width, height]
        np.testing.assert_allclose(
            assignments["part_xyxy"][rows], parts * scale, rtol=1e-5, atol=1e-3
        )
        row += len(rows)
    assert row == len(assignments["label"])
    assert assignments["steps"].tolist() == [0]


def assert_one_choice(assignments, row, output, slot, gt, target, l1_format) -> None:
    assert assignments["slot"][0, row] == slot
    box, point = output.boxes_xyxy[0, slot], output.points_xy[slot]
    truth, (height, width) = target.gt_xyxy[gt], target.size_hw
    whwh = torch.tensor([width, height, width, height])
    terms = {
        "cls": focal_cost(output.class_logits[0, slot, target.gt_labels[gt]]),
        "l1": l1_cost(box, truth, whwh, l1_format),
        "iou": iou_cost(box, truth),
        "giou": giou_cost(box, truth),
        "center": center_cost(point, truth, whwh),
    }
    expected = torch.stack([terms[name] for name in TERMS])
    np.testing.assert_allclose(assignments["terms"][0, row], expected, rtol=1e-3, atol=1e-4)
    x, y = ((truth[:2] + truth[2:]) / 2).tolist()
    if point.isnan().any():
        place, nearest = (box[:2] + box[2:]) / 2, False
    else:
        distances = [math.hypot(px - x, py - y) for px, py in output.points_xy.tolist()]
        place, nearest = point, distances[slot] <= min(distances) + 1e-6
    np.testing.assert_allclose(assignments["place_xy"][0, row], place, rtol=1e-4, atol=1e-2)
    assert assignments["nearest"][0, row] == nearest


def test_the_line_holds_the_numbers_of_the_first_images(tmp_path):
    words = ["neck.channels=8", "data.limit=80", "data.shapes.val_images=80"]
    folder, run, validation = seen(tmp_path, *words, step=3)
    first = validation.annotations.limit(IMAGES)
    assert len(first) == 64
    source = Pictures(first, [validation.read(i) for i in range(64)])
    dataset = build.evaluation_set(run.config, source, default_evaluation(run.config))
    predictions, _ = predict(run.model, dataset, batch=1)
    numbers = Scorer(first, (64 / 512) ** 2).score(predictions).metrics
    (line,) = lines(folder)
    assert (line.pop("step"), line.pop("evaluation")) == (3, NAME)
    assert line == pytest.approx({k: v for k, v in numbers.items() if v is not None}, abs=0.05)
    assert set(np.unique(arrays(folder.assignments_file)["image_id"])) <= {*first.image_ids}


def test_what_is_kept_gives_the_same_choice_again(tmp_path):
    folder, run, validation = seen(tmp_path, "neck.channels=8", "cost=loc_only", "data.limit=null")
    assignments, predictions = arrays(folder.assignments_file), arrays(folder.predictions_file)
    assert (
        predictions["image_id"].tolist()
        == validation.annotations.image_ids[:REPLAY_IMAGES].tolist()
    )
    slot_ends, boxes = np.cumsum(predictions["slots"]), predictions["boxes_xyxy"]
    for image, image_id in enumerate(predictions["image_id"]):
        rows = np.flatnonzero(assignments["image_id"] == image_id)
        own = torch.from_numpy(
            boxes[slot_ends[image] - predictions["slots"][image] : slot_ends[image]]
        )
        height, width = predictions["size_hw"][image].tolist()
        whwh = torch.tensor([width, height, width, height])
        for row in rows:
            truth = torch.from_numpy(assignments["gt_xyxy"][row])
            cost = 5 * l1_cost(own, truth, whwh) + 2 * giou_cost(own, truth)
            assert cost[assignments["slot"][0, row]] <= cost.min() + 1e-5


def test_a_snapshot_leaves_training_alone(tmp_path):
    words = ["detector=deformable_detr", "model.dropout=0.3"]
    plain, watched = Run(*words), Run(*words)
    validation = open_split(watched.config.data, "val")
    snapshots = snapshots_of(RunFolder(tmp_path), watched.config, watched.model, validation)
    torch.manual_seed(5)
    plain.train()
    torch.manual_seed(5)
    watched.train(snapshot=lambda step: snapshots.take(watched.model, step, False))
    assert [line["step"] for line in lines(RunFolder(tmp_path))] == list(range(7))
    assert_equal(plain.state(), watched.state())


@pytest.mark.parametrize("readable", [1, None])
def test_images_that_cannot_be_read_are_no_reason_to_stop(tmp_path, readable):
    class Unreadable(Pictures):
        def read(self, image: int) -> np.ndarray:
            if image != readable:
                raise BadImage(f"{image} is broken")
            return super().read(image)

    source = Unreadable(make_annotations([(64, 64)] * 3, [[(0, (4, 4, 20, 20))]] * 3))
    words = ["neck.channels=8", "data.on_bad_image=skip"]
    folder, _, _ = seen(tmp_path, *words, source=source)
    assert not folder.assignments_file.exists()
    assert not folder.metrics_file.exists()


def test_looks_that_are_taken_again_give_way(tmp_path):
    run = Run("neck.channels=8")
    folder = RunFolder(tmp_path)
    snapshots = snapshots_of(folder, run.config, run.model, open_split(run.config.data, "val"))
    for step in (2, 4, 6):
        snapshots.take(run.model, step, False)
    before = arrays(folder.assignments_file)
    snapshots.take(run.model, 4, False)
    after = arrays(folder.assignments_file)
    assert after["steps"].tolist() == [2, 4]
    np.testing.assert_array_equal(after["terms"], before["terms"][:2])
    assert not folder.predictions_file.exists()


@pytest.mark.parametrize(
    "objects", [[[], []], [[], [(1, (4, 4, 20, 20)), (0, (2, 2, 9, 9), True)]]]
)
def test_images_without_objects_and_crowds(tmp_path, objects):
    source = Pictures(make_annotations([(40, 56), (64, 64)], objects))
    folder, _, _ = seen(tmp_path, "neck.channels=8", source=source)
    assignments, predictions = arrays(folder.assignments_file), arrays(folder.predictions_file)
    assert len(assignments["label"]) == sum(
        1 for of_image in objects for row in of_image if len(row) == 2
    )
    assert assignments["slot"].shape == (1, len(assignments["label"]))
    assert np.isnan(assignments["part_xyxy"]).all()
    assert predictions["image_id"].tolist() == [1, 2]
    assert predictions["classes"].sum() == len(predictions["labels"])
