"""The score gap: against scalar Python, and where it is undefined.

Run: pytest tests/test_score_gap.py
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onenet import build
from onenet.assigners import make_matcher
from onenet.config.options import METRICS
from onenet.costs import MatchingCost
from onenet.data.loading import Batch
from onenet.data.sources import open_split
from onenet.detectors import DETECTORS
from onenet.evaluation import score_gap
from onenet.evaluation.score_gap import ScoreGaps, batch_gaps
from onenet.job import results
from onenet.runs.evaluations import requested_evaluation
from onenet.structures import HeadOutput, Matches, UndecodedOutput
from onenet.system.context import ON_CPU, RunContext
from onenet.system.distributed import World
from tests.conftest import Pictures, make_annotations, make_target, random_target, seeded
from tests.test_boxes import scalar_iou_and_giou
from tests.test_loop import Run

SIZE_HW = (40, 64)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def scalar_gaps(logits, boxes, target, pairs) -> list[float]:
    """The gaps of one image: `logits` [P][K], `boxes` [P][4], `pairs` of slot and object."""
    gaps = []
    for gt, (label, box) in enumerate(
        zip(target.gt_labels.tolist(), target.gt_xyxy.tolist(), strict=True)
    ):
        ious = [scalar_iou_and_giou(slot_box, box)[0] for slot_box in boxes]
        scores = [sigmoid(of_slot[label]) for of_slot in logits]
        positives = [slot for slot, its_gt in pairs if its_gt == gt]
        if not positives:
            continue
        positive = max(positives, key=lambda slot: scores[slot] ** 0.2 * ious[slot] ** 0.8)
        others = [
            score
            for slot, (score, iou) in enumerate(zip(scores, ious, strict=True))
            if slot != positive and iou >= 0.5
        ]
        gaps.append(scores[positive] - max(others, default=0))
    return gaps


def crowded_output(targets, classes: int, generator, slots: int = 60) -> HeadOutput:
    """Boxes near the objects, so that many slots compete."""
    boxes = torch.rand(len(targets), slots, 4, generator=generator) * 20
    for image, target in enumerate(targets):
        if len(target.gt_labels):
            gt = target.gt_xyxy[torch.arange(slots) % len(target.gt_labels)]
            boxes[image] = gt + 3 * torch.randn(slots, 4, generator=generator)
    boxes = torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), boxes[..., 2:]], dim=-1)
    logits = 2 * torch.randn(len(targets), slots, classes, generator=generator)
    return HeadOutput(logits, boxes, torch.rand(slots, 2, generator=generator) * 40)


def batch_of(targets, is_substitute=None) -> Batch:
    count = len(targets)
    images = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    return Batch(images, list(targets), [SIZE_HW] * count, is_substitute or [False] * count, [])


def assert_scalar(output, targets, matches) -> None:
    for image, gaps in enumerate(batch_gaps(output, targets, matches)):
        pairs = list(
            zip(*(m.tolist() for m in vars(matches[image]).values() if m.dim()), strict=True)
        )
        expected = scalar_gaps(
            output.class_logits[image].tolist(),
            output.boxes_xyxy[image].tolist(),
            targets[image],
            pairs,
        )
        assert gaps.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("assigner", ["keep", "next_best", "drop", "hungarian"])
@pytest.mark.parametrize("counts", [(4, 0, 7, 1), (1,), (0,), (0, 0), (90,)])
def test_gaps_equal_scalar_python(assigner, counts):
    generator = seeded(sum(counts))
    targets = [random_target(n, 3, SIZE_HW, generator) for n in counts]
    output = crowded_output(targets, 3, generator)
    matches = make_matcher(assigner, assigner)(MatchingCost(), output, targets)
    assert_scalar(output, targets, matches)


@pytest.mark.parametrize("seed", range(5))
def test_of_several_positives_the_one_of_highest_quality_counts(seed):
    generator = seeded(seed)
    targets = [random_target(n, 2, SIZE_HW, generator) for n in (5, 3)]
    output = crowded_output(targets, 2, generator)
    matches = [
        Matches(
            torch.randperm(60, generator=generator)[:20],
            torch.randint(len(target.gt_labels), (20,), generator=generator),
            torch.tensor(0),
        )
        for target in targets
    ]
    assert_scalar(output, targets, matches)


def test_few_pairs_at_a_time_give_the_same(monkeypatch):
    generator = seeded(3)
    targets = [random_target(n, 3, SIZE_HW, generator) for n in (6, 2)]
    output = crowded_output(targets, 3, generator)
    matches = make_matcher("hungarian")(MatchingCost(), output, targets)
    whole = batch_gaps(output, targets, matches)
    monkeypatch.setattr(score_gap, "PAIRS", 100)
    for one, other in zip(whole, batch_gaps(output, targets, matches), strict=True):
        assert torch.equal(one, other)


def matched(*slots: int, gts=None) -> list[Matches]:
    gts = range(len(slots)) if gts is None else gts
    return [Matches(torch.tensor(slots), torch.tensor([*gts]), torch.tensor(0))]


def by_hand(peaks: bool = False) -> float:
    """An object whose positive has score 0.8, a slot on it 0.6 and one beside it 0.9."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4.9], [0, 0, 10, 10]]])
    logits = torch.tensor([0.8, 0.6, 0.9, 0.1]).logit()[None, :, None]
    logits = torch.cat([logits, torch.full_like(logits, 5.0)], dim=2)  # another class
    points = torch.zeros(4, 2)
    output = UndecodedOutput(logits, boxes * torch.tensor([-1, -1, 1, 1]), points, (1, 4))
    target = make_target([0], [[0, 0, 10, 10]])
    ((gap,),) = batch_gaps(output, [target], matched(0), peaks)
    return float(gap)


