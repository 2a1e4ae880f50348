"""Intervals over seeds and over images, against textbook numbers and plain resampling.

Run: pytest tests/test_intervals.py
"""

import math

import numpy as np
import pytest

from analysis.intervals import bootstrap, paired, t_interval, values_of
from onenet.per_image import pack, recompute
from tests.conftest import make_annotations, make_predictions


def test_students_interval_of_three_values():
    found = t_interval([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)  # the 0.975 quantile of 2 degrees of freedom
    assert (found.mean, found.n) == (3.0, 3)
    assert found.low == pytest.approx(3 - half, abs=1e-4)
    assert found.high == pytest.approx(3 + half, abs=1e-4)


def test_one_value_says_nothing_about_its_spread():
    found = t_interval([2.0])
    assert (found.mean, found.low, found.high, found.n) == (2.0, -math.inf, math.inf, 1)


def test_it_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.normal(5.0, 2.0, (4000, 3))
    covered = [(i.low <= 5 <= i.high) for i in map(t_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_pairs_are_of_the_keys_that_both_have():
    assert paired({0: 3.0, 1: 5.0, 2: 9.0}, {1: 1.0, 2: 2.0, 7: 4.0}) == [4.0, 7.0]


def evaluation(shift: float, images: int = 30) -> dict[str, np.ndarray]:
    """per_image.npz of a detector whose boxes are off by more with a larger shift."""
    generator = np.random.default_rng(1)
    low = generator.uniform(0, 60, (images, 2))
    boxes = np.hstack([low, low + generator.uniform(15, 30, (images, 2))])
    annotations = make_annotations(
        [(99, 99)] * images, [[(n % 3, box)] for n, box in enumerate(boxes)]
    )
    moved = boxes + shift * generator.uniform(0, 5, (images, 1))
    image = np.repeat(np.arange(images), 2)
    found = np.stack([moved, boxes + 1.0], axis=1).reshape(-1, 4)  # the second is a duplicate
    scores = generator.uniform(0.1, 1, 2 * images)
    return pack(annotations, make_predictions(image, found, scores, image % 3))


@pytest.mark.parametrize("metric", ["AP", "AP50_nms", "nms_gain"])
def test_the_bootstrap_is_what_redrawing_images_gives(metric):
    one, other = evaluation(1.0), evaluation(0.5)
    found = bootstrap(one, other, metric, draws=60, seed=3)
    generator, drawn = np.random.default_rng(3), []
    for _ in range(60):
        images = generator.integers(30, size=30)
        weights = np.array([(images == image).sum() for image in range(30)])
        values = [values_of(arrays, metric, weights) for arrays in (one, other)]
        drawn.append(values[0] - values[1])
    drawn.sort()
    assert found.n == 30
    assert found.mean == pytest.approx(
        values_of(one, metric, None) - values_of(other, metric, None)
    )
    assert found.low == pytest.approx(np.quantile(drawn, 0.025))
    assert found.high == pytest.approx(np.quantile(drawn, 0.975))


def test_a_metric_with_itself_differs_by_nothing_and_alone_it_is_recompute():
    one = evaluation(1.0)
    same = bootstrap(one, one, "AP", draws=20)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    alone = bootstrap(one, None, "AP", draws=20)
    assert alone.mean == recompute(one, "raw")[0]
    assert alone.low < alone.mean < alone.high


def test_other_images_cannot_be_paired():
    with pytest.raises(ValueError, match="not of the same images"):
        bootstrap(evaluation(1.0), evaluation(1.0, images=20), "AP", draws=2)
