"""What can happen to the files of a run folder: edits, damage, other people's content.

Run: pytest tests/test_attacks_folders.py
"""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from onenet.config.compose import compose, to_dict, use_folder
from onenet.errors import UserError
from onenet.job.recorder import add_line, cut_back
from onenet.job.repair import repair
from onenet.job.run import work
from onenet.job.snapshots import _add
from onenet.runs.edits import edit
from onenet.runs.folder import RunFolder
from onenet.runs.request import note_rows
from onenet.runs.result import read_result, write_result
from onenet.sweeps import plan, summary
from onenet.sweeps.estimate import Estimates
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY, read_json, write_json
from onenet.training import checkpoint

RECORDS = REPOSITORY / "analysis" / "results" / "records"
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


# --- damaged and foreign files of a finished run ---


def planned(folder: RunFolder, *overrides: str) -> plan.Run:
    words = ["debug=tiny", "tracker=none", "heads=2", "cost=loc_only"]
    (run,) = plan.group(expand([*words, f"runs_root={folder.path.parent}", *overrides]))
    return run


def printed(run: plan.Run) -> str:
    """What `plan=true` and the end of a sweep print of a run."""
    console = Console(record=True, width=200, quiet=False, file=io.StringIO())
    plan.print_plan(console, [run])
    summary.print_failure(console, run, {})
    return console.export_text()


STATUSES = [
    *("", "{", "[]", "3", "null", '"done"', "\0", "[" * 10_000, b"\xff\xfe{}"),
    *('{"state": 3}', '{"state": ["done"]}', '{"state": "finished"}', '{"state": null}'),
    *('{"state": "done", "rows": 3}', '{"state": "done", "rows": {"table1": 3}}'),
    *('{"state": "done", "saved_step": "x"}', '{"state": "done", "saved_step": NaN}'),
    *('{"state": "done", "resumes": 1e999}', '{"state": "done", "id": 3}'),
    *('{"state": "done", "exception": 5}', '{"state": "done", "evaluation_error": ["x"]}'),
    *('{"state": "done", "kind": "well"}', '{"state": "done", "tracker": {"project": 3}}'),
    *('{"state": "done", "pid": "1", "host": 1}', '{"state": "done", "steps": true}'),
]


@pytest.mark.parametrize("content", STATUSES, ids=lambda text: str(text)[:40])
def test_a_finished_run_stays_finished_whatever_is_in_status_json(folder, content):
    content = content if isinstance(content, bytes) else content.encode()
    (folder.path / "status.json").write_bytes(content)
    assert "1 run: 1 done" in printed(planned(folder))
    assert folder.id == "0800872d41"
    assert folder.kind() in (None, "done")
    note_rows(folder, {"table1": "loc"})
    assert folder.status()["rows"] == {"table1": "loc"}
    assert folder.state() == "done"


RESULTS = [
    *("", "{", "[]", "3", "null", "[" * 10_000, b"\xff\xfe{}", '{"metrics": 3}'),
    *('{"metrics": {"AP": "40"}}', '{"metrics": {"AP": NaN}}', '{"metrics": {"AP": [1]}}'),
    *('{"metrics": {}, "timing": {"finished": "x"}}', '{"metrics": {}, "config": []}'),
    *('{"metrics": {}, "digest": "0123456789abcdef"}', '{"id": 3}', '{"timing": []}'),
]


@pytest.mark.parametrize("content", RESULTS, ids=lambda text: str(text)[:40])
def test_a_damaged_result_is_restored_from_its_copy(folder, content):
    content = content if isinstance(content, bytes) else content.encode()
    spec, before = planned(folder).specs[0].evaluation, folder.result()
    for file in (folder.result_file, folder.evaluation(spec) / "result.json"):
        file.write_bytes(content)
        assert "1 run: 1 partial" in printed(planned(folder))
        repair(folder, "0800872d41", spec)
        assert folder.result() == folder.result(spec) == before
        assert "1 run: 1 done" in printed(planned(folder))