def test_a_gap_by_hand():
    assert by_hand() == pytest.approx(0.8 - 0.6)


def test_slots_that_are_no_peak_have_score_0():
    """Of the four slots in a row, 0.8 and 0.9 are peaks."""
    assert by_hand(peaks=True) == pytest.approx(0.8)


def test_an_object_without_another_slot_has_the_score_of_its_positive():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    output = HeadOutput(torch.tensor([[[1.0], [3.0]]]), boxes, torch.zeros(2, 2))
    ((gap,),) = batch_gaps(output, [make_target([0], [[0, 0, 10, 10]])], matched(0))
    assert float(gap) == pytest.approx(sigmoid(1.0))


def test_two_objects_that_share_a_slot_have_its_score():
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])
    output = HeadOutput(torch.tensor([[[1.0, -1.0]]]), boxes, torch.zeros(1, 2))
    target = make_target([0, 1], [[0, 0, 10, 10], [0, 0, 10, 9]])
    (gaps,) = batch_gaps(output, [target], matched(0, 0))
    assert gaps.tolist() == pytest.approx([sigmoid(1.0), sigmoid(-1.0)])


# --- over a data set ---


class Gathering(World):
    """The first of two processes; `other` has what the second one sends."""

    def gather(self, value):
        return [value, self.other]


def test_the_mean_is_over_the_objects_of_all_processes():
    generator = seeded(1)
    targets = [
        replace(random_target(n, 3, SIZE_HW, generator), image_id=i)
        for i, n in enumerate((3, 0, 5, 1))
    ]
    output = crowded_output(targets, 3, generator)
    match = build.detection_loss(Run().config).match
    alone = ScoreGaps(match)
    alone.add(batch_of(targets), output)
    parts = [ScoreGaps(match), ScoreGaps(match)]
    for part, rows in zip(parts, ([2, 3], [0, 1]), strict=True):
        sub = HeadOutput(output.class_logits[rows], output.boxes_xyxy[rows], output.points_xy)
        part.add(batch_of([targets[row] for row in rows]), sub)
    world = Gathering(0, 2)
    object.__setattr__(world, "other", (parts[1].by_image, ""))
    parts[0].context = RunContext(world=world)
    gaps = torch.cat([*alone.by_image.values()]).double()
    assert len(gaps) == 9
    assert parts[0].mean() == alone.mean() == (float(gaps.mean()), "")


