"""The command line from the outside: what it runs, what it writes, how it fails.

Run: pytest tests/test_cli.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from onenet.runs.folder import RunFolder
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY, write_json

TINY = ["debug=tiny", "tracker=none"]


def run_py(*words: str, cwd: Path | None = None, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "run.py"), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two runs, started in its own folder."""
    root, cwd = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("cwd")
    words = ["-m", "cost=loc_only,loc_cls", *TINY, f"runs_root={root}"]
    return root, cwd, words, run_py(*words, cwd=cwd)


def test_a_sweep_runs_prints_its_table_and_says_where_everything_is(swept):
    root, cwd, _, done = swept
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("AP(+NMS)", "gain AP50", "dup/obj", "cost=loc_only", "cost=loc_cls", str(root)):
        assert word in done.stdout
    assert (root / "answer.png").is_file()
    assert list(cwd.iterdir()) == []


def test_a_run_folder_holds_what_the_design_says(swept):
    root = swept[0]
    specs = expand(["cost=loc_only,loc_cls", *TINY, f"runs_root={root}"])
    for spec in specs:
        folder = spec.folder
        assert folder.path.name.endswith(spec.id)
        assert folder.status()["state"] == "done"
        assert folder.state() == "done"
        result = folder.result()
        for key in ("id", "recipe", "overrides", "choices", "config", "metrics", "metrics_notes"):
            assert key in result
        assert result["id"] == spec.id
        assert result == folder.result(spec.evaluation)
        for name in ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]:
            for key in (name, name + "_nms"):
                assert key in result["metrics"]
        for key in [
            "nms_gain",
            "AP50_nms_gain",
            "AP_nms_06",
            "AP_nms_07",
            "duplicates_per_object",
            "conflict_rate",
            "params",
            "train_seconds",
        ]:
            assert key in result["metrics"]
        for key, value in result["metrics"].items():
            assert value is not None or result["metrics_notes"][key]
        lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        steps = [line["step"] for line in lines if "evaluation" not in line]
        assert steps == list(range(1, spec.config.steps + 1))
        assert (folder.path / "checkpoints/last.pt").is_file()
        assert (folder.path / "pictures/pictures.json").is_file()
        evaluation = folder.evaluation(spec.evaluation)
        assert {f.name for f in evaluation.iterdir()} == {
            "result.json",
            "detections.json.gz",
            "per_image.npz",
        }


def test_rerunning_skips_what_is_done(swept):
    root, _, words, _ = swept
    before = {f: f.stat().st_mtime_ns for f in root.rglob("result.json")}
    again = run_py(*words)
    assert again.returncode == 0
    assert "cost=loc_cls" in again.stdout
    assert {f: f.stat().st_mtime_ns for f in root.rglob("result.json")} == before


def test_a_plan_trains_nothing_and_knows_the_states(swept):
    root, _, words, _ = swept
    plan = run_py(*words, "seed=0,1", "plan=true")
    assert plan.returncode == 0
    lines = [line for line in plan.stdout.splitlines() if "cost=" in line]
    assert [line.split()[1] for line in lines] == ["done", "missing", "done", "missing"]
    assert len(list(root.glob("*/result.json"))) == 2


@pytest.mark.slow
def test_an_evaluation_axis_never_trains(swept):
    root, _, words, _ = swept
    checkpoints = {f: f.stat().st_mtime_ns for f in root.rglob("last.pt")}
    done = run_py(*words, "eval.size.short=96", "eval.area=coco")
    assert done.returncode == 0, done.stdout
    assert {f: f.stat().st_mtime_ns for f in root.rglob("last.pt")} == checkpoints
    for spec in expand([w for w in words if w != "-m"]):
        assert len(list((spec.folder.path / "evaluations").iterdir())) == 2
        assert spec.folder.result()["evaluation"]["short"] == spec.config.size.short


@pytest.mark.parametrize(
    "words",
    [["hedas=1"], ["heads=x"], ["heads=0"], ["infer_heads=3"], ["data=coco", "data.root=/no"]],
)
def test_bad_input_ends_at_once_without_a_traceback(words, tmp_path):
    done = run_py(*words, *TINY, f"runs_root={tmp_path / 'runs'}")
    assert done.returncode == 2
    assert 1 <= len(done.stderr.strip().splitlines()) <= 12
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_of_an_older_version_is_evaluated_again(swept):
    """Its frozen config lacks newer keys; its id, and so its training, stay the same."""
    root, _, words, _ = swept
    spec = expand([*words[1:], "cost=loc_cls"])[0]
    frozen = yaml.safe_load(spec.folder.config_file.read_text())
    for key in ("reference", "sync_bn", "accumulate", "compile"):
        del frozen[key]
    spec.folder.config_file.write_text(yaml.safe_dump(frozen))
    trained = spec.folder.checkpoint_file.stat().st_mtime
    done = run_py("cost=loc_cls", *TINY, "eval.size.short=112", f"runs_root={root}")
    assert done.returncode == 0, done.stdout
    assert list((spec.folder.path / "evaluations").glob("h1-112*/result.json"))
    assert spec.folder.checkpoint_file.stat().st_mtime == trained


