"""Runs of earlier commits can still be planned, resumed, evaluated again and tabulated.

tests/golden/run_ae34722 is a run folder of commit ae34722 (`python run.py debug=tiny tracker=none
heads=2 cost=loc_only`) without pictures; its checkpoint has only names and shapes.

Run: pytest tests/test_old_runs.py
"""

import copy
import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from onenet.config.compose import compose, from_dict, to_dict
from onenet.config.upgrade import FALLBACKS, NEUTRAL, upgrade
from onenet.errors import UserError
from onenet.job.run import Job, work
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flatten, run_id
from onenet.sweeps import plan, summary
from onenet.sweeps.experiments import expand
from onenet.system.distributed import ALONE
from onenet.system.files import REPOSITORY, read_json
from onenet.system.signals import StopRequest

OLD = Path(__file__).parent / "golden" / "run_ae34722"
NAME = "loc_only-predicted-h2-tiny-rigid-s0-0800872d41"
RECORDS = REPOSITORY / "analysis" / "results" / "records"


def words(root: Path, *more: str) -> list[str]:
    return ["debug=tiny", "tracker=none", "heads=2", "cost=loc_only", f"runs_root={root}", *more]


def filled(node: dict, name: str = ""):
    """The layout filled with values seeded by name."""
    ((kind, content),) = node.items()
    if kind == "dict":
        return {key: filled(value, f"{name}.{key}") for key, value in content}
    if kind == "list":
        return [filled(value, name) for value in content]
    if kind == "value":
        return content
    dtype, shape = getattr(torch, content[0]), content[1]
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = torch.from_numpy(np.asarray(0.02 * random.standard_normal(shape)))
    if name.endswith(("running_var", "exp_avg_sq", "step", "num_batches_tracked")):
        values = 1 + values.abs()
    return values.to(dtype)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """The finished old run."""
    path = tmp_path / NAME
    shutil.copytree(OLD, path, ignore=lambda *_: ["checkpoint.json"])
    (path / "checkpoints").mkdir()
    state = filled(json.loads((OLD / "checkpoint.json").read_text()))
    torch.save(state, path / "checkpoints" / "last.pt")
    return RunFolder(path)


def planned(folder: RunFolder, *more: str) -> plan.Run:
    (run,) = plan.group(expand(words(folder.path.parent, *more)))
    assert run.folder == folder
    return run


def do(run: plan.Run) -> None:
    plan.freeze([run])
    Job(run.folder, run.request(threads=1), ALONE, StopRequest()).run()


def test_it_is_planned_as_done_and_tabulated(folder):
    run = planned(folder)
    assert run.state() == "done"
    text = io.StringIO()
    summary.print_results(Console(file=text, width=200), [run], {})
    assert "0.004" in text.getvalue()  # its learning rate
    assert "NOT DONE" not in text.getvalue()


def test_it_is_evaluated_again_without_a_training(folder):
    run = planned(folder, "infer_heads=2")
    assert run.state() == "partial"
    before = folder.config_file.read_bytes()
    do(run)
    assert run.state() == "done"
    result = folder.result(run.specs[0].evaluation)
    assert result["evaluation"]["infer_heads"] == 2
    assert result["id"] == "0800872d41"
    assert folder.status()["resumes"] == 0
    assert folder.config_file.read_bytes() == before


def test_it_is_resumed(folder):
    file = folder.checkpoint_file
    state = torch.load(file, weights_only=True)
    state["progress"]["step"] = 3
    torch.save(state, file)
    folder.result_file.unlink()
    shutil.rmtree(folder.path / "evaluations")
    folder.set_status(state="preempted")
    run = planned(folder)
    assert run.state() == "partial"
    do(run)
    assert run.state() == "done"
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert folder.status()["resumes"] == 1


def test_a_torn_result_is_made_again(folder):
    folder.result_file.write_text(folder.result_file.read_text()[:500])
    run = planned(folder)
    assert run.state() == "partial"
    do(run)
    assert run.state() == "done"
    assert folder.result() == read_json(OLD / "result.json")  # from its intact evaluation


