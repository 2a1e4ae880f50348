"""Several processes or micro-batches give the update and the AP of one.

Run: pytest tests/test_distributed.py (-m slow: two processes by torchrun, over gloo)
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from onenet import build
from onenet.config.compose import compose
from onenet.data.loading import training_batches
from onenet.data.sources import open_split
from onenet.detectors import DETECTORS
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.evaluation.score_gap import ScoreGaps
from onenet.runs.evaluations import requested_evaluation
from onenet.runs.folder import RunFolder
from onenet.system.context import RunContext
from onenet.system.distributed import ALONE, World, join
from onenet.system.files import REPOSITORY
from onenet.training.loop import Hooks, Progress, TrainingState, train

OVERRIDES = ("debug=tiny", "batch=5", "steps=3", "neck.channels=8", "heads=2", "lr=0.01")


def without_batch_norm(module: nn.Module) -> nn.Module:
    """BatchNorm depends on the micro-batch, so with it parts cannot equal the whole."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(1, child.num_features)
            norm.drop, norm.act = getattr(child, "drop", None), getattr(child, "act", None)
            setattr(module, name, nn.Sequential(norm, norm.act) if norm.act else norm)
        else:
            without_batch_norm(child)
    return module


def learn(world: World = ALONE, accumulate: int = 1, *overrides: str) -> dict:
    """A short training: its log, the gradients of each step, and its counts."""
    torch.set_num_threads(1)
    config = compose([*OVERRIDES, *overrides])
    source = open_split(config.data, "train")
    model = without_batch_norm(build.detector(config, len(source.annotations.category_ids)))
    optimizer = build.optimizer(config, model)
    lines, gradients, progress = [], [], Progress()
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone() for p in model.parameters()])
    )
    share = {"rank": world.rank, "processes": world.size, "accumulate": accumulate}
    dataset = build.training_set(config, source)
    train(
        world.parallel(model, sync_bn=False),
        build.detection_loss(config),
        training_batches(dataset, config.batch, 0, config.steps, **share),
        build.schedule(config),
        TrainingState(optimizer, progress),
        RunContext("cpu", "float32", world, accumulate),
        Hooks(log=lines.append),
        clip=config.optim.clip,
    )
    counts = [progress.objects, progress.conflicts]
    return {"log": lines, "gradients": gradients, "counts": counts}


def score(config, model: nn.Module, world: World) -> dict | None:
    source = open_split(config.data, "val")
    dataset = build.evaluation_set(config, source, requested_evaluation(config))
    context = RunContext(world=world)
    gaps = ScoreGaps(build.loss(config, model).match, context=context)
    predicted = predict(model, dataset, batch=3, context=context, on_batch=gaps.add)
    gap, _ = gaps.mean()
    if predicted is None:
        return None
    return Scorer(source.annotations).score(predicted[0]).metrics | {"score_gap": gap}


