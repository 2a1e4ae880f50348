"""A run's folder: states, lock, atomic writes; and how a sweep divides cores and GPUs.

Run: pytest tests/test_runs.py
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from onenet.config.compose import compose, to_dict
from onenet.errors import UserError
from onenet.job.endings import kind_of
from onenet.job.recorder import cut_back
from onenet.runs.folder import Locked, RunFolder, owner
from onenet.runs.status import KINDS
from onenet.sweeps import local, summary
from onenet.sweeps.experiments import expand
from onenet.sweeps.plan import group
from onenet.system.files import REPOSITORY, write_atomically, write_json
from tests.launchers import launcher_of

JOBS_2 = "hydra.launcher.jobs=2"


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_states_follow_from_the_files_and_the_lock(folder):
    assert folder.state() == "missing"
    config = to_dict(compose(["debug=tiny"]))
    folder.freeze(config)
    assert folder.state() == "missing"
    folder.set_status(state="running")
    assert folder.state() == "partial"
    with folder.lock():
        assert folder.state() == "running"
    assert folder.state() == "partial"
    folder.set_status(state="failed")
    assert folder.state() == "failed"
    folder.set_status(state="done")
    assert folder.state() == "partial"  # done, but without a result
    write_json(folder.result_file, {"id": "x"})
    assert folder.state() == "done"
    folder.result_file.write_text('{"id": "x"')  # torn, so evaluated again
    assert folder.state() == "partial"
    folder.freeze({**config, "seed": 1})
    assert folder.config() == config  # not replaced


def test_how_a_run_ended_is_read_and_only_its_starter_writes_it(folder):
    assert folder.kind() is None
    folder.set_status(state="running", kind=None)
    with folder.lock():
        assert folder.kind() is None  # running
        RunFolder(folder.path).note_end("killed")  # locked elsewhere
        assert folder.status()["kind"] is None
    assert folder.kind() == "killed"
    assert folder.status()["kind"] is None  # reading writes nothing
    folder.note_end("killed")
    assert folder.status()["kind"] == "killed"
    assert folder.state() == "partial"  # the same command resumes it
    folder.set_status(state="failed", kind="diverged")
    folder.note_end("killed")
    assert folder.kind() == "diverged"
    folder.set_status(state="preempted", kind=None)  # as written by earlier commits
    assert folder.kind() == "preempted"
    folder.set_status(state="failed", exception="FloatingPointError: step 3")
    assert folder.kind() == "diverged"
    folder.set_status(exception="OSError: full")
    assert folder.kind() == "failed"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FloatingPointError("the loss"), "diverged"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA"), "out_of_memory"),
        (UserError("a file"), "bad_input"),
        (RuntimeError("FloatingPointError"), "failed"),
    ],
)
def test_the_kind_follows_from_the_type_of_the_error(error, kind):
    assert kind_of(error) == kind
    assert kind in KINDS


def test_a_torn_status_is_no_status(folder):
    folder.set_status(state="done")
    (folder.path / "status.json").write_text('{"state": "do')
    assert folder.status() == {}
    assert folder.state() == "missing"


def test_the_lock_is_exclusive_and_ends_with_its_process(folder):
    code = (
        "import sys, time; from pathlib import Path; from onenet.runs.folder import RunFolder\n"
        f"with RunFolder(Path({str(folder.path)!r})).lock():\n"
        "    print('mine', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(Locked), folder.lock():
            pass
    finally:
        other.kill()
        other.wait()
    with folder.lock():
        pass


def test_an_interrupted_write_leaves_the_old_content(folder, monkeypatch):
    target = folder.path / "result.json"
    write_atomically(target, "old")

    def no_space(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, "new")
    assert target.read_text() == "old"


def test_the_last_whole_line_of_the_metrics_is_found(folder):
    assert folder.last_metrics() == {}
    write_atomically(folder.metrics_file, '{"step": 1}\n{"step": 2}\n{"st')
    assert folder.last_metrics() == {"step": 2}


def test_a_child_that_outlives_the_owner_does_not_hold_the_lock(folder):
    with folder.lock():
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        assert folder.is_locked()
    try:
        deadline = time.monotonic() + 10  # the child releases it once scheduled
        while folder.is_locked():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_metrics_are_cut_back_to_the_checkpoint(folder):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    write_atomically(folder.metrics_file, "\n".join(lines) + '\n{"step": 5, "lo')
    cut_back(folder, 3)
    assert [json.loads(x)["step"] for x in folder.metrics_file.read_text().splitlines()] == [
        1,
        2,
        3,
    ]
    cut_back(folder, 0)
    assert folder.metrics_file.read_text() == ""


def test_cores_are_shared_out(monkeypatch):
    def shared(runs: int, *overrides: str) -> tuple[int, int, int]:
        resources = launcher_of(overrides).resources(compose(overrides), runs)
        assert len(set(resources)) == 1
        assert resources[0].gpus is None
        return len(resources), resources[0].processes, resources[0].threads

    monkeypatch.setattr(local, "count_cores", lambda: 8)
    monkeypatch.setattr(local, "gpus", list)
    assert shared(4) == (4, 1, 2)
    assert shared(1) == (1, 1, 8)
    assert shared(20) == (8, 1, 1)
    assert shared(20, JOBS_2) == (2, 1, 4)
    assert shared(20, "hydra.launcher.threads=4") == (2, 1, 4)
    assert shared(20, "processes=2") == (4, 2, 1)
    assert shared(1, "processes=2") == (1, 2, 4)
    assert shared(2, "processes=null") == (2, 1, 4)
    assert shared(1, "processes=null", "batch=2", "accumulate=2") == (1, 1, 8)
    assert shared(3, "processes=16", "batch=16") == (1, 16, 1)


def test_every_run_has_gpus_of_its_own_while_there_are_any(monkeypatch):
    def shared(runs: int, *overrides: str) -> list[tuple[str, ...] | None]:
        return [run.gpus for run in launcher_of(overrides).resources(compose(overrides), runs)]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,GPU-3")
    assert shared(9) == [("0",), ("1",), ("2",), ("GPU-3",)]
    assert shared(2) == [("0",), ("1",)]
    assert shared(9, "processes=2") == [("0", "1"), ("2", "GPU-3")]
    assert shared(9, "processes=null") == [("0", "1", "2", "GPU-3")]
    assert shared(9, "processes=3", JOBS_2) == [
        ("0", "1", "2"),
        ("GPU-3", "0", "1"),
    ]
    assert shared(9, "processes=null", "batch=2") == [("0", "1"), ("2", "GPU-3")]
    with pytest.raises(UserError, match="processes=5, but there are 4 GPUs"):
        shared(1, "processes=5")
    assert shared(1, "device=cpu") == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(local, "NVIDIA", Path("/nowhere"))
    monkeypatch.setattr(local.shutil, "which", lambda _: None)
    assert local.gpus() == []
    monkeypatch.setattr(local.shutil, "which", lambda name: name)
    listing = subprocess.CompletedProcess([], 0, "GPU 0: One (UUID: a)\nGPU 1: One (UUID: b)\n")
    monkeypatch.setattr(local.subprocess, "run", lambda *_, **__: listing)
    assert local.gpus() == ["0", "1"]


def test_labels_say_what_tells_runs_apart():
    def labels(*words: str) -> list[str]:
        return list(summary.row_labels(expand(list(words))).values())

    assert labels("cost=loc_only,loc_cls", "seed=3") == ["cost=loc_only", "cost=loc_cls"]
    assert labels() == ["(defaults)"]
    assert labels("seed=3") == ["seed=3"]
    one_seed = labels("+experiment=table1", "seed=0", "location=predicted")
    assert one_seed == ["predicted", "predicted + class"]
    kinds = labels("+experiment=table1", "seed=0", "data.shapes.kind=rigid,parts")
    assert kinds[:2] == ["predefined, data.shapes.kind=rigid", "predefined, data.shapes.kind=parts"]


def test_an_owner_names_process_host_and_time():
    description = owner()
    assert description["pid"] == os.getpid()
    assert description["host"]
    assert abs(description["started"] - time.time()) < 5


# --- evaluating again ---


def test_an_earlier_result_does_not_count_when_evaluating_again(tmp_path):
    (spec,) = expand([f"runs_root={tmp_path}"])
    result = {"metrics": {"AP": 1.0}, "timing": {"finished": 1000.0}}
    write_json(spec.folder.evaluation(spec.evaluation) / "result.json", result)
    assert spec.folder.result(spec.evaluation) == result
    assert spec.folder.result(spec.evaluation, since=1000.0) == result
    assert spec.folder.result(spec.evaluation, since=1000.5) == {}
    write_json(spec.folder.result_file, result)
    spec.folder.set_status(state="done", kind="done")
    once, again = ([spec], expand([f"runs_root={tmp_path}", "evaluate=again"]))
    assert [group(specs)[0].state() for specs in (once, again)] == ["done", "partial"]
    assert group(again)[0].missing_evaluations() == [spec.evaluation]
    assert group(again)[0].request(1).since == pytest.approx(time.time(), abs=60)
    assert group(once)[0].request(1).since == 0
    assert again[0].id == spec.id
    assert "evaluate=again" not in again[0].overrides
