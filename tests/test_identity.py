"""A run's id changes if and only if its result can change.

Run: pytest tests/test_identity.py
"""

import json
import os
from pathlib import Path

import pytest

from onenet.config.compose import compose
from onenet.errors import UserError
from onenet.runs import identity
from onenet.runs.evaluations import default_evaluation, requested_evaluation
from onenet.runs.identity import run_id, slug
from onenet.sweeps.experiments import expand, experiment_names
from onenet.system.files import digest

IDS = Path(__file__).parent / "table_ids.json"
JOBS_1 = "hydra.launcher.jobs=1"


def same(*overrides: str) -> bool:
    return run_id(compose(list(overrides))) == run_id(compose([]))


@pytest.mark.parametrize(
    "override",
    [
        "tracker=none",
        "tracker.project=other",
        "workers=3",
        "device=cpu",
        "plan=true",
        JOBS_1,
        "hydra.launcher.threads=2",
        "runs_root=/elsewhere",
        "log_every=7",
        "save_every=1",
        "infer_heads=1",
        "eval.size.short=128",
        "eval.area=coco",
        "eval.split=train",
        "eval.batch=3",
        "lr_scale=1",
        "data.root=/unused",
        "data.on_bad_image=skip",
        "data.shapes.part_side=0.5",
        "optim.milestones=[0.5]",
        "cost.weights.center=3",
        "cost.weights.iou=0",
        "processes=2",
        "accumulate=2",
        "compile=true",
        "data.crowd=drop",
        "optim.base_batch=8",
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_id(override):
    assert same(override)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "heads=2",
        "lr=0.001",
        "steps=5",
        "batch=3",
        "schedule=0.5",
        "cost=loc_only",
        "cost=algorithm1",
        "cost.weights.cls=1",
        "cost.l1_format=xyxy",
        "location=predefined",
        "assigner=hungarian",
        "assigner.conflict=drop",
        "loss.weights.l1=1",
        "backbone=resnet18",
        "neck=deconv",
        "neck.channels=32",
        "head.prior=0.02",
        "size.short=96",
        "size.ratio=2",
        "augment.flip=0",
        "optim.clip=null",
        "precision=bf16",
        "head.box_bias=1",
        "sync_bn=true",
        "augment.crop=0.5",
        "augment.size_step=4",
        "reference=released",
        "optim.decay=multistep",
        "+optim.lr_factors={backbone: 0.1}",
        "backbone.frozen=true",
        "backbone.weights=run:0123456789",
        "data.seed=1",
        "data.limit=4",
        "data.shapes.kind=parts",
        "data.shapes.kind=crowded",
    ],
)
def test_what_can_change_a_result_changes_the_id(override):
    assert not same(override)


def test_what_only_parts_have_does_not_change_the_id_of_a_crowded_scene():
    crowded = "data.shapes.kind=crowded"
    ids = {run_id(compose([crowded, *w])) for w in ([], ["data.shapes.body_scale=2"])}
    assert len(ids) == 1
    assert slug(compose([crowded])).endswith("-crowded-s0")


@pytest.mark.parametrize(
    ("detector", "unused", "used"),
    [
        ("centernet", ["cost.weights.l1=1", "assigner=hungarian", "head.prior=0.5"], "neck=deconv"),
        ("sparse_rcnn", ["neck=deconv", "head.prior=0.5"], "cost.weights.l1=1"),
        ("deformable_detr", ["neck.channels=8", "eval.batch=1"], "optim.lr_factors.backbone=0.5"),
    ],
)
def test_what_a_detector_does_not_read_does_not_change_its_id(detector, unused, used):
    def id_of(*overrides: str) -> str:
        return run_id(compose([f"detector={detector}", *overrides]))

    assert {id_of(override) for override in unused} == {id_of()}
    assert len({id_of(), id_of(used), id_of("model.prior=0.02"), run_id(compose([]))}) == 4


def test_peaks_are_another_evaluation_of_the_same_training():
    with_peaks, without = (compose(["detector=centernet", *w]) for w in ([], ["eval.peaks=false"]))
    assert run_id(with_peaks) == run_id(without)
    assert requested_evaluation(with_peaks) == default_evaluation(with_peaks)
    assert default_evaluation(with_peaks).id == "h1-64x1.5-relative-val-peaks"
    assert requested_evaluation(without).id == "h1-64x1.5-relative-val"
    assert slug(with_peaks) == "centernet-tiny-rigid-s0"
    assert slug(compose(["detector=sparse_rcnn"])) == "sparse_rcnn-loc_cls-tiny-rigid-s0"


