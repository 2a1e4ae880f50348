"""The networks have the size of the released ones.

Run: pytest tests/test_model_size.py
"""

import os
import subprocess
import sys

import pytest
import torch

from analysis import model_size
from analysis.model_size import RELEASED, SIZE_HW, measure
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import NECKS
from onenet.detectors.onenet import OneNet


@pytest.mark.parametrize(("backbone", "neck"), RELEASED.index)
def test_parameters_and_work_are_those_of_the_released_code(backbone, neck):
    ours, released = measure(backbone, neck, SIZE_HW), RELEASED.loc[(backbone, neck)]
    assert ours.parameters == pytest.approx(released.parameters, rel=0.02)
    assert ours.macs == pytest.approx(released.macs, rel=0.02)


def test_deformation_adds_the_three_convolutions_that_steer_it():
    """They have 27 outputs; a deformable convolution itself counts as a plain one."""
    deformable, plain = (measure("resnet18", n, (96, 160)) for n in ("deconv_dcn", "deconv"))
    weights = [27 * 9 * channels for channels in (512, 256, 128)]
    parameters = sum(weights) + 3 * 27
    assert deformable.parameters - plain.parameters == pytest.approx(parameters / 1e6)
    macs = sum(w * cells for w, cells in zip(weights, (3 * 5, 6 * 10, 12 * 20), strict=True))
    assert deformable.macs - plain.macs == pytest.approx(macs / 1e9)


def test_the_counts_are_those_of_a_network_that_runs():
    """One multiplication per convolution weight and position."""
    features = make_backbone("resnet18")
    neck = NECKS["deconv_dcn"](features.feature_info.channels(), model_size.CHANNELS)
    model, macs = OneNet(features, model_size.CLASSES, neck=neck).eval(), 0

    def count(module, inputs, output):
        nonlocal macs
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        positions = (inputs[0] if transposed else output).shape[-2:].numel()
        macs += module.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 96))
    ours = measure("resnet18", "deconv_dcn", (64, 96))
    assert ours.macs == pytest.approx(macs / 1e9)
    assert ours.parameters == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6)


def test_the_table_has_a_row_for_each_network_with_the_gap_to_the_released_one(capsys, monkeypatch):
    monkeypatch.setattr(model_size, "BACKBONES", ("resnet18",))
    assert rows(capsys) == [
        ["resnet18", "deconv_dcn", "14.53", "14.53", "+0.0 %", "23.0", "23.0", "-0.1 %"],
        ["resnet18", "deconv", "14.31", "14.31", "+0.0 %", "22.6", "22.6", "+0.0 %"],
        ["resnet18", "fpn", "11.36", "", "", "19.6", "", ""],
    ]
    other = rows(capsys, "--size", "64", "96")
    assert other[0][:5] == ["resnet18", "deconv_dcn", "14.53", "14.53", "+0.0 %"]
    assert other[0][6:] == ["", ""], "the released MACs are known at one size"


def rows(capsys, *arguments: str) -> list[list[str]]:
    assert model_size.main(list(arguments)) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[0][:2] == ["backbone", "neck"]
    return cells[2:]


@pytest.mark.slow
def test_it_runs_anywhere_and_refuses_a_size_that_is_not_padded(tmp_path):
    done = subprocess.run(
        [sys.executable, model_size.__file__, "--size", "512", "853"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "853 is not a positive multiple of 32: give the padded size" in done.stderr
