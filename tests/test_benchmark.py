"""The benchmark's plain versions give our results, so that its ratios compare equal work.

Run: pytest tests/test_benchmark.py
"""

import json

import pytest
import torch

from analysis import benchmark
from analysis.speed import plain, training
from analysis.speed.scenes import scene
from analysis.speed.timing import Curve, Timing, least_seconds, peak_bytes
from onenet.assigners import make_matcher
from onenet.costs import MatchingCost
from onenet.losses import DetectionLoss
from onenet.structures import HeadOutput

SMALL = {"map_hw": (16, 24), "classes": 5}
LOSS = DetectionLoss(MatchingCost(), make_matcher("min_cost", "keep"))


def learnable(output: HeadOutput) -> HeadOutput:
    logits, boxes = (t.clone().requires_grad_() for t in (output.class_logits, output.boxes_xyxy))
    return HeadOutput(logits, boxes, output.points_xy)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("gather_first", [False, True])
def test_the_plain_matching_finds_the_same_slots(scattered, gather_first):
    output, targets = scene(3, 6, **SMALL, scattered=scattered)
    ours = [match.pred_idx for match in LOSS.match(output, targets)]
    for slots, expected in zip(plain.match(output, targets, gather_first), ours, strict=True):
        assert torch.equal(slots, expected)


def test_the_plain_loss_has_the_same_value_and_gradient():
    output, targets = scene(2, 4, **SMALL)
    one, other = learnable(output), learnable(output)
    total, _ = LOSS([one], targets)
    theirs = plain.loss([other], targets)
    torch.testing.assert_close(total, theirs, rtol=1e-5, atol=1e-5)
    total.backward()
    theirs.backward()
    torch.testing.assert_close(one.class_logits.grad, other.class_logits.grad)
    torch.testing.assert_close(one.boxes_xyxy.grad, other.boxes_xyxy.grad)


def test_a_step_of_each_kind_takes_its_time(monkeypatch):
    monkeypatch.setattr(training, "SIDE", 64)
    for variant in (training.Variant(1), training.Variant(1, plain=True)):
        whole, part = training._steps(variant)()
        assert 0 < part < whole


def test_the_least_time_and_the_peak_memory():
    calls = []
    first, second = least_seconds(lambda: calls.append(1), lambda: calls.append(2), rounds=3)
    assert calls == [1, 2] * 4  # alternating, after one uncounted round
    assert min(first, second) > 0
    x = torch.zeros(1000, 1000)
    assert peak_bytes(lambda: (x + 1).add_(1)) == pytest.approx(4e6, rel=0.01)
    assert peak_bytes(lambda: (x + 1).exp()) == pytest.approx(8e6, rel=0.01)


def test_the_numbers_are_printed_and_written(tmp_path, monkeypatch, capsys):
    rows = [
        Timing("focal", "so and so", 8.0, 2.0, "ms", 4.0),
        Timing("x", "y", 1, 4, "ms", 0.3, True),
    ]
    monkeypatch.setitem(benchmark.RATIOS, "focal", lambda options: rows)
    file = tmp_path / "numbers.json"
    assert benchmark.main(["--only", "focal", "--json", str(file), "--runs", str(tmp_path)]) == 0
    written = json.loads(file.read_text())
    assert written["ratios"] == {"focal": 4.0, "x": 0.25}
    assert written["fps"] == {}
    assert written["device"]
    printed = capsys.readouterr().out
    assert "≥ 4" in printed
    assert "≤ 0.3" in printed
    assert str(file) in printed


def test_images_that_are_not_there_leave_a_line_out(tmp_path, capsys):
    arguments = ["--only", "jpeg", "--images", str(tmp_path), "--runs", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    assert "jpeg skipped" in capsys.readouterr().err


@pytest.mark.slow
def test_the_growth_is_drawn(tmp_path):
    curve = Curve("matching", "objects", [(1, 0.1, 0.01), (10, 0.9, 0.02)])
    assert benchmark._plot([curve] * 6, tmp_path / "new" / "growth.png").stat().st_size > 1000