@pytest.mark.parametrize("key", ["id", "metrics", "timing", "choices", "env", "recipe"])
def test_a_result_that_was_changed_is_noticed(folder, key):
    write_result(folder.result_file, folder.result())
    text = folder.result_file.read_text()
    values = json.loads(text)
    assert folder.result() == values
    inner = values[key]
    if isinstance(inner, dict):
        inner[next(iter(inner))] = 7
    values[key] = inner if isinstance(inner, dict) else 7
    folder.result_file.write_text(json.dumps(values))
    assert folder.result() == {}


def test_every_committed_record_is_valid():
    files = [*RECORDS.glob("*/result.json"), *RECORDS.glob("*/evaluations/*/result.json")]
    assert len(files) > 200
    assert [file for file in files if read_result(file) != read_json(file)] == []


LINES = ["not json", '{"step": 2, "lo', "[]", "3", '{"loss": 1.0}', '{"step": "2"}', "\0\0", "é"]
LINES += [
    '{"step": 2, "loss": "low"}',
    '{"step": -1}',
    '{"step": 2.5}',
    '{"step": NaN}',
    "{" * 99,
]


@pytest.mark.parametrize("torn", LINES, ids=lambda text: text[:20])
def test_a_torn_line_costs_that_line_only(folder, torn):
    lines = folder.metrics()
    texts = folder.metrics_file.read_text().splitlines()
    middle = len(texts) // 2
    content = "\n".join([*texts[:middle], torn, *texts[middle:], torn])
    folder.metrics_file.write_bytes(content.encode("latin-1"))
    assert folder.metrics() == lines
    assert folder.last_metrics() == lines[-1]
    add_line(folder, {"step": 9, "evaluation": "e"}, {"AP": 1.0})
    add_line(folder, {"step": 9, "evaluation": "e"}, {"AP": 1.0})  # as after a kill
    assert folder.metrics() == [*lines, {"step": 9, "evaluation": "e", "AP": 1.0}]
    cut_back(folder, 9)
    assert len(folder.metrics_file.read_text().splitlines()) == len(lines) + 1


def test_a_line_with_another_number_is_left_out(folder):
    lines = folder.metrics()
    cut_back(folder, lines[-1]["step"])  # writes all lines again, with checksums
    text = folder.metrics_file.read_text()
    number = repr(lines[0]["loss"])
    folder.metrics_file.write_text(text.replace(number, f"1{number}", 1))
    assert folder.metrics() == lines[1:]


CONFIGS = [
    ("", "no keys"),
    ("seed: [", "while parsing"),
    ("seed: !!python/object/apply:os.system [touch FILE]", "could not determine a constructor"),
    ("!!python/object:onenet.runs.folder.RunFolder {path: x}", "could not determine a construct"),
    (b"\xff\xfe", "codec can't decode"),
    ("\0", "special characters are not allowed"),
    ("[]", "no keys"),
    ("preset: proxy", "no key"),
    ("[" * 500, "recursion"),
    ("a: &a [*a]", "no key"),
]


@pytest.mark.parametrize(("content", "why"), CONFIGS, ids=[str(case[0])[:30] for case in CONFIGS])
def test_a_broken_configuration_is_named_and_harms_no_result(folder, content, why, capsys):
    file = folder.path.parent / "executed"
    if isinstance(content, str):
        content = content.replace("FILE", str(file)).encode()
    folder.config_file.write_bytes(content)
    assert "1 run: 1 done" in printed(planned(folder))
    assert why in edit(folder)
    with pytest.raises(UserError, match="Move the folder away") as error:
        folder.config()
    assert len(str(error.value).splitlines()) <= 3
    run = planned(folder, "infer_heads=2")
    assert work(folder, run.request(1), "cpu") == 2
    assert str(folder.config_file) in capsys.readouterr().err
    assert folder.state() == "done"
    assert not file.exists()


# --- checkpoints ---


class Code:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
    return file.getvalue()