def test_names_do_not_count_only_values():
    by_name = compose(["cost=loc_only"])
    by_value = compose(["cost=loc_cls", "cost.weights.cls=0"])
    assert run_id(by_name) == run_id(by_value)
    assert slug(by_name) == slug(by_value)
    unused = compose(["cost=loc_only", "cost.gamma=1", "cost.cls_form=cross_entropy"])
    assert run_id(unused) == run_id(by_name)
    rate = compose([]).lr
    assert run_id(compose(["heads=3", f"lr={2 * rate}"])) == run_id(compose(["heads=3"]))


def test_annotation_files_count_by_content_not_by_path(tmp_path):
    def coco(name: str, text: str) -> str:
        folder = tmp_path / name / "annotations"
        folder.mkdir(parents=True)
        for split in ("train", "val"):
            (folder / f"instances_{split}2017.json").write_text(text)
        return run_id(compose(["data=coco", f"data.root={tmp_path / name}"]))

    first, moved, changed = coco("a", "{}"), coco("b", "{}"), coco("c", "{ }")
    assert first == moved != changed
    overrides = ["data=coco", f"data.root={tmp_path / 'a'}"]
    assert run_id(compose([*overrides, "data.crowd=drop"])) != first
    assert "data.crowd" not in identity.identifying_values(compose([*overrides, "data.crowd=drop"]))


def test_the_digest_follows_the_content_of_a_file(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b"abc")
    assert digest("data.val.annotations", str(file)) == "ba7816bf8f01cfea"  # FIPS 180's example
    file.write_bytes(b"abcd")
    assert digest("data.val.annotations", str(file)) == "88d4266fd4e6338d"
    with pytest.raises(
        UserError, match=r"data\.val\.annotations=.*no\.json cannot be read: No such file"
    ):
        digest("data.val.annotations", str(tmp_path / "no.json"))
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for a writer
    for other in ("pipe.json", "."):
        with pytest.raises(UserError, match="cannot be read: it is not a file"):
            digest("data.val.annotations", str(tmp_path / other))


def test_a_key_added_later_at_its_neutral_value_keeps_old_ids(monkeypatch):
    before = run_id(compose([]))
    original = identity.identifying_values

    def with_new_key(config):
        values = {**original(config), "novelty": 1.0}
        return {k: v for k, v in values.items() if identity.NEUTRAL.get(k, ...) != v}

    monkeypatch.setattr(identity, "identifying_values", with_new_key)
    assert run_id(compose([])) != before
    monkeypatch.setitem(identity.NEUTRAL, "novelty", 1.0)
    assert run_id(compose([])) == before


def test_the_default_evaluation_is_one_head_at_the_training_size():
    config = compose(["heads=3", "infer_heads=3", "eval.size.short=128"])
    assert requested_evaluation(config) != default_evaluation(config)
    assert default_evaluation(config) == requested_evaluation(compose(["heads=3"]))


def test_relative_areas_at_512_are_cocos_under_one_name():
    overrides = ["preset=paper", "data.root=/somewhere"]
    config = compose(overrides)
    assert requested_evaluation(config) == default_evaluation(config)
    assert requested_evaluation(compose([*overrides, "eval.area=relative"])).area == "coco"
    assert requested_evaluation(compose([*overrides, "eval.size.short=256"])).area == "coco"
    smaller = compose([*overrides, "eval.size.short=256", "eval.area=relative"])
    assert requested_evaluation(smaller).area == "relative"


@pytest.mark.parametrize("name", experiment_names())
def test_the_ids_of_all_table_rows_stay(name):
    """Old runs keep their ids. To change results on purpose, raise RECIPE and rewrite the file:

    python -c "from tests.test_identity import write_ids; write_ids()"
    """
    assert table_ids(name) == json.loads(IDS.read_text())[name]


def table_ids(name: str) -> dict[str, str]:
    specs = expand([f"+experiment={name}"])
    return {f"{spec.label} | seed {spec.config.seed}": spec.id for spec in specs}


def write_ids() -> None:
    IDS.write_text(json.dumps({n: table_ids(n) for n in experiment_names()}, indent=1) + "\n")
