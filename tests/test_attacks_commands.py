"""What a stranger may do to a whole command: streams, other people's folders, two sweeps, signals.

Each test starts run.py as a user would. All need `-m slow`.

Run: pytest -m slow tests/test_attacks_commands.py
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onenet.runs.folder import RunFolder
from onenet.sweeps import plan
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY
from tests.test_damage import do

pytestmark = pytest.mark.slow
TINY = ("debug=tiny", "tracker=none")
PATIENCE = 300  # seconds for a command; they take 5 on an idle machine
# Root may read and write everything; without these capabilities it may not.
SETPRIV = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown")
UNPRIVILEGED = SETPRIV if os.geteuid() == 0 else ()


def run(*arguments: str, prefix: tuple = (), **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*prefix, sys.executable, str(REPOSITORY / "run.py"), *TINY, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@contextlib.contextmanager
def started(*overrides: str) -> Iterator[subprocess.Popen]:
    """A sweep that trains; it is killed at the end."""
    command = [sys.executable, str(REPOSITORY / "run.py"), *TINY, *overrides]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        try:
            yield process
        finally:
            process.kill()  # ends its runs, too


def test_a_closed_stdout_and_a_deleted_working_directory(tmp_path):
    command = f"{sys.executable} {REPOSITORY / 'run.py'} {' '.join(TINY)} plan=true"
    closed = f"{command} runs_root={tmp_path} >&-"
    assert subprocess.run(["bash", "-c", closed], check=False).returncode == 0
    deleted = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && {command}"
    done = subprocess.run(["bash", "-c", deleted], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: The working directory no longer exists: cd to another."


def test_a_path_that_is_too_long_is_one_line():
    done = run("plan=true", f"runs_root=/tmp/{'d' * 300}")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "File name too long" in done.stderr


# --- other people's folders ---


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished sweep of two runs, and its overrides."""
    root = tmp_path_factory.mktemp("runs")
    overrides = ["seed=0,1", "steps=2", f"runs_root={root}"]
    for one in plan.group(expand([*TINY, *overrides])):
        do(one)
    return root, overrides


def test_a_finished_sweep_in_a_read_only_root_prints_its_table(two_runs):
    root, overrides = two_runs
    (root / "answer.png").unlink(missing_ok=True)
    try:
        subprocess.run(["chmod", "-R", "a-w", str(root)], check=True)
        done = run(*overrides, prefix=UNPRIVILEGED)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)
    assert done.returncode == 0, done.stderr
    assert "seed=1" in done.stdout
    assert "The picture cannot be written" in done.stdout


def test_an_unreadable_run_is_named_and_the_others_go_on(two_runs):
    root, overrides = two_runs
    folder = next(root.glob("*-s0-*"))
    try:
        folder.chmod(0)
        done = run(*overrides, prefix=UNPRIVILEGED)
        planned = run(*overrides, "plan=true", prefix=UNPRIVILEGED)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 1
    assert f"NOT DONE  {folder.name}: its folder cannot be read" in done.stdout
    assert "seed=1" in done.stdout
    assert planned.returncode == 0
    assert "2 runs: 1 unreadable, 1 done" in planned.stdout
    assert "Traceback" not in done.stderr + planned.stderr


def test_an_unreadable_lock_of_a_finished_run_changes_nothing(two_runs):
    root, overrides = two_runs
    locks = list(root.glob("*/.lock"))
    try:
        for lock in locks:
            lock.chmod(0)
        done = run(*overrides, prefix=UNPRIVILEGED)
    finally:
        for lock in locks:
            lock.chmod(0o644)
    assert done.returncode == 0, done.stdout + done.stderr


# --- two sweeps, signals, W&B ---


def test_the_second_of_two_sweeps_ends_with_the_outcome_of_the_first(two_runs):
    """The test is the first: it holds the lock until the second waits."""
    root, (_, *others) = two_runs
    folder = RunFolder(next(root.glob("*-s0-*")))
    command = [sys.executable, str(REPOSITORY / "run.py"), *TINY, "seed=0", *others]
    with folder.lock():
        folder.set_status(state="running", kind=None)
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = iter(second.stdout.readline, "")
        assert any("waiting for 1 run of another sweep" in line for line in lines)
        folder.set_status(state="done", kind="done")
    rest = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0, rest
    assert "NOT DONE" not in rest
    assert "(defaults)" in rest or "seed=0" in rest


def test_a_suspended_run_does_not_delay_the_end_of_its_sweep(tmp_path):
    overrides = ["steps=10000", f"runs_root={tmp_path}"]
    with started(*overrides) as sweep:
        wait_for_steps(tmp_path, 2)
        (status,) = tmp_path.glob("*/status.json")
        os.kill(json.loads(status.read_text())["pid"], signal.SIGSTOP)
        start = time.monotonic()
        sweep.terminate()
        assert sweep.wait(PATIENCE) == 75
        assert time.monotonic() - start < 30
    assert json.loads(status.read_text())["state"] == "preempted"


def wait_for_steps(root: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for file in root.glob("*/metrics.jsonl"):
            if file.read_text().count("\n") >= count:
                return
        time.sleep(0.1)
    raise AssertionError("the run does not train")


def test_an_unknown_mode_of_wandb_is_named_and_the_record_is_offline(tmp_path):
    pytest.importorskip("wandb")
    overrides = ("steps=2", "tracker=wandb", f"runs_root={tmp_path}")
    done = run(*overrides, WANDB_MODE="sometimes")
    assert done.returncode == 0
    (verdict,) = tmp_path.glob("*/wandb/mirror.json")
    (problem,) = json.loads(verdict.read_text())["problems"]
    assert problem.startswith("WANDB_MODE=sometimes is not one of online, offline, disabled")
    assert list(tmp_path.glob("*/wandb/offline-run-*"))
