"""run.py as a Hydra application: each command of onenet/sweeps/README.md, errors, completion.

Run: pytest tests/test_hydra_app.py (-m slow: the lines that start runs)
"""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.sweeps.app import reject_old
from onenet.system.files import REPOSITORY
from tests.test_cli import run_py

README = (REPOSITORY / "onenet/sweeps/README.md").read_text()
TYPED = re.findall(r"^\| `python run\.py (.+?)` \|", README, re.MULTILINE)
OLD = re.findall(r"^\| `(sweep\.[^`]+)` \| `([^`]+)` \|$", README, re.MULTILINE)
STARTS_NOTHING = ("plan=true", "--help", "--hydra-help", "--cfg", "--info", "-sc")
COST = """
name: mine
cls_form: focal
weights: {cls: 1.0, l1: 5.0, iou: 0.0, giou: 2.0, center: 10.0}
alpha: 0.25
gamma: 2.0
l1_format: cxcywh
"""
EXPERIMENT = """
title: Mine
question: Is it?
rows: [{label: a row, overrides: [heads=3]}]
"""


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """An empty working directory next to a user's folder."""
    for name, text in (("cost", COST), ("experiment", EXPERIMENT)):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "mine.yaml").write_text(text)
    (tmp_path / "cwd").mkdir()
    return tmp_path / "cwd"


def arguments_of(line: str, cwd: Path) -> list[str]:
    return shlex.split(line.replace("DIR", str(cwd.parent / "own")))


def test_the_table_is_read():
    assert len(TYPED) > 20
    assert len(OLD) == 5


