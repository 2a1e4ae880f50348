"""Faults in real sweeps: what they leave behind, what they report, and how they resume.

Full disks, impossible folders, overflows, processes that are killed or stopped, two sweeps at once.
Every test starts run.py or a job as a user or the sweep would.

Run: pytest tests/test_faults.py           the fast ones
     pytest tests/test_faults.py -m slow   the others, some minutes
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from onenet.config.compose import to_dict
from onenet.job.snapshots import NAME
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request
from onenet.sweeps.experiments import RunSpec, expand
from onenet.system.files import REPOSITORY

JOBS_2 = "hydra.launcher.jobs=2"
JOBS_1 = "hydra.launcher.jobs=1"
TINY = ["debug=tiny", "tracker=none", "save_every=0"]


@contextlib.contextmanager
def running(*words: str, **options) -> Iterator[subprocess.Popen]:
    """run.py in its own process group, which is killed at the end."""
    command = [sys.executable, str(REPOSITORY / "run.py"), *words]
    with started(command, **options) as process:
        yield process


@contextlib.contextmanager
def started(command: list[str], **options) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def ran(*words: str, **options) -> tuple[int, str]:
    """The exit status and output of run.py."""
    with running(*words, **options) as process:
        output = process.communicate(timeout=300)[0]
        return process.returncode, output


@contextlib.contextmanager
def job(spec: RunSpec) -> Iterator[subprocess.Popen]:
    """A run's process, started as by the sweep."""
    config = to_dict(spec.config)
    spec.folder.freeze(config)
    request = Request(spec.id, config, [spec.evaluation], list(spec.overrides)).write(spec.folder)
    folder = str(spec.folder.path)
    with started([sys.executable, "-m", "onenet.job", folder, str(request)]) as process:
        yield process


