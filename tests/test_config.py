"""Configuration: composition, absolute values, and what wrong input is told.

Run: pytest tests/test_config.py
"""

from pathlib import Path

import pytest

from onenet.config import CONF, compose, from_dict, to_dict
from onenet.errors import UserError


def test_the_default_run_is_the_papers_method_on_the_built_in_data():
    config = compose([])
    assert (config.cost.name, config.location, config.heads) == ("loc_cls", "predicted", 1)
    assert (config.data.name, config.backbone.name, config.preset) == ("shapes", "tiny", "proxy")
    assert config.cost.weights.cls == config.cost.weights.giou == 2
    assert config.cost.weights.l1 == 5


@pytest.mark.parametrize(
    ("group", "option"),
    [(f.parent.name, f.stem) for f in sorted(CONF.glob("*/*.yaml"))],
)
def test_every_option_of_every_group_composes(group, option):
    needs = ["data.root=/somewhere"] if option in ("coco", "paper") else []
    config = compose([f"{group}={option}", *needs])
    chosen = getattr(config, group)
    assert option in (chosen, getattr(chosen, "name", None))


def test_lr_scale_and_schedule_are_relative_to_the_preset():
    one = compose([])
    assert compose(["heads=3"]).lr == pytest.approx(2 * one.lr)
    assert compose(["heads=3", "lr_scale=1"]).lr == pytest.approx(one.lr)
    assert compose(["heads=3", "lr=0.01"]).lr == pytest.approx(0.01)
    assert compose(["schedule=0.5"]).steps == round(one.steps / 2)
    assert compose(["schedule=0.5", "steps=7"]).steps == 7


def test_paths_become_absolute_and_lie_under_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["data=coco", "data.root=set", "runs_root=out", "data.val.images=elsewhere"])
    assert config.data.train.annotations == str(
        tmp_path / "set/annotations/instances_train2017.json"
    )
    assert config.data.val.images == str(tmp_path / "set/elsewhere")
    assert config.runs_root == str(tmp_path / "out")


def test_debug_has_a_runs_root_of_its_own():
    assert Path(compose([]).runs_root).name == "runs"
    assert Path(compose(["debug=tiny"]).runs_root).name == "runs_debug"


def test_a_config_survives_its_file():
    config = compose(["cost=algorithm1", "heads=2", "optim.clip=null"])
    assert from_dict(to_dict(config)) == config


def test_location_leaves_only_its_own_terms():
    predicted = compose(["location=predicted"]).cost_weights()
    predefined = compose(["location=predefined"]).cost_weights()
    assert (predicted.center, predicted.l1, predicted.giou) == (0, 5, 2)
    assert (predefined.l1, predefined.giou, predefined.iou) == (0, 0, 0)
    assert predefined.center > 0
    assert predefined.cls == predicted.cls == 2


@pytest.mark.parametrize(
    ("overrides", "named", "way_out"),
    [
        (["hedas=3"], "hedas", "heads"),
        (["optim.clp=1"], "optim.clp", "optim.clip"),
        (["cost.weights.clss=1"], "cost.weights.clss", "cost.weights.cls"),
        (["cost=foo"], "cost=foo", "loc_only"),
        (["heads=abc"], "heads=abc", "Integer"),
        (["heads=1.5"], "heads=1.5", "Integer"),
        (["heads=0"], "heads=0", "at least 1"),
        (["batch=0"], "batch=0", "at least 1"),
        (["infer_heads=2"], "infer_heads=2", "heads"),
        (["location=somewhere"], "location=somewhere", "predefined"),
        (["lr_scale=twice"], "lr_scale=twice", "auto"),
        (["lr=-1"], "lr=-1", "at least"),
        (["steps=0"], "steps=0", "at least"),
        (["augment.flip=2"], "augment.flip=2", "0..1"),
        (["data=coco"], "data.root", "data.root=DIR"),
        (["cost=box_assignment", "location=predefined"], "cost=box_assignment", "location"),
        (["cost.weights={cls:0,l1:0,giou:0}"], "cost=loc_cls", "cost.weights"),
        (["assigner.conflict=fight"], "assigner.conflict=fight", "next_best"),
        (["detector=yolo"], "detector=yolo", "onenet"),
        (["+new_key=1"], "+new_key=1", "new_key=VALUE"),
        (["~heads"], "~heads", "heads=VALUE"),
        (["heads"], "heads", "EQUAL"),
    ],
)
def test_wrong_input_is_told_in_three_lines_what_and_how(overrides, named, way_out):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert named in message
    assert way_out in message
    assert len(message.splitlines()) <= 3


def test_several_problems_are_told_together():
    with pytest.raises(UserError) as caught:
        compose(["heads=0", "location=x", "batch=-1"])
    assert len(str(caught.value).splitlines()) == 3
