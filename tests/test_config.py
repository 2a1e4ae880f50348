"""Configuration: composition, absolute values, and error messages.

Run: pytest tests/test_config.py
"""

from pathlib import Path

import pytest

from onenet.config.compose import CONF, compose, from_dict, to_dict
from onenet.errors import UserError
from onenet.runs import identity
from onenet.sweeps.experiments import expand, experiment_names


def test_the_default_run_is_the_papers_method_on_the_built_in_data():
    config = compose([])
    assert (config.cost.name, config.location, config.heads) == ("loc_cls", "predicted", 1)
    assert (config.data.name, config.backbone.name, config.preset) == ("shapes", "tiny", "proxy")
    assert config.cost.weights.cls == config.cost.weights.giou == 2
    assert config.cost.weights.l1 == 5


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (f.parent.name, f.stem)
        for f in sorted(CONF.glob("*/*.yaml"))
        if f.parent.name != "experiment"
    ],
)
def test_every_option_of_every_group_composes(group, option):
    needs = ["data.root=/somewhere"] if option in ("coco", "paper") else []
    config = compose([f"{group}={option}", *needs])
    value = getattr(config, group)
    assert option in (value, getattr(value, "name", None))


def test_lr_scale_and_schedule_are_relative_to_the_preset():
    one = compose([])
    assert compose(["heads=3"]).lr == pytest.approx(2 * one.lr)
    assert compose(["heads=3", "lr_scale=1"]).lr == pytest.approx(one.lr)
    assert compose(["heads=3", "lr=0.01"]).lr == pytest.approx(0.01)
    assert compose(["schedule=0.5"]).steps == round(one.steps / 2)
    assert compose(["schedule=0.5", "steps=7"]).steps == 7


def test_the_paper_preset_is_section_5():
    c = compose(["preset=paper", "data.root=/somewhere"])
    assert (c.data.name, c.backbone.name, c.backbone.weights) == (
        *("coco", "resnet50", "resnet50.tv_in1k"),
    )
    assert (c.batch, c.steps, c.lr, c.optim.weight_decay) == (64, 270_000, 5e-5, 1e-4)
    assert compose(["preset=paper", "data.root=/x", "heads=3"]).lr == 1e-4
    assert [round(m * c.steps) for m in c.optim.milestones] == [210_000, 250_000]
    assert (c.optim.decay, c.optim.clip) == ("multistep", None)
    assert (c.size.short, int(c.size.short * c.size.ratio)) == (512, 853)
    assert (c.augment.min_scale * c.size.short, c.augment.flip, c.augment.crop) == (416, 0.5, 0)
    weights = {"cls": 2, "l1": 5, "giou": 2}
    assert vars(c.loss.weights) == weights
    assert {name: vars(c.cost.weights)[name] for name in weights} == weights
    assert (c.cost.l1_format, c.loss.l1_format) == ("cxcywh", "cxcywh")
    assert (c.assigner.name, c.heads, c.infer_heads, c.eval.area) == ("min_cost", 1, 1, "coco")
    # Values from elsewhere: experiments/README.md, "Deviations from the paper".
    assert (c.neck.name, c.neck.channels, c.optim.warmup) == ("deconv_dcn", 64, 1000)
    assert (c.head.prior, c.head.box_unit, c.neck.init) == (0.01, 1.0, "xavier")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_paper_backbones_name_the_training_of_their_weights(name):
    c = compose(["preset=paper", "data.root=/somewhere", f"backbone={name}"])
    assert c.backbone.weights == f"{name}.tv_in1k"


def test_the_released_codes_differences_are_one_word():
    words = ["preset=paper", "data.root=/somewhere"]
    paper, released = (to_dict(compose(words + more)) for more in ([], ["reference=released"]))
    different = {
        key: value
        for key, value in identity.flatten(released).items()
        if value != identity.flatten(paper)[key]
    }
    assert different == {
        "reference": "released",
        "assigner.name": "hungarian",
        "assigner.conflict": None,
        "cost.l1_format": "xyxy",
        "loss.l1_format": "xyxy",
        "augment.crop": 0.5,
        "augment.size_step": 32,
        "data.crowd": "drop",
    }


def test_an_optional_group_can_be_left_out_by_name():
    words = ["preset=paper", "data.root=/somewhere"]
    assert compose([*words, "reference=null", "debug=null"]) == compose(words)
    both = expand([*words[:1], "data=shapes", "reference=released,null"])
    assert [spec.config.assigner.name for spec in both] == ["hungarian", "min_cost"]


def test_debug_shrinks_the_paper_too():
    c = compose(["preset=paper", "data.root=/somewhere", "debug=tiny"])
    assert (c.backbone.name, c.backbone.weights, c.steps, c.batch) == ("tiny", "none", 6, 2)


@pytest.mark.parametrize(("rule", "rate"), [("sqrt", 2.5e-5), ("linear", 1.25e-5), ("none", 5e-5)])
def test_the_rate_follows_the_batch(rule, rate):
    words = ["preset=paper", "data.root=/somewhere", "batch=16", f"optim.batch_rule={rule}"]
    assert compose(words).lr == pytest.approx(rate)
    assert compose([*words, "lr_scale=2"]).lr == pytest.approx(2 * rate)
    assert compose([*words, "lr=0.1"]).lr == 0.1