@pytest.mark.parametrize("wrap", [bytes, zipped], ids=["pickle", "checkpoint"])
def test_code_in_a_checkpoint_is_not_run(folder, wrap, capsys):
    folder.checkpoint_file.parent.mkdir()
    folder.checkpoint_file.write_bytes(
        wrap(pickle.dumps(Code(folder.path / "executed"), protocol=2))
    )
    assert checkpoint.find(folder, "0800872d41") is None
    message = capsys.readouterr().out
    assert message.startswith(f"skipped {folder.checkpoint_file}: it cannot be read")
    assert len(message.splitlines()) == 1
    assert not (folder.path / "executed").exists()


@pytest.mark.parametrize("state", [[], 3, None, {"id": "x"}, {"id": "0800872d41", "model": {}}])
def test_another_file_of_tensors_is_no_checkpoint(folder, state, capsys):
    folder.checkpoint_file.parent.mkdir()
    torch.save(state, folder.checkpoint_file)
    assert checkpoint.find(folder, "0800872d41") is None
    assert "it is not a checkpoint of a run" in capsys.readouterr().out


def test_a_folder_in_place_of_a_checkpoint_is_named(folder):
    folder.checkpoint_file.mkdir(parents=True)
    with pytest.raises(UserError, match=r"last\.pt is a folder, not a checkpoint: move it away"):
        checkpoint.find(folder, "0800872d41")


# --- other results and snapshots ---


@pytest.mark.parametrize("change", [{"config": {}}, {"timing": {}}, {"config": {"batch": 0}}])
def test_a_result_of_another_run_that_lacks_its_times_gives_no_estimate(folder, change):
    other = folder.path.parent / "other-0123456789"
    write_json(other / "result.json", folder.result() | change)
    assert Estimates(other.parent).seconds(planned(folder).config, 10) is not None
    shutil.rmtree(folder.path)
    assert Estimates(other.parent).seconds(planned(folder).config, 10) is None


@pytest.mark.parametrize("damage", [lambda c: c[:-30], lambda c: b"", lambda c: b"x" * 99])
def test_damaged_snapshots_are_named_and_begun_again(tmp_path, damage, capsys):
    file, arrays = tmp_path / "assignments.npz", {"slot": np.arange(3)}
    _add(file, 1, {"label": np.arange(3)}, arrays)
    file.write_bytes(damage(file.read_bytes()))
    _add(file, 2, {"label": np.arange(3)}, arrays)
    assert f"{file} is damaged" in capsys.readouterr().out
    with np.load(file) as snapshots:
        assert snapshots["steps"].tolist() == [2]


# --- experiments ---

EXPERIMENTS = [
    (b"\xff", "cannot be read"),
    (b"", "missing mandatory value: title"),
    (b"3", "cannot be read"),
    (b"title: t\nquestion: q\nrows: []", "it has no rows"),
    (b"title: t\nquestion: q\nrows: 3", "full_key: rows"),
    (b"title: t\nquestion: q\nrows: [3]", "full_key: rows[0]"),
    (b"title: t\nquestion: q\nrows: [{label: a}]", "missing mandatory value: overrides"),
    (b"title: t\nquestion: q\nrows: [{label: a, overrides: seed=1}]", "full_key: overrides"),
    (b"title: t\nquestion: q\nrows: [{label: a, overrides: [3]}]", "experiment/mine.yaml: LexerNo"),
    (b"title: t\nquestion: q\nrows: [{label: a, overrides: ['heads=(3']}]", "heads=(3"),
    (b"title: t\nquestion: q\nrow: []", "Key 'row' not in"),
    (b"title: t\nrows: [{label: a, overrides: []}]", "question"),
    (b"rows: [", "cannot be read"),
    (b"title: t\nquestion: q\nrows: !!python/name:os.system", "cannot be read"),
]


@pytest.mark.parametrize(
    ("content", "why"), EXPERIMENTS, ids=[case[0].decode("latin-1")[:60] for case in EXPERIMENTS]
)
def test_an_experiment_that_is_none_is_named(tmp_path, content, why):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    use_folder(str(tmp_path))
    try:
        with pytest.raises(UserError) as error:
            expand(["+experiment=mine"])
    finally:
        use_folder(None)
    assert "mine.yaml" in str(error.value)
    assert why in str(error.value)
    assert len(str(error.value).splitlines()) <= 4
