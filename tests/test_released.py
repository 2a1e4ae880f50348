"""The released code's checkpoints as runs, made from the golden networks.

Run: pytest tests/test_released.py
"""

import pickle

import pytest
import torch

from onenet import evaluate, export, load, released
from onenet.build import detector as build_detector
from onenet.config.compose import compose
from onenet.detectors.released import our_name
from onenet.errors import UserError
from onenet.inference.coco_classes import COCO_CLASSES
from onenet.inference.released import make_run
from onenet.runs.folder import RunFolder
from onenet.runs.identity import identifying_values
from onenet.sweeps.experiments import expand
from tests.test_golden_released import answer_of, released_state

NAMES = {
    "network_r18_nodcn": ("resnet18", "deconv"),
    "network_r18_dcn": ("resnet18", "deconv_dcn"),
    "network_r50_nodcn": ("resnet50", "deconv"),
    "network_r50_dcn": ("resnet50", "deconv_dcn"),
}
SMALL = "network_r18_nodcn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """In the released format: detectron2's."""
    file = tmp_path_factory.mktemp("released") / "R18_nodcn.pth"
    extras = {"optimizer": {}, "scheduler": {"last_epoch": 1}, "iteration": 270000}
    torch.save({"model": released_state(SMALL), **extras}, file)
    return file


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> RunFolder:
    return make_run(checkpoint, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    "name", [SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != SMALL)]
)
@torch.inference_mode()
def test_a_run_of_a_checkpoint_predicts_what_the_released_network_predicts(name, tmp_path):
    file = tmp_path / "released.pth"
    torch.save({"model": released_state(name)}, file)
    detector = load(make_run(file, tmp_path / "runs").path)
    assert (detector.config.backbone.name, detector.config.neck.name) == NAMES[name]
    answer_of(name, detector.network)


def test_the_run_says_what_it_is(run, checkpoint):
    assert run.state() == "done"
    assert run.kind() == "released"
    assert run.status()["stated_ap"] == 27.7
    detector = load(run.id, runs=run.path.parent)
    assert detector.classes.names == [*COCO_CLASSES.values()]
    assert (detector.size.short, detector.size.longest) == (512, 853)
    assert make_run(checkpoint, run.path.parent) == run  # the same file is the same run


def test_the_command_says_how_to_evaluate_it(checkpoint, tmp_path, capsys):
    assert released.main([str(checkpoint), f"runs_root={tmp_path}"]) == 0
    output = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert f"python -m onenet.evaluate {folder}" in output
    assert "AP 27.7" in output


def test_an_export_needs_images_to_be_checked_on(run, tmp_path, capsys):
    command = [str(run.path), "--format", "safetensors", "--out", str(tmp_path / "out")]
    assert export.main(command) == 2
    error = capsys.readouterr().err
    assert "The images to check the export on are not here: This run has no data" in error
    assert "--images FOLDER" in error
    assert not (tmp_path / "out").exists()


def test_keys_too_many_or_too_few_are_listed(tmp_path):
    def refused(state) -> str:
        file = tmp_path / "other.pth"
        torch.save({"model": state}, file)
        with pytest.raises(UserError) as error:
            make_run(file, tmp_path / "runs")
        assert not (tmp_path / "runs").exists()
        return str(error.value)

    state = released_state(SMALL)
    assert "not in the network: head.iou.weight" in refused(
        state | {"head.iou.weight": torch.zeros(1)}
    )
    less = {key: v for key, v in state.items() if not key.startswith("head.feat1")}
    assert "missing (by our names): head.features.0.weight, head.features.0.bias" in refused(less)
    wrong = state | {"head.feat1.bias": torch.zeros(3)}
    assert "of another shape (by our names): head.features.0.bias" in refused(wrong)
    for other in ({"a": torch.zeros(1)}, {"backbone.x.y.z": torch.zeros(1)}):
        assert "missing" in refused(other)


class Code:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps(Code()), pickle.dumps([1])], ids=str
)
def test_what_is_no_checkpoint_is_refused(tmp_path, capsys, content):
    file = tmp_path / "file.pth"
    file.write_bytes(content)
    assert released.main([str(file), f"runs_root={tmp_path / 'runs'}"]) == 2
    captured = capsys.readouterr()
    assert "file.pth" in captured.err
    assert "executed" not in captured.out
    assert not (tmp_path / "runs").exists()


def test_invalid_words_are_named(checkpoint, tmp_path, capsys):
    assert released.main([str(tmp_path / "missing.pth")]) == 2
    assert released.main([str(checkpoint), "root=x"]) == 2
    assert "runs_root=DIR" in capsys.readouterr().err


def test_without_its_data_an_evaluation_says_what_is_missing(run, capsys):
    assert evaluate.main([str(run.path), "data.root=/nowhere"]) == 2
    assert "data.val.images=/nowhere/val2017 does not exist" in capsys.readouterr().err


def test_every_parameter_has_one_name():
    for name in NAMES:
        keys = [*released_state(name)]
        assert len({our_name(key) for key in keys}) == len(keys)


def test_a_training_starts_from_the_released_backbone(checkpoint, tmp_path):
    words = ("backbone=resnet18", f"backbone.weights=released:{checkpoint}")
    config = compose(words)
    start = build_detector(config, 3).backbone.state_dict()
    for key, tensor in released_state(SMALL).items():
        if key.startswith("backbone."):
            assert torch.equal(start[our_name(key).removeprefix("backbone.")], tensor)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(checkpoint.read_bytes())
    moved = compose((words[0], f"backbone.weights=released:{copy}"))
    assert identifying_values(config) == identifying_values(moved)  # content counts, not the path
    with pytest.raises(UserError, match="released:FILE"):
        compose((words[0], "backbone.weights=released:/nowhere.pth"))


def test_runs_of_a_sweep_beside_it_are_planned_as_before(run):
    root = f"runs_root={run.path.parent}"
    (spec,) = expand([root, "debug=tiny"])
    assert spec.folder.state() == "missing"