@pytest.mark.parametrize("line", [x for x in TYPED if any(s in x for s in STARTS_NOTHING)])
def test_a_line_that_starts_nothing(line, elsewhere):
    arguments = arguments_of(line, elsewhere)
    if "plan=true" in arguments:
        arguments.append(f"runs_root={elsewhere.parent / 'runs'}")
    done = run_py(*arguments, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr
    assert list(elsewhere.iterdir()) == []
    assert not (elsewhere.parent / "runs").exists()
    if "plan=true" in arguments and "search_cost" not in line:
        assert re.search(r"^[0-9a-f]{10}  missing ", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("line", [x for x in TYPED if not any(s in x for s in STARTS_NOTHING)])
def test_a_line_that_starts_runs(line, elsewhere):
    runs = elsewhere.parent / "runs"
    arguments = [*arguments_of(line, elsewhere), "debug=tiny", "tracker=none", f"runs_root={runs}"]
    done = run_py(*arguments, cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(runs.glob("*/result.json"))) == (2 if "seed=0,1" in line else 1)
    assert list(elsewhere.iterdir()) == []
    if "sweeper=basic" not in line:
        assert "AP(+NMS)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_run_under_another_launcher_writes_its_checkpoint_when_it_is_stopped(launcher, tmp_path):
    arguments = ["debug=tiny", "tracker=none", "steps=100000", "save_every=1000", "log_every=1"]
    command = [sys.executable, str(REPOSITORY / "run.py"), f"hydra/launcher={launcher}", *arguments]
    sweep = subprocess.Popen([*command, f"runs_root={tmp_path}"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        folders = [RunFolder(file.parent) for file in tmp_path.glob("*/config.yaml")]
        if folders and folders[0].last_metrics().get("step", 0) >= 5:
            break
        time.sleep(0.2)
    (folder,) = folders
    sweep.send_signal(signal.SIGTERM)
    _, output = sweep.communicate(timeout=100)
    status = folder.status()
    assert sweep.returncode == 75, output
    assert (status["state"], status["kind"]) == ("preempted", "preempted")
    assert status["saved_step"] >= 5
    assert not folder.is_locked()


def test_the_help_names_groups_options_and_experiments(elsewhere):
    output = run_py("--help", cwd=elsewhere).stdout
    for text in ("cost: algorithm1,", "table1: Ablation on label", "search_cost: Weights of the"):
        assert text in output


def test_tab_completion_knows_options_and_experiments(elsewhere):
    for key, option in (("cost=", "loc_cls"), ("+experiment=", "table1")):
        line = f"python run.py {key}"
        environment = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        done = run_py("-sc", "query=bash", cwd=elsewhere, **environment)
        assert f"{key}{option}" in done.stdout.split()


WRONG = [  # only the first six run by default
    (["hedas=1"], "Key 'hedas' not in 'Config'"),
    (["+experiment=tabel1"], "Available options in 'experiment': assigners,"),
    (["hydra/launcher=threads"], "Available options in 'hydra/launcher': basic,"),
    (["hydra.launcher.jobs=0", "plan=true"], "hydra.launcher.jobs=0: must be at least 1"),
    (["heads=0", "batch=0"], "heads=0: must be at least 1.\nbatch=0: must be at least 1."),
    (["sweep.jobs=2"], "sweep.jobs is now hydra.launcher.jobs: write hydra.launcher.jobs=2"),
    (["cost=loc_csl"], "Available options in 'cost': algorithm1, box_assignment, cls_only"),
    (["hydra.launcher.job=1"], "hydra.launcher.job"),
    (["hydra.launcher.jobs=x", "plan=true"], "could not be converted to Integer"),
    (["heads=(3"], "heads=(3"),
    (["cost=null"], "cost=null: choose one of algorithm1"),
    (["cost=[loc_cls]"], "cost=[loc_cls]: choose one of algorithm1"),
    (["heads=1,3", "nokey=1"], "Key 'nokey' not in 'Config'"),
    (["--experimental-rerun", "/nowhere"], "/nowhere"),
    (["hydra.mode=RUN"], "run.py always sweeps, even over one run"),
    (["--config-dir", "/nowhere"], "/nowhere"),
    (["+new=1"], "+new=1: keys can be changed, not added"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [*WRONG[:6], *(pytest.param(*case, marks=pytest.mark.slow) for case in WRONG[6:])],
)
def test_wrong_arguments_end_in_a_few_lines(arguments, message, elsewhere):
    runs = elsewhere.parent / "runs"
    done = run_py(*arguments, f"runs_root={runs}", "debug=tiny", "tracker=none", cwd=elsewhere)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 12
    assert "Traceback" not in done.stderr
    assert "Search path" not in done.stderr
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["+experiment=table6", "seed=0", "model.dropout=0.2"], 4),
        (["-m", "detector=sparse_rcnn,centernet", "model.prior=0.02"], 2),
        (["seed=1", "-m", "heads=1,3"], 2),
        (["heads=1,3", "reference=null", "debug=tiny,null"], 4),
        (["hydra/sweeper=basic", "seed=0,1"], 2),
    ],
)
def test_overrides_that_only_some_runs_have_and_flags_in_between(arguments, runs, elsewhere):
    done = run_py(*arguments, f"runs_root='{elsewhere.parent}/a =root'", "plan=true", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " missing " in line]
    assert len(lines) == runs
    assert all("null" not in line for line in lines)
    assert list(elsewhere.iterdir()) == []


def test_a_torn_file_of_the_users_is_named(elsewhere):
    (elsewhere.parent / "own/cost/mine.yaml").write_text("a: [")
    done = run_py("--config-dir", str(elsewhere.parent / "own"), "cost=mine", cwd=elsewhere)
    assert done.returncode == 2
    assert "mine.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_module_parses_and_composes():
    names = ("OverridesParser", "initialize_config_dir", "hydra_compose", "load_configuration")
    files = [*(REPOSITORY / "onenet").rglob("*.py"), *(REPOSITORY / "analysis").rglob("*.py")]
    modules = {
        str(file.relative_to(REPOSITORY))
        for file in [*files, REPOSITORY / "run.py"]
        if any(name in file.read_text() for name in names)
    }
    assert modules == {"onenet/config/compose.py"}


def test_old_keys_are_errors_that_name_the_new_ones():
    for old, new in OLD:
        with pytest.raises(UserError, match=rf"write {re.escape(new.replace('KEY', 'cpus'))}=3"):
            reject_old(f"{old.replace('KEY', 'cpus')}=3")
    for override in ("sweep=1", "sweep.foo=1"):
        with pytest.raises(UserError, match=r"hydra\.launcher"):
            reject_old(override)
    for argument in (
        "hydra.mode=multirun",
        "seed=0",
        "+experiment=table1",
        "hydra.sweep.dir=x",
        "-m",
        "lr=null",
    ):
        reject_old(argument)