def test_an_image_that_cannot_be_read_does_not_count():
    generator = seeded(1)
    targets = [replace(random_target(2, 3, SIZE_HW, generator), image_id=i) for i in range(2)]
    gaps = ScoreGaps(build.detection_loss(Run().config).match, context=ON_CPU)
    gaps.add(batch_of(targets, [False, True]), crowded_output(targets, 3, generator))
    assert gaps.by_image.keys() == {0}


def test_costs_that_are_not_finite_leave_a_note():
    targets = [make_target([0], [[0, 0, 10, 10]])]
    output = crowded_output(targets, 3, seeded(0))
    output.boxes_xyxy[:] = torch.nan
    gaps = ScoreGaps(build.detection_loss(Run().config).match)
    gaps.add(batch_of(targets), output)
    value, why_none = gaps.mean()
    assert value is None
    assert "finite" in why_none


def scores_of(*words: str, source=None) -> dict:
    """The scores of an untrained network."""
    run = Run(*words)
    source = source or open_split(run.config.data, "val")
    spec = requested_evaluation(run.config)
    predicted = results.predict_split(run.config, run.model, source, spec, ON_CPU)
    return results.score(run.config, source.annotations, spec, *predicted)


def test_unread_images_are_noted_beside_why_ap_is_undefined():
    source = Pictures(make_annotations([(40, 64)], [[]], classes=6))
    run = Run()
    spec = requested_evaluation(run.config)
    predictions, _, gap = results.predict_split(run.config, run.model, source, spec, ON_CPU)
    whole, unread = (
        results.score(run.config, source.annotations, spec, predictions, names, gap)
        for names in ([], ["a.jpg: broken"])
    )
    assert unread["metrics"]["AP"] is None
    note = whole["metrics_notes"]["AP"]
    assert unread["metrics_notes"]["AP"].startswith(f"{note}; 1 image without detections")


@pytest.mark.parametrize("detector", [*DETECTORS, "predefined"])
def test_every_detector_with_a_matching_has_a_gap(detector):
    words = ["location=predefined"] if detector == "predefined" else [f"detector={detector}"]
    scores = scores_of(*words)
    gap, note = scores["metrics"]["score_gap"], scores["metrics_notes"].get("score_gap")
    if detector == "centernet":
        assert (gap, note) == (None, "centernet is trained without matching")
    else:
        assert -1 < gap < 1
        assert note is None
    assert "score_gap" in METRICS


def test_peaks_and_gaps_are_of_one_evaluation():
    plain, peaks = (scores_of(f"eval.peaks={value}") for value in ("false", "true"))
    assert plain["metrics"]["score_gap"] != peaks["metrics"]["score_gap"]


@pytest.mark.parametrize("objects", [[], [(0, (5, 5, 30, 30), True)]], ids=["none", "crowd"])
def test_without_objects_there_is_no_gap(objects):
    source = Pictures(make_annotations([(64, 64)] * 2, [objects, []], classes=5))
    scores = scores_of(source=source)
    assert scores["metrics"]["score_gap"] is None
    assert scores["metrics_notes"]["score_gap"] == "no object has a positive slot"


def test_the_gap_of_a_data_set_is_that_of_its_images():
    """Batches, padding and order do not matter."""
    run = Run()
    source = open_split(run.config.data, "val")
    spec = requested_evaluation(run.config)
    values = []
    for batch in (1, 3, 16):
        run.config.eval.batch = batch
        _, _, (value, _) = results.predict_split(run.config, run.model, source, spec, ON_CPU)
        values.append(value)
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
