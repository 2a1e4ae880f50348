"""What can happen to the files of a run folder: edits, damage, other people's content.

Run: pytest tests/test_attacks_folders.py
"""

import shutil
from pathlib import Path

import pytest
import yaml

from onenet.config.compose import compose, to_dict
from onenet.runs.edits import edit
from onenet.runs.folder import RunFolder
from onenet.system.files import read_json, write_json

OLD = Path(__file__).parent / "golden" / "run_ae34722"
NAME = "loc_only-predicted-h2-tiny-rigid-s0-0800872d41"


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A finished run of an earlier commit, without its checkpoint."""
    shutil.copytree(OLD, tmp_path / NAME, ignore=lambda *_: ["checkpoint.json"])
    return RunFolder(tmp_path / NAME)


# --- config.yaml edited after the run ---


def change_config(folder: RunFolder, **changes) -> None:
    values = yaml.safe_load(folder.config_file.read_text())
    folder.config_file.write_text(yaml.safe_dump({**values, **changes}))


@pytest.mark.parametrize(
    "changes", [{}, {"workers": 3}, {"runs_root": "/elsewhere"}, {"log_every": 7}], ids=str
)
def test_a_run_that_still_has_its_configuration_is_not_called_edited(folder, changes):
    change_config(folder, **changes)
    assert edit(folder) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seed": 5}, "seed is 5, was 0"),
        ({"heads": 3, "lr": 0.5}, "heads is 3, was 2, lr is 0.5, was "),
        ({"seed": "abc"}, "is not the configuration of a run"),
        ({"size": 3}, "is not the configuration of a run"),
    ],
    ids=str,
)
def test_an_edited_run_is_named_with_what_changed(folder, changes, why):
    change_config(folder, **changes)
    message = edit(folder)
    assert message.startswith(str(folder.config_file))
    assert why in message
    assert len(message.splitlines()) == 1


def test_files_that_moved_or_are_gone_are_no_edit(folder, tmp_path):
    def coco(root: str, limit: int = 9) -> dict:
        overrides = ["data=coco", f"data.root={root}", f"data.limit={limit}"]
        return to_dict(compose([*overrides, "cost=loc_only", "heads=2"]))

    write_json(folder.result_file, read_json(folder.result_file) | {"config": coco("/gone")})
    folder.config_file.write_text(yaml.safe_dump(coco("/elsewhere")))
    assert edit(folder) is None
    folder.config_file.write_text(yaml.safe_dump(coco("/elsewhere", limit=8)))
    assert "data.limit is 8, was 9" in edit(folder)


def test_without_a_configuration_or_a_result_nothing_is_called_edited(folder):
    folder.config_file.unlink()  # as in a committed record
    assert edit(folder) is None
    folder.result_file.unlink()
    assert edit(folder) is None
