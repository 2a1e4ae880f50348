"""Frames per second: measurement, file, and numbers in the tables.

Run: pytest tests/test_fps.py
"""

from dataclasses import replace

import pytest
import torch

from analysis import tables
from analysis.core import fps
from analysis.core.fps import Network, Speed, network_of
from analysis.speed import inference
from onenet.structures import Detections
from onenet.sweeps.experiments import expand

NETWORK = Network("onenet", "resnet50", "deconv_dcn", 64, 1, 1, "512x853")


def speed(network: Network = NETWORK, device: str = "cpu", frames: float = 1.0, **changes) -> Speed:
    default = Speed(network, device, "float32", 80, frames, frames / 2, 1, "2.9", measured=0.0)
    return replace(default, **changes)


def test_what_is_measured_again_gives_way_and_the_rest_stays(tmp_path):
    assert fps.read(tmp_path) == []
    first = [speed(), speed(device="GPU"), speed(replace(NETWORK, neck="fpn"), fps=None)]
    assert fps.write(tmp_path, first) == tmp_path / "fps.json"
    assert fps.read(tmp_path) == first
    fps.write(tmp_path, [speed(frames=7.0, threads=2), speed(replace(NETWORK, heads=3))])
    again, *others, new = fps.read(tmp_path)
    assert (again.fps, again.threads) == (7, 2)
    assert others == first[1:]
    assert new.network.heads == 3


PARTS = [{"network": replace(NETWORK, **{name: "x"})} for name in Network.__dataclass_fields__]


@pytest.mark.parametrize("change", [{"device": "GPU"}, {"dtype": "bfloat16"}, *PARTS])
def test_all_that_speed_depends_on_is_in_the_key(change):
    assert replace(speed(), **change).key != speed().key


def test_a_table_takes_the_device_that_knows_most_of_its_networks_then_the_last():
    other, third = replace(NETWORK, heads=3), replace(NETWORK, neck="fpn")
    one = [speed(device="A", frames=1.0), speed(other, "A", 2.0)]
    two = [speed(device="B", frames=3.0, measured=9.0)]
    noise = [
        speed(third, "B", 5.0),
        speed(other, "B", 6.0, dtype="bfloat16"),
        speed(other, "B", fps=None),
    ]
    networks = [other, NETWORK, other]
    numbers, device = fps.lookup([*two, *noise, *one], networks)
    assert numbers == [2, 1, 2]
    assert device == "A (threads: 1; classes: 80)"
    numbers, device = fps.lookup([*two, one[0]], networks)
    assert numbers == [None, 3, None]
    assert device.startswith("B")
    assert fps.lookup(noise, networks) == ([None] * 3, None)


def test_the_networks_of_the_tables_are_measured():
    networks = inference.all_networks()
    assert len(set(networks)) == len(networks)
    for overrides in (
        ["+experiment=table2", "seed=0"],
        ["+experiment=table5", "preset=paper", "data=shapes"],
    ):
        for spec in expand(overrides):
            assert network_of(spec.config, spec.evaluation) in networks


def test_tables_show_the_speed_of_a_rows_network_trained_or_not(tmp_path, capsys):
    arguments = ["--table", "2", "--runs", str(tmp_path), "--format"]

    def page(kind: str) -> str:
        assert tables.main([*arguments, kind, "--", "seed=0"]) == 0
        return capsys.readouterr().out

    def shown() -> list[str]:
        lines = [line for line in page("markdown").splitlines() if "| ours, n = " in line]
        return [line.split("|")[-2].strip() for line in lines]

    assert shown() == [""] * 5
    assert "FPS ours: python analysis/benchmark.py fps" in page("markdown")
    tiny = Network("onenet", "tiny", "fpn", 64, 1, 1, "64x96")
    three = replace(tiny, heads=3)
    speeds = [speed(tiny, frames=123.456), speed(three, frames=98.76), speed(NETWORK, frames=5.0)]
    fps.write(tmp_path, speeds)
    assert shown() == ["123", "123", "", "", "98.8"]  # rows 3 and 4 infer with three heads
    assert "batch 1, float32, on cpu (threads: 1; classes: 80)" in page("markdown")
    lines = [line for line in page("csv").splitlines() if ",FPS," in line]
    assert lines[0].endswith(",FPS,67.0,123.456,,1,,")
    assert lines[2].endswith(",FPS,12.0,,,0,,")


def test_a_frame_of_ours_is_what_an_evaluation_answers():
    network = inference.our_network((60, 90), "tiny", "deconv", heads=2)
    assert network == Network("onenet", "tiny", "deconv", 64, 2, 1, "60x90")
    detections = inference.our_detector(network)()
    assert isinstance(detections, Detections)
    assert 0 < len(detections.scores) <= 100
    assert (detections.boxes_xyxy <= torch.tensor([90, 60, 90, 60])).all()
    keep = inference.our_detector(network, nms=True)()
    assert 0 < keep.sum() <= len(keep) == len(detections.scores)


@pytest.mark.parametrize("name", inference.TORCHVISION)
def test_a_frame_of_torchvisions_has_the_size_that_was_asked_for(name, monkeypatch):
    make, shapes = inference.TORCHVISION[name], []

    def watched(**options) -> torch.nn.Module:
        model = make(**options)
        model.backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
        return model

    monkeypatch.setitem(inference.TORCHVISION, name, watched)
    (answer,) = inference.torchvision_detector(name, (60, 90))()
    assert shapes == [(1, 3, 64, 96)]
    assert len(answer["scores"]) > 0