@pytest.mark.slow
def test_evaluating_again_fills_what_an_older_result_lacks(swept):
    root, _, words, _ = swept
    specs = expand(words[1:])
    whole = [spec.folder.result(spec.evaluation) for spec in specs]
    for spec, result in zip(specs, whole, strict=True):
        metrics = {k: v for k, v in result["metrics"].items() if not k.startswith("dAP")}
        old = {key: v for key, v in result.items() if key != "digest"} | {"metrics": metrics}
        write_json(spec.folder.evaluation(spec.evaluation) / "result.json", old)
    specs[1].folder.checkpoint_file.rename(root / "moved.pt")
    done = run_py(*words, "evaluate=again")
    (root / "moved.pt").rename(specs[1].folder.checkpoint_file)
    assert done.returncode == 1
    assert f"NOT DONE  {specs[1].folder.path.name}" in done.stdout
    assert "checkpoint" in done.stdout
    again = [spec.folder.result(spec.evaluation) for spec in specs]
    assert again[0]["metrics"] == whole[0]["metrics"] == specs[0].folder.result()["metrics"]
    assert again[1]["metrics"].keys() < whole[1]["metrics"].keys(), "metrics are kept"
    assert again[0]["timing"]["finished"] > whole[0]["timing"]["finished"]
    assert run_py(*words, "evaluate=again").returncode == 0
    assert [s.folder.result(s.evaluation)["metrics"] for s in specs] == [
        result["metrics"] for result in whole
    ]


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_is_told_at_the_end(tmp_path):
    words = ["-m", "lr=1e30,1e-3", *TINY, f"runs_root={tmp_path}"]
    done = run_py(*words)
    assert done.returncode == 1
    assert "NOT DONE" in done.stdout
    assert "FloatingPointError" in done.stdout
    assert "log.txt" in done.stdout
    failed, fine = expand(["lr=1e30,1e-3", *TINY, f"runs_root={tmp_path}"])
    assert failed.folder.state() == "failed"
    assert "Traceback" in failed.folder.status()["traceback"]
    assert fine.folder.state() == "done"
    plan = run_py(*words, "plan=true")
    assert [line.split()[1] for line in plan.stdout.splitlines()[:2]] == ["failed", "done"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_its_checkpoint_is(tmp_path):
    words = [*TINY, "steps=60", "save_every=0", f"runs_root={tmp_path / 'killed'}"]
    spec = expand(words)[0]
    running = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "run.py"), *words], stdout=subprocess.DEVNULL
    )
    while spec.folder.last_metrics().get("step", 0) < 10:
        time.sleep(0.02)
        assert running.poll() is None
    os.kill(spec.folder.status()["pid"], signal.SIGKILL)
    assert running.wait() == 1
    assert spec.folder.state() == "partial"
    assert run_py(*words).returncode == 0
    assert spec.folder.status()["resumes"] == 1
    straight = [*words[:-1], f"runs_root={tmp_path / 'straight'}"]
    assert run_py(*straight).returncode == 0
    reference = expand(straight)[0].folder
    assert losses(spec.folder) == losses(reference)
    assert spec.folder.result()["metrics"]["AP"] == reference.result()["metrics"]["AP"]


def losses(folder: RunFolder) -> list[float]:
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.slow
def test_overfit_learns_its_image_by_heart(tmp_path):
    done = run_py("debug=overfit", f"runs_root={tmp_path}")
    assert done.returncode == 0, done.stdout
    spec = expand(["debug=overfit", f"runs_root={tmp_path}"])[0]
    assert spec.folder.result()["metrics"]["AP"] > 90


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["location=predefined"],
        ["cost=cls_only", "assigner.conflict=next_best"],
        ["cost=algorithm1", "assigner.conflict=drop"],
        ["cost=box_assignment"],
        ["cost=point_assignment", "location=predefined"],
        ["assigner=hungarian", "neck=deconv", "heads=2", "infer_heads=2"],
        ["data.shapes.kind=parts", "optim.decay=multistep"],
    ],
)
def test_every_choice_makes_an_honest_tiny_run(words, tmp_path):
    done = run_py(*words, *TINY, f"runs_root={tmp_path}")
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.glob("*/result.json"))


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["centernet", "deformable_detr", "sparse_rcnn"])
def test_every_detector_leaves_a_runs_folder_behind(detector, tmp_path):
    root = tmp_path / "runs"
    words = [f"detector={detector}", *TINY, f"runs_root={root}"]
    done = run_py(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    (spec,) = expand(words)
    result = spec.folder.result()
    assert result["choices"]["detector"] == detector
    assert result["metrics"]["AP"] is not None
    drawn = json.loads((spec.folder.path / "pictures" / "pictures.json").read_text())["images"]
    assert all(len(entry["positives"]) == len(entry["ground_truth"]) for entry in drawn)
    line = json.loads(spec.folder.metrics_file.read_text().splitlines()[0])
    names = [name for name in line if name.startswith("loss_")]
    assert line["loss"] == pytest.approx(sum(line[name] for name in names), rel=1e-4)
    warm = [*words, f"backbone.weights=run:{spec.id}"]
    assert run_py(*warm).returncode == 0
    assert expand(warm)[0].folder.state() == "done"
