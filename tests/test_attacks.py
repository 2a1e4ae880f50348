"""What a stranger may do to a command: odd overrides, terminals, folders, signals.

Each case has its overrides, what must be said, and the exit status; nothing else may change.

Run: pytest tests/test_attacks.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onenet.config.compose import compose
from onenet.errors import UserError
from onenet.sweeps.experiments import axes_of, expand, specs_of
from onenet.sweeps.search import requested_search
from onenet.system.files import REPOSITORY
from onenet.system.terminal import prepare_streams

TINY = ("debug=tiny", "tracker=none")
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown")


# --- overrides, in process ---

VALUES = [
    *[(f"{key}={value}", key, "finite") for key in ("lr", "schedule") for value in ("nan", "inf")],
    *[(f"size.ratio={value}", "size.ratio", "finite") for value in ("nan", "inf", "-inf")],
    *[(f"cost.weights.{term}=nan", f"cost.weights.{term}", "finite") for term in ("cls", "giou")],
    ("data.shapes.min_side=nan", "data.shapes.min_side", "finite"),
    ("optim.clip=nan", "optim.clip", "finite"),
    ("save_every=nan", "save_every", "finite"),
    ("lr=-1", "lr", "at least 0"),
    *[(f"loss.weights.{term}=-1", f"loss.weights.{term}", "at least") for term in ("cls", "l1")],
    ("loss.alpha=-3", "loss.alpha", "0..1"),
    ("cost.alpha=2", "cost.alpha", "0..1"),
    ("head.prior=0", "head.prior", "1e-06"),
    ("head.prior=1", "head.prior", "0.999"),
    ("seed=99999999999999999999999999", "seed", "must be in"),
    ("seed=-1", "seed", "must be in"),
    ("data.shapes.max_objects=1000000000", "data.shapes.max_objects", "1..1000"),
    ("batch=0", "batch", "at least 1"),
    ("steps=0", "steps", "at least 1"),
    ("workers=-1", "workers", "at least 0"),
    ("heads=0", "heads", "at least 1"),
    ("augment.flip=2", "augment.flip", "0..1"),
    ("size.short=8", "size.short", "at least 32"),
    ("runs_root=", "runs_root", "empty"),
    ("assigner.name=foo", "assigner.name=foo", "min_cost, hungarian"),
    ("backbone.name=foo", "backbone.name=foo", "resnet50"),
    ("data.name=foo", "data.name=foo", "shapes, coco"),
    ("neck.name=foo", "neck.name=foo", "deconv"),
    ("tracker.name=foo", "tracker.name=foo", "wandb, none"),
    ("detector=foo", "detector", "centernet"),
    ("precision=fp8", "precision=fp8", "bf16"),
    ("device=tpu", "device=tpu", "cuda"),
    ("evaluate=never", "evaluate=never", "again"),
    ("eval.backend=coco", "eval.backend=coco", "hotcoco"),
    ("infer_heads=2", "infer_heads=2", "Raise heads"),
    ("lr_scale=0", "lr_scale=0", "above 0"),
    ("accumulate=1000", "batch=", "micro-batch"),
    ("assigner.conflict=null", "assigner.conflict", "choose"),
    ("backbone.weights=resnet50", "backbone.weights", "no file"),
    ("seed=${seed}", "seed", "interpolation"),
    ("seed=${nothing}", "nothing", "not found"),
    ("seed=abc", "seed", "Integer"),
    ("heads=1.5", "heads", "Integer"),
    ("plan=maybe", "plan", "not a valid bool"),
    ("nothing=1", "nothing", "Could not override"),
    ("size=1", "size", "SizeConfig"),
    ("+extra=1", "+extra=1", "keys can be changed"),
    ("~heads", "~heads", "keys can be changed"),
    ("cost=[a]", "cost", "choose one of"),
    ("cost=nothing", "cost/nothing", "Available options"),
]


@pytest.mark.parametrize(("override", "key", "why"), VALUES, ids=[case[0] for case in VALUES])
def test_a_wrong_value_is_named_with_the_way_out(override, key, why):
    with pytest.raises(UserError) as error:
        expand([*TINY, override])
    message = str(error.value)
    assert key in message
    assert why in message
    assert len(message.splitlines()) <= 12


SWEEPS = [
    ("seed=range(0,3,0)", "must not be zero"),
    ("seed=range(0,1000000000)", "more than 10000 values"),
    ("seed=range(3,3)", "no value"),
    ("seed=glob([*])", "seed"),
    ("seed=interval(0,3)", "a sweep needs a list of values"),
    ("cost=glob(nothing*)", "no value"),
    ("+experiment=nothing", "Could not find"),
    ("+experiment=table1,search_cost", "requested alone"),
]


def plan_runs(overrides: list[str]) -> None:
    axes = axes_of(overrides)
    _ = requested_search(axes) or specs_of(axes)


@pytest.mark.parametrize(("override", "why"), SWEEPS, ids=[case[0] for case in SWEEPS])
def test_a_wrong_sweep_is_named(override, why):
    with pytest.raises(UserError) as error:
        plan_runs([*TINY, override])
    assert why in str(error.value)
    assert len(str(error.value).splitlines()) <= 12


@pytest.mark.parametrize("text", ["[/red]", "[bold]", "\x1b[31m", "ééé", "日本"])
def test_labels_are_any_text(text):
    config = compose([*TINY, f'tracker.project="{text}"'])
    assert config.tracker.project == text


# --- terminals ---


def test_closed_and_narrow_streams_take_any_text(tmp_path, monkeypatch):
    file = tmp_path / "out.txt"
    with open(file, "w", encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        monkeypatch.setattr(sys, "stderr", None)
        prepare_streams()
        print("3 × 日")
        print("nothing", file=sys.stderr)
        sys.stderr.close()
    assert file.read_text() == "3 \\xd7 \\u65e5\n"


def run(*arguments: str, prefix: tuple = (), **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*prefix, sys.executable, str(REPOSITORY / "run.py"), *TINY, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


ENVIRONMENTS = [
    {"PYTHONIOENCODING": "ascii"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LOCAL_RANK": "0"},
    {"PYTHONOPTIMIZE": "2"},
    {"COLUMNS": "1", "TERM": "dumb"},
]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: next(iter(e)))
def test_a_run_ends_well_in_an_odd_environment(environment, tmp_path):
    done = run("steps=1", f"runs_root={tmp_path}", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (log,) = tmp_path.glob("*/log.txt")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_closed_stdout_and_a_deleted_working_directory(tmp_path):
    command = f"{sys.executable} {REPOSITORY / 'run.py'} {' '.join(TINY)} plan=true"
    closed = f"{command} runs_root={tmp_path} >&-"
    assert subprocess.run(["bash", "-c", closed], check=False).returncode == 0
    deleted = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && {command}"
    done = subprocess.run(["bash", "-c", deleted], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: The working directory no longer exists: cd to another."


@pytest.mark.slow
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
    assert run(*overrides).returncode == 0
    return root, overrides


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_second_of_two_sweeps_ends_with_the_outcome_of_the_first(tmp_path):
    overrides = ["steps=200", f"runs_root={tmp_path}"]
    command = [sys.executable, str(REPOSITORY / "run.py"), *TINY, *overrides]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
        wait_for_steps(tmp_path, 2)
        second = run(*overrides)
        assert first.wait() == 0
    assert second.returncode == 0, second.stdout
    assert "waiting for 1 run of another sweep" in second.stdout
    assert "NOT DONE" not in second.stdout


@pytest.mark.slow
def test_a_suspended_run_does_not_delay_the_end_of_its_sweep(tmp_path):
    overrides = ["steps=10000", f"runs_root={tmp_path}"]
    command = [sys.executable, str(REPOSITORY / "run.py"), *TINY, *overrides]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sweep:
        wait_for_steps(tmp_path, 2)
        (status,) = tmp_path.glob("*/status.json")
        os.kill(json.loads(status.read_text())["pid"], signal.SIGSTOP)
        start = time.monotonic()
        sweep.terminate()
        assert sweep.wait() == 75
        assert time.monotonic() - start < 30
    assert json.loads(status.read_text())["state"] == "preempted"


def wait_for_steps(root: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for file in root.glob("*/metrics.jsonl"):
            if file.read_text().count("\n") >= count:
                return
        time.sleep(0.1)
    raise AssertionError("the run does not train")


@pytest.mark.slow
def test_an_unknown_mode_of_wandb_is_named_and_the_record_is_offline(tmp_path):
    pytest.importorskip("wandb")
    overrides = ("steps=2", "tracker=wandb", f"runs_root={tmp_path}")
    done = run(*overrides, WANDB_MODE="sometimes")
    assert done.returncode == 0
    (verdict,) = tmp_path.glob("*/wandb/mirror.json")
    (problem,) = json.loads(verdict.read_text())["problems"]
    assert problem.startswith("WANDB_MODE=sometimes is not one of online, offline, disabled")
    assert list(tmp_path.glob("*/wandb/offline-run-*"))
