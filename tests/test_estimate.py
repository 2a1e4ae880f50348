"""Estimated times come only from comparable finished runs.

Run: pytest tests/test_estimate.py
"""

import pytest

from onenet.config.compose import compose, to_dict
from onenet.sweeps.estimate import Estimates, duration_text
from onenet.system.files import write_json


def finish(root, name: str, seconds_per_step: float, evaluation: float, *overrides: str) -> None:
    timing = {"seconds_per_step": seconds_per_step, "evaluation_seconds": evaluation}
    config = to_dict(compose(list(overrides)))
    write_json(root / name / "result.json", {"config": config, "timing": timing})


def test_time_follows_the_pace_of_runs_of_the_same_kind(tmp_path):
    finish(tmp_path, "a", 0.1, 7, "batch=8")
    finish(tmp_path, "b", 0.3, 9, "batch=8", "seed=1", "cost=loc_only")
    finish(tmp_path, "c", 0.4, 8, "batch=16", "lr=0.1")
    finish(tmp_path, "other", 9, 9, "backbone=resnet18")
    estimates = Estimates(tmp_path)
    # Seconds per image: 0.0125, 0.0375, 0.025; the median is 0.025.
    assert estimates.seconds(compose(["batch=4"]), steps=100) == pytest.approx(100 * 4 * 0.025 + 8)
    assert estimates.seconds(compose(["backbone=resnet18"]), 1) == pytest.approx(9 + 9)


@pytest.mark.parametrize(
    "override", ["heads=3", "size.short=96", "neck=deconv", "precision=bf16", "data.limit=3"]
)
def test_what_nothing_finished_compares_with_has_no_estimate(tmp_path, override):
    finish(tmp_path, "a", 0.1, 7)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    assert Estimates(tmp_path).seconds(compose([override]), 100) is None
    assert Estimates(tmp_path / "nothing").seconds(compose([]), 100) is None


def test_times_are_said_in_the_unit_that_suits_them():
    assert [duration_text(seconds) for seconds in (12.3, 600, 9000)] == [
        *("about 12 s", "about 10 min", "about 2.5 h"),
    ]