@pytest.mark.parametrize("name", experiment_names())
def test_every_row_of_every_experiment_resolves_at_the_papers_scale(name, tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text("{}")
    specs = expand([f"+experiment={name}", "preset=paper", f"data.root={tmp_path}"])
    assert {spec.config.preset for spec in specs} == {"paper"}
    proxies = expand([f"+experiment={name}"])
    assert [spec.label for spec in specs] == [spec.label for spec in proxies]
    assert not {spec.id for spec in specs} & {spec.id for spec in proxies}


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


def test_a_detector_brings_the_recipe_of_its_own_paper():
    """Deformable DETR (section 5.1) and Sparse R-CNN (section 4.1), on COCO."""
    paper = ["preset=paper", "data.root=/somewhere"]
    config = compose([*paper, "detector=deformable_detr"])
    assert (config.batch, config.lr, config.steps) == (32, 2e-4, 184_800)
    assert config.steps * 32 / 118_287 == pytest.approx(50, abs=0.01)  # epochs
    assert config.optim.milestones == [0.8]
    assert config.optim.lr_factors["backbone"] == 0.1
    assert (config.size.short, int(config.size.short * config.size.ratio)) == (800, 1333)
    assert config.model.queries == 300
    assert config.assigner.name == "hungarian"
    config = compose([*paper, "detector=sparse_rcnn"])
    assert (config.batch, config.lr, config.steps) == (16, 2.5e-5, 270_000)
    assert [m * config.steps for m in config.optim.milestones] == pytest.approx([210e3, 250e3])
    assert (config.optim.clip, config.optim.warmup) == (1.0, 1000)
    assert config.augment.min_scale * config.size.short == 480
    assert config.backbone.frozen
    words = ["model.proposals=100", "lr=1e-4", "assigner=min_cost"]
    config = compose([*paper, "detector=sparse_rcnn", *words])
    assert (config.model.proposals, config.lr) == (100, 1e-4)
    assert config.assigner.name == "min_cost"


def test_centernet_is_trained_as_onenet_is():
    onenet, centernet = (to_dict(compose([f"detector={d}"])) for d in ("onenet", "centernet"))
    assert {k for k in onenet if onenet[k] != centernet[k]} == {"detector", "model"}


@pytest.mark.parametrize(
    ("overrides", "named", "way_out"),
    [
        (["hedas=3"], "hedas", "Config"),
        (["optim.clp=1"], "optim.clp", "Optim"),
        (["cost.weights.clss=1"], "cost.weights.clss", "CostWeights"),
        (["cost=foo"], "cost/foo", "loc_cls, loc_only"),
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
        (["detector=yolo"], "detector/yolo", "onenet"),
        (["detector=sparse_rcnn", "heads=3"], "heads=3", "leave it out"),
        (["detector=sparse_rcnn", "location=predefined"], "location=predefined", "leave it out"),
        (["detector=sparse_rcnn", "data.crowd=ignore"], "data.crowd=ignore", "drop"),
        (["detector=sparse_rcnn", "eval.peaks=true"], "eval.peaks", "leave it out"),
        (["detector=centernet", "cost=loc_only"], "cost=loc_only", "leave it out"),
        (["detector=sparse_rcnn", "model.proposal=5"], "model.proposal", "SparseRCNNConfig"),
        (["detector=sparse_rcnn", "model.proposals=5.5"], "model.proposals=5.5", "Integer"),
        (["detector=sparse_rcnn", "model=small"], "model=small", "model.proposals"),
        (["backbone.weights=run:12"], "weights=run:12", "run:ID"),
        (["backbone=resnet50", "backbone.weights=resnet50"], "weights=resnet50", "tv_in1k"),
        (["backbone.weights=/no/such.pth"], "weights=/no/such.pth", "none"),
        (["batch=3", "processes=2", "accumulate=2"], "batch=3", "accumulate"),
        (["sync_bn=true", "device=cpu"], "sync_bn", "device=cuda"),
        (["schedule=nan"], "schedule=nan", "finite"),
        (["lr=inf"], "lr=inf", "finite"),
        (["optim.clip=nan"], "optim.clip=nan", "finite"),
        (["optim.milestones=[0.5,nan]"], "optim.milestones", "finite"),
        (["save_every=nan"], "save_every=nan", "finite"),
        (["lr_scale=nan"], "lr_scale=nan", "finite"),
        (["loss.weights.cls=-1"], "loss.weights.cls=-1", "at least 0"),
        (["loss.alpha=-0.5"], "loss.alpha=-0.5", "0..1"),
        (["head.prior=0"], "head.prior=0", "1e-06..0.999"),
        (["seed=100000000000000000000000000"], "seed=1", "0.."),
        (["data.shapes.max_objects=1000000000"], "max_objects=1", "1..1000"),
        (["precision=half"], "precision=half", "bf16"),
        (["data.crowd=shun"], "data.crowd=shun", "ignore"),
        (["optim.batch_rule=cubic"], "optim.batch_rule=cubic", "sqrt"),
        (["+new_key=1"], "+new_key=1", "new_key=VALUE"),
        (["~heads"], "~heads", "heads=VALUE"),
        (["heads"], "heads", "EQUAL"),
    ],
)
def test_wrong_input_is_told_in_a_few_lines_what_and_how(overrides, named, way_out):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert named in message
    assert way_out in message
    assert len(message.splitlines()) <= 12


def test_several_problems_are_told_together():
    with pytest.raises(UserError) as caught:
        compose(["heads=0", "location=x", "batch=-1"])
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        *("location", "heads", "batch", "batch")
    ]
