"""Checkpoints: plain types, atomic writes, fallback from a damaged or foreign checkpoint.

Run: pytest tests/test_checkpoint.py
"""

import os
import resource
import signal

import pytest
import torch

from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.training import checkpoint
from tests.test_loop import Run, assert_equal


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def saved(folder: RunFolder, *steps: int) -> Run:
    """A run with a checkpoint at each of these steps."""
    run = Run()
    for step in steps:
        run.train(until=step)
        save(folder, run)
    return run


def save(folder: RunFolder, run: Run, run_id: str = "some-id") -> None:
    checkpoint.save(folder, run_id, run.model, run.optimizer, run.progress)


def load(folder: RunFolder, run_id: str = "some-id"):
    run, file = Run("seed=1"), checkpoint.find(folder, run_id)
    return run, file and checkpoint.load(file, run.model, run.optimizer, "cpu")


def test_a_checkpoint_holds_tensors_and_plain_types_only(folder):
    run = saved(folder, 2)
    run.progress.bad_images.append("one.jpg: broken")
    save(folder, run)
    state = torch.load(folder.checkpoint_file, weights_only=True)
    assert state["id"] == "some-id"
    assert state["progress"] == vars(run.progress)
    assert_equal(dict(state["model"]), dict(run.model.state_dict()))
    files = sorted(path.name for path in folder.checkpoint_file.parent.iterdir())
    assert files == ["last.pt", "previous.pt"]  # no partial file


def test_a_checkpoint_loads_without_an_optimiser(folder):
    run, other = saved(folder, 2), Run("seed=1")
    assert checkpoint.load_trained(folder, "some-id", other.model, "cpu").step == 2
    assert_equal(other.model.state_dict(), run.model.state_dict())


def test_a_part_of_a_finished_run_can_be_taken(tmp_path):
    folder = RunFolder(tmp_path / "loc_cls-some-id")
    run = saved(folder, 2)
    with pytest.raises(UserError, match="no such finished run"):
        checkpoint.part_of_run(tmp_path, "some-id", "backbone")
    folder.set_status(state="done")
    folder.result_file.write_text('{"id": "some-id"}')
    state = checkpoint.part_of_run(tmp_path, "some-id", "backbone")
    assert_equal(state, dict(run.model.backbone.state_dict()))


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 - b for b in content[middle : middle + 2000])
        + (content[middle + 2000 :])
    )


@pytest.mark.parametrize(
    "damage",
    [torn, flipped, lambda _: b"", lambda _: b"no checkpoint", lambda c: c[:-1]],
    ids=["torn", "flipped", "empty", "text", "short"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_previous_one(folder, damage, capsys):
    saved(folder, 2, 4)
    folder.checkpoint_file.write_bytes(damage(folder.checkpoint_file.read_bytes()))
    run, progress = load(folder)
    assert progress.step == 2
    straight = Run().train(until=2)
    assert_equal(run.model.state_dict(), straight.model.state_dict())
    assert f"skipped {folder.checkpoint_file}" in capsys.readouterr().out


def test_another_runs_checkpoint_is_passed_over_and_named(folder, capsys):
    run = saved(folder, 2)
    save(folder, run, "other-id")
    assert load(folder)[1].step == 2
    assert "belongs to run other-id, not some-id" in capsys.readouterr().out
    torch.save({"weights": torch.zeros(3)}, folder.checkpoint_file)
    assert load(folder)[1].step == 2
    assert "not a checkpoint of a run" in capsys.readouterr().out


def test_without_a_usable_checkpoint_nothing_is_restored(folder):
    assert load(folder)[1] is None
    saved(folder, 1, 2)
    for file in (folder.checkpoint_file, folder.previous_checkpoint_file):
        file.write_bytes(b"damaged")
    run, progress = load(folder)
    assert progress is None
    assert_equal(run.model.state_dict(), Run("seed=1").model.state_dict())
    with pytest.raises(UserError, match="Move its folder away"):
        checkpoint.load_trained(folder, "some-id", run.model, "cpu")


def test_a_full_disk_leaves_the_old_checkpoint_and_no_rest(folder):
    run = saved(folder, 2)
    before = folder.checkpoint_file.read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(folder, run.train(until=3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert folder.checkpoint_file.read_bytes() == before
    assert os.listdir(folder.checkpoint_file.parent) == ["last.pt"]


def test_a_disk_that_does_not_keep_what_was_written_is_noticed(folder, monkeypatch):
    run = saved(folder, 2)
    before = folder.checkpoint_file.read_bytes()
    monkeypatch.setattr(
        checkpoint, "write_atomically", lambda path, content: path.write_bytes(content[:-9])
    )
    with pytest.raises(OSError, match="is the disk damaged"):
        save(folder, run.train(until=3))
    assert folder.checkpoint_file.read_bytes() == before