def assert_same_training(one: dict, other: dict) -> None:
    for a, b in zip(one["log"], other["log"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    assert one["counts"] == other["counts"]
    for step in range(2):  # later ones amplify the rounding of Adam's first steps
        for a, b in zip(one["gradients"][step], other["gradients"][step], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def whole() -> dict:
    return learn()


@pytest.mark.parametrize("accumulate", [2, 5])
def test_a_batch_accumulated_gives_the_update_of_the_whole(whole, accumulate):
    assert_same_training(whole, learn(ALONE, accumulate))


def torchrun(*command: str, processes: int = 2, **environment: str) -> subprocess.CompletedProcess:
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *starter, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    """Results of `_as_one_of_several` in each process."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(__file__, str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_give_the_update_of_one(whole, two_processes, accumulate):
    first, second = (process["learnt"][accumulate] for process in two_processes)
    assert_same_training(whole, first)
    assert first["log"] == second["log"]
    for a, b in zip(first["gradients"], second["gradients"], strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.slow
def test_two_processes_predict_what_one_does(two_processes):
    """The same weights give identical numbers."""
    alone = predicted_alone(ALONE)
    assert [process["metrics"] for process in two_processes] == [alone, None]


@pytest.mark.slow
def test_what_processes_tell_each_other(two_processes):
    assert [process["shared"] for process in two_processes] == ["from 0"] * 2
    assert [process["gathered"] for process in two_processes] == [[0, 1], []]
    assert [process["weight"] for process in two_processes] == [0.0, 0.0]


def predicted_alone(world: World) -> dict | None:
    config = compose([*OVERRIDES, "data.limit=7"])
    return score(config, build.detector(config, 5), world)


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert join() == ALONE == World(0, 1)
    assert ALONE.first
    assert ALONE.gather("x") == ["x"]
    assert ALONE.broadcast("x") == "x"
    model = nn.Linear(1, 1)
    assert ALONE.parallel(model, sync_bn=True) is model


def test_batch_norm_over_all_processes_replaces_every_other(monkeypatch):
    """SyncBatchNorm itself needs CUDA."""
    monkeypatch.setattr(
        "onenet.system.distributed.DistributedDataParallel", lambda model, **_: model
    )
    model = build.detector(compose(["neck=deconv_dcn"]), 5)
    names = set(model.state_dict())
    parallel = World(0, 2).parallel(model, sync_bn=True)
    kinds = {type(m) for m in parallel.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
    assert set(parallel.state_dict()) == names


# --- as users start it ---


def run_folder(root: Path) -> Path:
    (folder,) = (path for path in root.iterdir() if (path / "config.yaml").is_file())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "starter", [["run.py", "processes=2"], ["torchrun", "run.py"]], ids=lambda s: s[0]
)
def test_a_run_of_two_processes_leaves_one_record(tmp_path, starter):
    words = ["debug=tiny", "log_every=1", f"runs_root={tmp_path}"]
    if starter[0] == "torchrun":
        done = torchrun(str(REPOSITORY / "run.py"), *words)
    else:
        command = [sys.executable, str(REPOSITORY / "run.py"), *words, *starter[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = run_folder(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["env"]["processes"] == 2
    assert -1 <= result["metrics"]["score_gap"] <= 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((folder / "status.json").read_text())["state"] == "done"
    assert np.isfinite(lines[0]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("detector", sorted({*DETECTORS} - {"onenet"}))
def test_every_detector_runs_in_two_processes(tmp_path, detector):
    """DistributedDataParallel needs a gradient for each parameter in each step."""
    words = ["debug=tiny", f"detector={detector}", f"runs_root={tmp_path}"]
    done = torchrun(str(REPOSITORY / "run.py"), *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads((run_folder(tmp_path) / "result.json").read_text())["env"]["processes"] == 2


@pytest.mark.slow
def test_a_piece_without_images_is_refused(tmp_path):
    """Under torchrun, which fixes the number; an automatic one is never too large."""
    words = ["debug=tiny", "batch=1", f"runs_root={tmp_path}"]
    done = torchrun(str(REPOSITORY / "run.py"), *words)
    assert done.returncode == 1
    assert "batch=1 is less than processes × accumulate = 2" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_categories_are_compared_under_torchrun_too(tmp_path):
    write_broken_data(tmp_path / "data")
    file = tmp_path / "data/annotations/instances_val2017.json"
    file.write_text(file.read_text().replace('"id": 1, "name": "thing"', '"id": 7, "name": "it"')
                    .replace('"category_id": 1', '"category_id": 7'))  # fmt: skip
    words = ["debug=tiny", "data=coco", f"data.root={tmp_path / 'data'}"]
    done = torchrun(str(REPOSITORY / "run.py"), *words, f"runs_root={tmp_path / 'runs'}")
    assert done.returncode == 1
    assert "The category ids differ" in done.stderr
    assert not list((tmp_path / "runs").glob("*/config.yaml"))


@pytest.mark.slow
def test_a_failure_in_any_process_is_the_failure_of_the_run(tmp_path):
    images = tmp_path / "data"
    write_broken_data(images)
    words = [
        *("debug=tiny", "data=coco", f"data.root={images}", "processes=2", "steps=2"),
        f"runs_root={tmp_path / 'runs'}",
    ]
    command = [sys.executable, str(REPOSITORY / "run.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    status = json.loads((run_folder(tmp_path / "runs") / "status.json").read_text())
    assert status["state"] == "failed"
    assert "broken.png" in status["exception"]
    assert "broken.png" in done.stdout


def the_other_process(folder: Path) -> int:
    """The process id of rank 1 of the folder's run."""
    first = json.loads((folder / "status.json").read_text())["pid"]
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_text().split("\0")
            ours = words[1:3] == ["-u", "-m"] and str(folder) in words  # torchrun has no -u
            if ours and int(place.name) != first:
                return int(place.name)
    raise LookupError(folder)


@pytest.mark.slow
def test_a_process_that_is_killed_is_how_the_run_ended(tmp_path):
    words = ["debug=tiny", "processes=2", "steps=100000", "log_every=1", f"runs_root={tmp_path}"]
    command = [sys.executable, str(REPOSITORY / "run.py"), *words]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.2)
    folder = run_folder(tmp_path)
    os.kill(the_other_process(folder), signal.SIGKILL)
    output, _ = run.communicate(timeout=120)
    status = json.loads((folder / "status.json").read_text())
    assert run.returncode == 1
    assert (status["kind"], RunFolder(folder).state()) == ("killed", "partial")
    assert "killed, or out of memory?" in output


def test_who_has_ended_is_seen(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert World(0, 2, neighbours=(os.getpid(), ended.pid)).has_lost_process()
    monkeypatch.setattr("onenet.system.distributed.LOST_TRIES", 2)
    assert not World(0, 2, neighbours=(os.getpid(),)).has_lost_process()
    assert not ALONE.has_lost_process()


@pytest.mark.slow
def test_why_a_trained_run_cannot_be_evaluated_is_written_by_the_process_that_saw_it(tmp_path):
    data = tmp_path / "data"
    write_broken_data(data)
    for split in ("train2017", "val2017"):
        shutil.copy(data / split / "whole.png", data / split / "broken.png")
    words = ["debug=tiny", "data=coco", f"data.root={data}", f"runs_root={tmp_path / 'runs'}"]
    words += ["processes=2", "steps=2", "batch=2", "augment.flip=0"]
    command = [sys.executable, str(REPOSITORY / "run.py"), *words]
    assert subprocess.run(command, timeout=300, check=False).returncode == 0
    (data / "val2017" / "broken.png").write_bytes(b"no image")
    again = subprocess.run(
        [*command, "eval.size.short=96"], capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 1
    status = json.loads((run_folder(tmp_path / "runs") / "status.json").read_text())
    assert (status["state"], status["kind"]) == ("done", "done")
    assert "broken.png" in status["evaluation_error"]
    assert "broken.png" in again.stdout


def write_broken_data(root: Path) -> None:
    """Two image files, one of them broken."""
    from PIL import Image

    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(root / split / "whole.png")
        (root / split / "broken.png").write_bytes(b"no image")
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 40, "height": 40}
            for i, name in enumerate(("whole.png", "broken.png"))
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [3, 3, 20, 20]},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _as_one_of_several(folder: Path) -> None:
    """Runs in each process of `torchrun`."""
    world = join()
    torch.set_num_threads(1)
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, float(world.rank))
    world.broadcast_weights(model)
    results = {
        "learnt": {accumulate: learn(world, accumulate) for accumulate in (1, 2)},
        "metrics": predicted_alone(world),
        "shared": world.broadcast(f"from {world.rank}"),
        "gathered": world.gather(world.rank),
        "weight": model.weight.item(),
    }
    torch.save(results, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    _as_one_of_several(Path(sys.argv[1]))