def test_without_checkpoint_a_torn_result_costs_no_training(folder):
    folder.result_file.write_text("{")
    folder.checkpoint_file.unlink()
    do(planned(folder))
    assert folder.result() == read_json(OLD / "result.json")
    before = folder.metrics_file.read_text()
    shutil.rmtree(folder.path / "evaluations")
    folder.result_file.unlink()
    with pytest.raises(UserError, match="cannot be evaluated again"):
        do(planned(folder))
    assert folder.metrics_file.read_text() == before
    assert folder.status()["state"] == "done"


def test_a_run_whose_config_was_edited_is_refused(folder, capsys):
    run = planned(folder, "infer_heads=2")
    config = yaml.safe_load(folder.config_file.read_text())
    folder.config_file.write_text(yaml.safe_dump({**config, "seed": 1}))
    assert work(folder, run.request(1), "cpu") == 2
    error = capsys.readouterr().err
    assert "config.yaml describes run" in error
    assert "not 0800872d41" in error
    assert not folder.result(run.specs[0].evaluation)
    assert folder.status()["state"] == "done"
    assert "config.yaml describes run" in summary.failure(run, {})
    folder.config_file.write_text(yaml.safe_dump({**config, "seed": "abc"}))
    with pytest.raises(UserError, match=r"config\.yaml is not the configuration of a run"):
        Job(folder, run.request(1), ALONE, StopRequest())
    for broken in ("seed: [", "[]", "preset: proxy"):
        folder.config_file.write_text(broken)
        with pytest.raises(UserError, match=r"config\.yaml is not the configuration of a run"):
            folder.config()


def test_a_data_set_that_has_moved_is_the_same_data_set(tmp_path):
    data, root = tmp_path / "data", tmp_path / "runs"
    (data / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (data / f"{split}2017").mkdir()
        Image.new("RGB", (64, 64), "gray").save(data / f"{split}2017" / "a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 20], "area": 600}
            ],
        }
        file = data / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(content))
    options = ["data=coco", "batch=1", "steps=1"]

    def plan_run(data: Path, *more: str) -> plan.Run:
        (run,) = plan.group(expand(words(root, *options, f"data.root={data}", *more)))
        return run

    do(plan_run(data))
    (tmp_path / "elsewhere").mkdir()
    moved = plan_run(data.rename(tmp_path / "elsewhere" / "data"), "infer_heads=2")
    assert moved.state() == "partial"
    do(moved)
    assert moved.state() == "done"


def test_what_does_not_count_is_what_this_command_asks_for(folder):
    run = planned(folder, "infer_heads=2", "workers=1", "eval.batch=3")
    job = Job(folder, run.request(1), ALONE, StopRequest())
    assert (job.config.workers, job.config.eval.batch) == (1, 3)
    assert folder.config()["workers"] == 0


# --- configurations ---


def test_every_key_that_came_later_has_its_neutral_value():
    """Keys added since ae34722 must be in FALLBACKS."""
    old = flatten(yaml.safe_load((OLD / "config.yaml").read_text()))
    now = flatten(to_dict(compose([])))
    assert {key for key in now.keys() - old.keys() if key not in FALLBACKS} == set()
    assert set(FALLBACKS) <= now.keys() | {"model", "optim.lr_factors", "cost.terms"}


def test_without_the_later_keys_an_old_config_has_its_id():
    neutral = [f"{key}={str(value).lower()}" for key, value in NEUTRAL.items()]
    config = to_dict(compose(neutral))
    old = copy.deepcopy(config)
    for key in FALLBACKS:
        *groups, name = key.split(".")
        node = old
        for group in groups:
            node = node[group]
        del node[name]
    old["gone"], old["optim"]["gone"] = 1, {"too": 2}
    upgraded = upgrade(old)
    assert upgraded.keys() == config.keys()
    assert run_id(from_dict(upgraded)) == run_id(from_dict(config))
    del old["heads"]
    with pytest.raises(UserError, match="has no key 'heads'"):
        upgrade(old)


def test_the_overrides_of_every_record_give_its_id():
    files = sorted(RECORDS.glob("*/result.json"))
    assert len(files) > 100
    for file in files:
        result = read_json(file)
        assert run_id(compose(result["overrides"])) == result["id"], file
        assert run_id(from_dict(upgrade(result["config"]))) == result["id"], file
