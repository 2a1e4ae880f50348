"""A user's own parts, exactly as onenet/README.md shows them.

Run: pytest tests/test_own_parts.py (-m slow: the runs)
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from onenet.config.compose import compose, from_dict, to_dict, use_folder
from onenet.config.validate import problems
from onenet.errors import UserError
from onenet.runs.identity import identifying_values, run_id, slug
from onenet.sweeps import plan
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY

TEXT = (REPOSITORY / "onenet/README.md").read_text().partition("## Parts of your own")[2]
FILES = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
TYPED = re.findall(r"^PYTHONPATH=\. python run\.py (--config-dir \. .+)$", TEXT, re.MULTILINE)
OWN = ["cost=small", "assigner=second", "neck=finest", "detector=warm", "data=dots"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The README's files in a user's folder."""
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    use_folder(str(tmp_path))
    yield tmp_path
    use_folder(None)


def test_the_readme_shows_one_of_each():
    assert len(FILES) == 10
    assert len(TYPED) == 4


@pytest.mark.parametrize("word", OWN)
def test_target_arguments_and_source_are_in_the_id(mine, word):
    config = compose([word])
    parts = {
        k: v
        for k, v in identifying_values(config).items()
        if "_target_" in k or k.endswith("source")
    }
    assert len(parts) == 2
    assert from_dict(to_dict(config)) == config
    assert run_id(from_dict(to_dict(config))) == run_id(config) != run_id(compose([]))
    (part,) = (part for part in config.own_parts().values() if part)
    module = mine / f"{part['_target_'].partition('.')[0]}.py"
    before = run_id(config), slug(config)
    module.write_text(module.read_text() + "\n# another version\n")
    assert run_id(config) != before[0]
    assert slug(config) == before[1]
    (argument,) = (name for name in part if name not in ("_target_", "weight", "reads"))
    now = run_id(config)
    part[argument] += 1
    assert run_id(config) != now


def test_the_name_of_a_part_of_ones_own_is_a_label(mine):
    assert run_id(compose(["assigner=second", "assigner.name=x"])) == run_id(
        compose(["assigner=second"])
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["assigner.name=foo"], "assigner.name=foo: choose one of min_cost, hungarian, or set"),
        (["neck.name=foo"], "neck.name=foo: choose one of fpn"),
        (["data.name=foo"], "data.name=foo: choose one of shapes"),
        (["backbone.name=foo"], "backbone.name=foo: choose one of tiny"),
        (["tracker.name=foo"], "tracker.name=foo: choose one of wandb"),
    ],
)
def test_what_is_not_there_is_named(words, said):
    with pytest.raises(UserError) as caught:
        expand(words)
    assert said in str(caught.value)


@pytest.mark.parametrize("target", ["nowhere.mine.Part", "part"])
def test_a_module_that_is_not_there_is_named(target):
    config = compose([])
    config.assigner.own = {"_target_": target}
    with pytest.raises(UserError, match=f"_target_={target}: there is no module"):
        run_id(config)


def test_a_part_without_a_target_is_named():
    config = compose([])
    config.assigner.own = {"rank": 2}
    assert "assigner.own={'rank': 2}: it needs _target_: module.name." in problems(config)


def test_one_that_cannot_be_imported_is_named_before_anything_starts(mine):
    (mine / "second_assigner.py").write_text("import missing_package\n")
    runs = plan.group(expand(["assigner=second"]))
    with pytest.raises(UserError, match=r"second_assigner\.assign .*No module named 'missing_pa"):
        plan.check_own(runs)
    (mine / "second_assigner.py").write_text("other = 1\n")
    runs = plan.group(expand(["assigner=second"]))
    with pytest.raises(UserError, match=r"has no attribute 'assign'"):
        plan.check_own(runs)


@pytest.mark.slow
@pytest.mark.parametrize("line", TYPED)
def test_the_readmes_commands_run(mine, line):
    runs = mine / "runs"
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "run.py"), *shlex.split(line)]
        + ["debug=tiny", "tracker=none", f"runs_root={runs}"],
        cwd=mine,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    logs = "".join(file.read_text() for file in runs.glob("*/log.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    results = [json.loads(file.read_text()) for file in runs.glob("*/result.json")]
    assert len(results) == (2 if "," in line else 1)
    assert all(result["config"] for result in results)
    assert not list(Path(mine).glob("outputs"))
