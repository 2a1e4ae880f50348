"""Intervals over seeds and images against textbook values and plain resampling.

Run: pytest tests/test_intervals.py
"""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from analysis import bootstrap as command
from analysis.bootstrap import bootstrap
from analysis.core.statistics import t_interval
from onenet.evaluation.per_image import pack, recompute
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder
from onenet.system.files import write_json
from tests.conftest import make_annotations, make_predictions


def test_students_interval_of_three_values():
    interval = t_interval([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)  # 0.975 quantile at 2 degrees of freedom
    assert (interval.mean, interval.n) == (3.0, 3)
    assert interval.low == pytest.approx(3 - half, abs=1e-4)
    assert interval.high == pytest.approx(3 + half, abs=1e-4)


def test_one_value_says_nothing_about_its_spread():
    interval = t_interval([2.0])
    assert (interval.mean, interval.low, interval.high, interval.n) == (2.0, -math.inf, math.inf, 1)


def test_it_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.normal(5.0, 2.0, (4000, 3))
    hits = [(i.low <= 5 <= i.high) for i in map(t_interval, draws)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def evaluation(shift: float, images: int = 30) -> dict[str, np.ndarray]:
    """per_image.npz of a detector whose box errors grow with `shift`."""
    generator = np.random.default_rng(1)
    low = generator.uniform(0, 60, (images, 2))
    boxes = np.hstack([low, low + generator.uniform(15, 30, (images, 2))])
    annotations = make_annotations(
        [(99, 99)] * images, [[(n % 3, box)] for n, box in enumerate(boxes)]
    )
    moved = boxes + shift * generator.uniform(0, 5, (images, 1))
    image = np.repeat(np.arange(images), 2)
    detections = np.stack([moved, boxes + 1.0], axis=1).reshape(-1, 4)  # the second is a duplicate
    scores = generator.uniform(0.1, 1, 2 * images)
    return pack(annotations, make_predictions(image, detections, scores, image % 3))


def test_the_bootstrap_is_what_redrawing_images_gives():
    one, other = evaluation(1.0), evaluation(0.5)
    intervals = bootstrap(one, other, draws=60, seed=3)
    generator, differences = np.random.default_rng(3), []
    for _ in range(60):
        images = generator.integers(30, size=30)
        weights = np.array([(images == image).sum() for image in range(30)])
        gains = []
        for arrays in (one, other):
            gains.append(
                recompute(arrays, "nms", weights)[1] - recompute(arrays, "raw", weights)[1]
            )
        differences.append(gains[0] - gains[1])
    interval = intervals["AP50_nms_gain"]
    assert interval.n == 30
    assert interval.low == pytest.approx(np.quantile(differences, 0.025))
    assert interval.high == pytest.approx(np.quantile(differences, 0.975))
    assert intervals["AP"].mean == pytest.approx(
        recompute(one, "raw")[0] - recompute(other, "raw")[0]
    )
    assert intervals["AP_nms"].low < intervals["AP_nms"].mean < intervals["AP_nms"].high


def test_a_run_differs_from_itself_by_nothing_and_alone_it_is_recompute():
    one = evaluation(1.0)
    for interval in bootstrap(one, one, draws=20).values():
        assert (interval.mean, interval.low, interval.high) == (0, 0, 0)
    alone = bootstrap(one, None, draws=20)["AP50"]
    assert alone.mean == recompute(one, "raw")[1]
    assert alone.low < alone.mean < alone.high


def test_what_cannot_be_paired_or_found_is_refused():
    with pytest.raises(ValueError, match="not of the same images"):
        bootstrap(evaluation(1.0), evaluation(1.0, images=20), draws=2)
    nothing = evaluation(1.0) | {"objects": np.zeros((30, 3), np.uint16)}
    with pytest.raises(ValueError, match="no objects"):
        bootstrap(nothing, None, draws=2)


def write_run(root: Path, run_id: str, **evaluated) -> None:
    """Writes a finished run with the per_image.npz of `evaluation`."""
    folder, spec = RunFolder(root / f"some-words-{run_id}"), EvalSpec(1, 64, 1.5, "coco", "val")
    write_json(folder.result_file, {"id": run_id, "evaluation": asdict(spec)})
    folder.evaluation(spec).mkdir(parents=True)
    np.savez(folder.evaluation(spec) / "per_image.npz", **evaluation(**evaluated))


def test_the_command_compares_two_runs_or_judges_one(tmp_path, capsys):
    write_run(tmp_path, "aaaaaaaaaa", shift=1.0)
    write_run(tmp_path, "bbbbbbbbbb", shift=0.5)
    write_run(tmp_path, "cccccccccc", shift=0.5, images=20)
    arguments = ["--runs", str(tmp_path), "--metric", "AP", "AP50_nms_gain", "--draws", "40"]
    assert command.main(["aaaaaaaaaa", "some-words-bbbbbbbbbb", *arguments]) == 0
    page = capsys.readouterr().out
    expected = bootstrap(evaluation(1.0), evaluation(0.5), 40)["AP"]
    assert "30 images, resampled 40 times" in page
    assert f"{expected.low:.1f} … {expected.high:.1f}" in page
    assert command.main(["aaaaaaaaaa", *arguments]) == 0
    assert "difference" not in capsys.readouterr().out
    for wrong, message in (
        (["aaaaaaaaaa", "cccccccccc"], "not of the same images"),
        (["aaaaaaaaa"], "Did you mean: aaaaaaaaaa"),
        (["aaaaaaaaaa"] * 3, "one or two runs"),
    ):
        assert command.main([*wrong, *arguments]) == 2
        assert message in capsys.readouterr().err
    next(tmp_path.glob("*-bbbbbbbbbb/evaluations/*/per_image.npz")).unlink()
    assert command.main(["bbbbbbbbbb", *arguments]) == 2
    assert "per_image.npz does not exist" in capsys.readouterr().err