def until(condition: Callable[[], object], seconds: float = 90) -> float:
    """Waits; returns the seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "timed out"
        time.sleep(0.02)
    return time.monotonic() - start


def step(folder: RunFolder) -> int:
    return folder.last_metrics().get("step", 0)


def reach(goal: int, *folders: RunFolder) -> None:
    until(lambda: all(step(folder) >= goal for folder in folders))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def steps(folder: RunFolder) -> list[int]:
    """The steps of the training lines in metrics.jsonl."""
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    return [line["step"] for line in lines if "evaluation" not in line]


def losses(folder: RunFolder) -> list[float]:
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_whole(spec: RunSpec, resumes: int | None = None) -> None:
    """Done, each step once."""
    assert spec.folder.state() == spec.folder.status()["kind"] == "done"
    assert steps(spec.folder) == list(range(1, spec.config.steps + 1))
    with np.load(spec.folder.assignments_file) as snapshots:
        assert snapshots["steps"].tolist() == [spec.config.steps // 2, spec.config.steps]
    if resumes is not None:
        assert spec.folder.status()["resumes"] == resumes


# --- disks and folders ---


def limit_files(size: int) -> Callable[[], None]:
    """Limits the file size in the child, as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_full_disk_fails_the_run_keeps_its_checkpoint_and_stops_no_other(tmp_path):
    words = ["-m", "neck.channels=64,8", *TINY, "steps=40", f"runs_root={tmp_path}"]
    large, small = expand(words[1:])
    with running(*large.overrides, f"runs_root={tmp_path}") as sweep:
        reach(3, large.folder)
        sweep.terminate()
        assert sweep.wait(60) == 75
    before = large.folder.checkpoint_file.read_bytes()
    saved = large.folder.status()["saved_step"]

    exit_status, output = ran(*words, preexec_fn=limit_files(len(before) * 9 // 10))
    assert exit_status == 1
    assert "File too large" in output
    assert "Traceback" not in output
    assert_whole(small, resumes=0)
    status = large.folder.status()
    assert status["state"] == "failed"
    assert status["exception"].startswith("OSError: [Errno 27] File too large")
    assert "checkpoint.py" in status["traceback"]
    assert large.folder.checkpoint_file.read_bytes() == before
    files = {file.name for file in large.folder.checkpoint_file.parent.iterdir()}
    assert files == {"last.pt", "previous.pt"}

    assert ran(*words)[0] == 0
    assert_whole(large, resumes=2)
    assert large.folder.log_file.read_text().count(f"resumed at step {saved}\n") == 2


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_runs_root_that_cannot_be_is_named_in_three_lines(place, tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    root = file / "x" if place == "file" else Path("/proc/x")
    status, output = ran("-m", "seed=0,1", *TINY, f"runs_root={root}", stdin=subprocess.DEVNULL)
    error = output[output.index("error: ") :]
    assert status == 2
    assert "runs_root=" in error
    assert str(root) in error
    assert len(error.strip().splitlines()) <= 3
    assert "Traceback" not in output


# --- numbers ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["cost=point_assignment", "location=predefined"],
    ],
)
def test_numbers_that_overflow_end_the_run_and_are_named(words, tmp_path):
    words = ["lr=1e30", *words, *TINY, f"runs_root={tmp_path}"]
    exit_status, output = ran(*words)
    assert exit_status == 1
    (spec,) = expand(words)
    status = spec.folder.status()
    failed_at = status["saved_step"] + 1
    assert (status["state"], status["kind"]) == ("failed", "diverged")
    assert "cls" in status["exception"]  # the term
    assert f"step {failed_at}" in status["exception"]
    assert status["exception"] in " ".join(output.split())
    assert steps(spec.folder)[-1] == failed_at - 1
    state = torch.load(spec.folder.checkpoint_file, weights_only=True)
    assert state["progress"]["step"] == failed_at - 1
    assert all(t.isfinite().all() for t in state["model"].values() if t.is_floating_point())


# --- processes that are killed ---


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_at_once_and_the_rerun_goes_on(tmp_path):
    words = [*TINY, "steps=60", "workers=2", f"runs_root={tmp_path}"]
    (spec,) = expand(words)
    with running(*words) as sweep:
        reach(3, spec.folder)
        workers = children(spec.folder.status()["pid"])
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        assert until(lambda: sweep.poll() is not None, 20) < 10
        output = sweep.communicate()[0]
        assert sweep.returncode == 1
    status = spec.folder.status()
    assert (status["state"], status["kind"]) == ("failed", "failed")
    # torch is told by a signal, or notices when it waits for the worker
    problem = rf"DataLoader worker \(pid(\(s\))? {workers[0]}\) (is killed|exited unexpectedly)"
    assert re.search(problem, status["exception"])
    assert re.search(problem, output)
    assert not alive(workers[1])
    assert ran(*words)[0] == 0
    assert_whole(spec, resumes=1)


@pytest.mark.slow
def test_runs_end_when_their_sweep_is_killed_and_the_rerun_gives_the_same(tmp_path):
    words = [
        "-m",
        "seed=0,1",
        *TINY,
        "steps=60",
        "workers=1",
        JOBS_2,
        "hydra.launcher.threads=1",
    ]
    killed = expand([*words[1:], f"runs_root={tmp_path / 'killed'}"])
    folders = [spec.folder for spec in killed]
    with running(*words, f"runs_root={tmp_path / 'killed'}") as sweep:
        reach(3, *folders)
        pids = [folder.status()["pid"] for folder in folders]
        pids += [worker for pid in pids for worker in children(pid)]
        assert len(pids) == 4
        sweep.kill()
        assert until(lambda: not any(map(alive, pids)), 20) < 5
        assert [folder.state() for folder in folders] == ["partial", "partial"]
        assert [folder.status()["state"] for folder in folders] == ["preempted", "preempted"]
    assert ran(*words, f"runs_root={tmp_path / 'killed'}")[0] == 0
    assert ran(*words, f"runs_root={tmp_path / 'straight'}")[0] == 0
    straight = expand([*words[1:], f"runs_root={tmp_path / 'straight'}"])
    for one, other in zip(killed, straight, strict=True):
        assert_whole(one, resumes=1)
        assert losses(one.folder) == losses(other.folder)
        assert one.folder.result()["metrics"]["AP"] == other.folder.result()["metrics"]["AP"]


@pytest.mark.slow
def test_a_run_that_is_killed_takes_no_other_with_it(tmp_path):
    words = ["-m", "seed=0,1", *TINY, "steps=40", JOBS_2, f"runs_root={tmp_path}"]
    killed, other = expand(words[1:])
    with running(*words) as sweep:
        reach(2, killed.folder, other.folder)
        os.kill(killed.folder.status()["pid"], signal.SIGKILL)
        output = sweep.communicate(timeout=120)[0]
        assert sweep.returncode == 1
    assert "ended with -9" in output
    assert "Traceback" not in output
    assert_whole(other, resumes=0)
    assert killed.folder.state() == "partial"
    assert ran(*words)[0] == 0
    assert_whole(killed, resumes=1)
    assert_whole(other, resumes=0)


@pytest.mark.slow
def test_a_run_that_exits_in_the_middle_takes_no_other_with_it(tmp_path):
    """As when a library calls sys.exit instead of raising."""
    words = ["-m", "seed=0,1", *TINY, JOBS_2, f"runs_root={tmp_path / 'runs'}"]
    exits, other = expand(words[1:])
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        f"if {exits.folder.path.name!r} in ' '.join(sys.orig_argv):\n"
        "    import onenet.training.loop\n"
        "    onenet.training.loop.train = lambda *_, **__: sys.exit(7)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    status, output = ran(*words, env={**os.environ, "PYTHONPATH": path})
    assert status == 1
    assert "SystemExit: 7" in output
    assert exits.folder.status()["state"] == "failed"
    assert_whole(other, resumes=0)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_at_its_end_stands_once_in_metrics_jsonl(tmp_path):
    words = [*TINY, f"runs_root={tmp_path}"]
    (spec,) = expand(words)
    assert ran(*words)[0] == 0
    # The state after SIGKILL between metrics.jsonl and result.json.
    spec.folder.set_status(state="running")
    spec.folder.result_file.unlink()
    (spec.folder.evaluation(spec.evaluation) / "result.json").unlink()
    assert spec.folder.state() == "partial"
    assert ran(*words)[0] == 0
    lines = [json.loads(line) for line in spec.folder.metrics_file.read_text().splitlines()]
    evaluations = [(line["step"], line["evaluation"]) for line in lines if "evaluation" in line]
    steps = spec.config.steps
    assert evaluations == [(steps // 2, NAME), (steps, NAME), (steps, spec.evaluation.id)]


# --- stop requests ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "workers"),
    [
        (False, 0),
        (True, 0),
        (True, 2),
    ],
    ids=["the sweep", "its whole group", "with data workers"],
)
def test_a_sweep_that_is_asked_to_stop_saves_its_runs_and_goes_on_later(group, workers, tmp_path):
    how = [
        "save_every=1000",
        f"workers={workers}",
        JOBS_2,
        f"runs_root={tmp_path}",
    ]
    words = ["-m", "seed=0,1", "debug=tiny", "tracker=none", "steps=60", *how]
    specs = expand(words[1:])
    folders = [spec.folder for spec in specs]
    with running(*words) as sweep:
        reach(3, *folders)
        if group:
            os.killpg(sweep.pid, signal.SIGTERM)
        else:
            sweep.terminate()
        output = sweep.communicate(timeout=60)[0]
        assert sweep.returncode == 75
    assert "stopped (SIGTERM): the same command goes on from here" in output
    assert "Traceback" not in output
    for folder in folders:
        status = folder.status()
        assert status["state"] == "preempted"
        assert status["stopped_by"] == "SIGTERM"
        assert status["saved_step"] >= step(folder) >= 3
        assert "Traceback" not in folder.log_file.read_text()
    assert ran(*words)[0] == 0
    for spec in specs:
        assert_whole(spec, resumes=1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["USR1", "USR2"])
def test_a_job_that_is_told_its_machine_goes_away_saves_and_says_so(number, tmp_path):
    (spec,) = expand([*TINY, "steps=1000", "save_every=1000", f"runs_root={tmp_path}"])
    with job(spec) as process:
        reach(2, spec.folder)
        process.send_signal(number)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 75
    status = spec.folder.status()
    assert (status["state"], status["stopped_by"]) == ("preempted", number.name)
    assert status["saved_step"] == step(spec.folder) >= 2
    assert spec.folder.state() == "partial"
    assert "the same command goes on from here" in output


@pytest.mark.slow
def test_a_job_that_is_told_twice_while_it_evaluates_still_says_so(tmp_path):
    """As when SIGTERM reaches the process group and the sweep then forwards it."""
    many = ["steps=2", "data.limit=null", "data.shapes.val_images=600"]
    (spec,) = expand([*TINY, *many, f"runs_root={tmp_path}"])
    with job(spec) as process:
        until(lambda: spec.folder.status().get("saved_step") == 2)
        time.sleep(0.5)
        for _ in range(20):
            process.terminate()
            time.sleep(0.001)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 75, output
    assert spec.folder.status()["state"] == "preempted"
    assert "Traceback" not in output


# --- several sweeps, several failures ---


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(tmp_path):
    words = [
        "-m",
        "seed=0,1,2",
        *TINY,
        "steps=20",
        JOBS_1,
        f"runs_root={tmp_path}",
    ]
    with running(*words) as one, running(*words) as other:
        outputs = [sweep.communicate(timeout=240)[0] for sweep in (one, other)]
        assert {one.returncode, other.returncode} <= {0, 1}
        assert "Traceback" not in "".join(outputs)
    for spec in expand(words[1:]):
        assert_whole(spec, resumes=0)
        assert "Traceback" not in spec.folder.log_file.read_text()


@pytest.mark.slow
def test_one_of_two_sweeps_is_killed_and_the_work_is_not_lost(tmp_path):
    words = [
        "-m",
        "seed=0,1,2",
        *TINY,
        "steps=120",
        JOBS_1,
        f"runs_root={tmp_path}",
    ]
    specs = expand(words[1:])
    with running(*words) as killed, running(*words) as other:
        until(lambda: sum(spec.folder.state() == "running" for spec in specs) == 2)
        reach(2, *[spec.folder for spec in specs if spec.folder.state() == "running"])
        killed.kill()
        output = other.communicate(timeout=240)[0]
        assert other.returncode in (0, 1)
        assert "Traceback" not in output
    assert ran(*words)[0] == 0
    for spec in specs:
        assert_whole(spec)
        assert "Traceback" not in spec.folder.log_file.read_text()
    assert sorted(spec.folder.status()["resumes"] for spec in specs) == [0, 0, 1]


@pytest.mark.slow
def test_after_so_many_failures_the_others_are_not_started_but_listed(tmp_path):
    sweep = ["hydra.launcher.max_failures=1", JOBS_1, "hydra.launcher.threads=1"]
    words = ["-m", "lr=1e30,2e30,3e30", *TINY, *sweep, f"runs_root={tmp_path}"]
    status, output = ran(*words)
    assert status == 1
    assert "Traceback" not in output
    assert "1 failed: the other 2 are not started" in output
    specs = expand(words[1:])
    assert [spec.folder.state() for spec in specs] == ["failed", "missing", "missing"]
    lines = [line for line in output.splitlines() if line.startswith("NOT DONE")]
    assert [spec.folder.path.name in line for spec, line in zip(specs, lines, strict=True)]
    assert "not started" in lines[1]
    assert "not started" in lines[2]
