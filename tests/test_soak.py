"""A short soak: a small sweep, killed five times, ends like an undisturbed one.

Run: pytest tests/test_soak.py -m slow     (tests/soak.py runs longer ones)
"""

import os
import subprocess
import sys

import pytest
import torch

from onenet.system.files import REPOSITORY
from tests.soak import line_differences, tensor_differences


@pytest.mark.slow
def test_a_sweep_that_is_killed_five_times_ends_as_if_nothing_had_happened(tmp_path):
    words = ["--kills", "5", "--runs", "3", "--steps", "20", "--root", str(tmp_path / "soak")]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "soak.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 runs: no difference" in done.stdout
    assert done.stdout.count("SIG") >= 3


def test_the_soak_notices_what_differs():
    one, other = {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}
    assert line_differences([one, other], [one, other]) == []
    assert "2 times" in line_differences([one, other], [one, one, other])[0]
    assert "first 2" in line_differences([one, other], [one])[0]
    assert "first 1" in line_differences([one], [{**one, "loss": 2.1}])[0]


def test_the_soak_names_the_weights_that_differ():
    state = {"model": {"w": torch.tensor([1.0, 2.0])}, "optimizer": {"groups": [{"lr": 0.1}]}}
    close = {**state, "model": {"w": torch.tensor([1.0, 2.0 + 1e-6])}}
    rate = {**state, "optimizer": {"groups": [{"lr": 0.2}]}}
    assert tensor_differences(state, state) == []
    assert tensor_differences(state, close) == ["model.w"]
    assert tensor_differences(state, rate) == ["optimizer.groups.0.lr"]
    assert tensor_differences(state, {"model": state["model"]}) == [""]
