"""W&B runs, rebuilt from their folders.

pytest tests/test_sync.py
"""

import json
from pathlib import Path

import pytest

from analysis import sync
from onenet.runs.folder import RunFolder
from onenet.system.files import write_json
from onenet.tracking.tracker import BUSY, UNANSWERED, mirrored
from tests.test_tracking import (
    CONFIG,
    KEY,
    METRICS,
    add_evaluation,
    add_pictures,
    add_steps,
    make_run,
    places,  # noqa: F401, an autouse fixture
)
from tests.wandb_offline import offline_runs
from tests.wandb_server import refusing_url, serving

NAME = "ours-0123456789"


def add_old_life(folder: RunFolder, kind: str = "offline-run") -> Path:
    """Adds the W&B run of an earlier mirror, with marks that everything was sent."""
    life = folder.path / "wandb" / f"{kind}-20200101_000000-0123456789"
    life.mkdir(parents=True)
    write_json(folder.path / "wandb" / "mirrored.json", {"steps": {"train": 9}, "pictures": "x"})
    return life


def recorded(folder: RunFolder) -> list[dict]:
    """The rows expected from metrics.jsonl."""
    rows = []
    for line in folder.metrics_file.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            numbers = {k: v for k, v in json.loads(line).items() if k != "crc32"}
            step, evaluation = numbers.pop("step"), numbers.pop("evaluation", None)
            prefix = f"eval/{evaluation}" if evaluation else "train"
            row = {f"{prefix}/{name}": value for name, value in numbers.items()}
            rows.append({**row, "train/step": step})
    return rows


def logged(history: list[dict]) -> list[dict]:
    """W&B's rows, without its own keys and without pictures."""
    rows = [row for row in history if "positives" not in row]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def own_files(folder: RunFolder) -> dict[Path, tuple]:
    return {
        file: (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.path.rglob("*")
        if file.is_file() and "wandb" not in file.relative_to(folder.path).parts
    }


def marks(folder: RunFolder) -> dict:
    return json.loads((folder.path / "wandb" / "mirrored.json").read_text())


def done(folder: RunFolder) -> None:
    write_json(folder.result_file, add_evaluation(folder, "e1", 6))
    folder.set_status(state="done")


# --- with the real wandb ---


@pytest.mark.slow
def test_offline_a_killed_and_resumed_run_is_rebuilt_to_exactly_its_file(tmp_path, capsys):
    folder = make_run(tmp_path / NAME)
    add_old_life(folder)
    add_old_life(folder, "run")
    add_steps(folder, 1, 2, 3, 4)
    folder.set_status(saved_step=2)
    with open(folder.metrics_file, "a") as lines:
        lines.write('{"step": 5, "lo')
    before = own_files(folder)
    assert sync.main(["--runs", str(tmp_path)]) == 0
    assert own_files(folder) == before
    (life,) = offline_runs(folder.path / "wandb")
    assert logged(life.history) == recorded(folder)
    assert (len(life.history), life.exit_code, life.summary["status"]) == (4, 1, "failed")
    assert marks(folder) == {"steps": {"train": 4}}
    (place,) = sync.offline_runs(folder)
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}: rebuilt offline (failed)",
        "1 rebuilt",
        f"To send the offline runs: wandb sync {place}",
    ]

    folder.metrics_file.unlink()
    with mirrored(folder, CONFIG):
        add_steps(folder, 1, 2, 3, 4, 5, 6)
    done(folder)
    lives = offline_runs(folder.path / "wandb")
    rows = [row["train/step"] for life in lives for row in life.history]
    assert rows == [1, 2, 3, 4, 5, 6]

    for _ in range(2):
        assert sync.main(["--runs", str(tmp_path)]) == 0
        (life,) = offline_runs(folder.path / "wandb")
        assert logged(life.history) == recorded(folder)
        assert (len(life.history), life.exit_code) == (7, 0)
        assert {name: life.summary[name] for name in METRICS} == METRICS
        assert [len(files) for _, files in life.artifacts] == [2]


@pytest.mark.slow
def test_online_a_partly_mirrored_run_is_complete_and_goes_on_without_repeats(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_RESUME", "allow")  # the user's, to be ignored
    folder = make_run(tmp_path / NAME)
    rows = {"table2": "lr 5e-5, train 1, infer 1", "table1": "predicted + class"}
    folder.set_status(rows=rows)
    tags = ["proxy", "loc_cls", "predicted", "seed 3", "table2", "table1"]
    with serving(takes_artifacts=True) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with pytest.raises(OSError, match="lost"), mirrored(folder, CONFIG):  # noqa: PT012
            add_steps(folder, 1, 2)
            raise OSError("lost")
        assert (len(server.history), server.exit_code) == (2, 1)
        assert (server.group, server.job_type) == ("table2", rows["table2"])
        assert server.tags == tags
        server.group, server.job_type, server.tags = "", "", []
        old = add_old_life(folder)
        add_steps(folder, 3, 4, 5, 6)
        done(folder)
        add_pictures(folder)
        assert sync.main(["--runs", str(tmp_path)]) == 0
        assert logged(server.history) == recorded(folder)
        assert len(server.history) == 6 + 1 + 1
        assert {name: server.summary.get(name) for name in METRICS} == METRICS
        assert (server.summary["status"], server.exit_code) == ("done", 0)
        assert server.config["seed"]["value"] == 3
        assert (server.name, server.tags) == (NAME, tags)
        assert (server.group, server.job_type) == ("table2", rows["table2"])
        assert server.config["rows"]["value"] == rows
        assert {"e1/detections.json.gz", "e1/per_image.npz"} <= {*server.files}
        assert not old.exists()
        assert capsys.readouterr().out.splitlines() == [f"{NAME}: rebuilt (done)", "1 rebuilt"]
        assert marks(folder)["steps"] == {"train": 6, "eval/e1": 6}

        with mirrored(folder, CONFIG):
            add_evaluation(folder, "e2", 6)
        assert logged(server.history) == recorded(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_server_that_does_not_answer_changes_nothing(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for number in range(3):
        folder = make_run(tmp_path / f"run{number}-0123456789")
        add_steps(folder, 1)
    first = RunFolder(tmp_path / "run0-0123456789")
    old = add_old_life(first)
    before = marks(first)
    with serving("hangs") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url if kind == "hangs" else refusing_url())
        assert sync.main(["--runs", str(tmp_path), "--wait", "1"]) == 1
    message, count = capsys.readouterr().out.splitlines()
    assert message.startswith("run0-0123456789: W&B does not answer, nothing has changed (")
    assert count == "0 rebuilt, 1 failed, 2 not tried"
    assert marks(first) == before
    assert [*old.parent.glob("*run-*")] == [old]


@pytest.mark.slow
def test_what_a_server_refuses_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = make_run(tmp_path / NAME)
    done(folder)
    old = add_old_life(folder)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert sync.main(["--runs", str(tmp_path)]) == 1
    message, count = capsys.readouterr().out.splitlines()
    assert "detections: " in message
    assert "no artifacts here" in message
    assert count == "0 rebuilt, 1 failed"
    assert old.is_dir()
    assert marks(folder) == {"steps": {"eval/e1": 6}}


# --- which runs, in which state ---


@pytest.fixture
def asked(monkeypatch) -> dict[str, str]:
    """The state of each run that would be rebuilt, by folder."""
    states = {}

    def rebuild_mirror(folder: RunFolder, word: str, _seconds: float) -> tuple[int, str]:
        states[folder.path.name] = word
        return 0, ""

    monkeypatch.setattr(sync, "rebuild_mirror", rebuild_mirror)
    return states


def make_runs(root: Path, **states: str) -> dict[str, RunFolder]:
    runs = {}
    for number, (name, state) in enumerate(states.items()):
        runs[name] = make_run(root / f"{name}-00000000{number:02}")
        runs[name].set_status(id=f"00000000{number:02}", state=state)
        if state == "done":
            write_json(runs[name].result_file, {"id": runs[name].id})
    return runs


def test_the_state_says_how_a_run_ended(tmp_path, asked, capsys):
    runs = make_runs(
        tmp_path, a="done", b="failed", c="preempted", d="running", e="running", f="done"
    )
    make_run(tmp_path / "g-0000000006").path.joinpath("status.json").unlink()
    write_json(tmp_path / "h-0000000007" / "config.yaml", {})
    write_json(tmp_path / "h-0000000007" / "status.json", {"state": "failed"})  # refused
    (tmp_path / ".cache").mkdir()
    with runs["e"].lock(), runs["f"].lock():
        assert sync.main(["--runs", str(tmp_path)]) == 0
    assert list(asked.values()) == ["done", "failed", "preempted", "failed"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:] == [
        "e-0000000004: running: skipped",
        "f-0000000005: running: skipped",
        "g-0000000006: not started: skipped",
        "h-0000000007: not started: skipped",
        "4 rebuilt, 4 skipped",
    ]


@pytest.mark.parametrize(
    ("code", "status", "count"),
    [
        (BUSY, 0, "0 rebuilt, 2 skipped"),
        (UNANSWERED, 1, "0 rebuilt, 1 failed, 1 not tried"),
        (1, 1, "0 rebuilt, 2 failed"),
    ],
)
def test_what_comes_back_is_counted(tmp_path, monkeypatch, capsys, code, status, count):
    make_runs(tmp_path, a="done", b="done")
    monkeypatch.setattr(sync, "rebuild_mirror", lambda *_: (code, "why"))
    assert sync.main(["--runs", str(tmp_path)]) == status
    assert capsys.readouterr().out.splitlines()[-1] == count


def test_runs_are_named_by_folder_or_id(tmp_path, asked):
    make_runs(tmp_path, a="done", b="done", c="done")
    assert sync.main(["--runs", str(tmp_path), "0000000002", "a-0000000000", "0000000000"]) == 0
    assert list(asked) == ["c-0000000002", "a-0000000000"]


@pytest.mark.parametrize(
    ("word", "near"),
    [("loc", "loc_cls-0000000000"), ("loc_csl-0000000000", "loc_cls-0000000000"), ("?", "000000")],
)
def test_an_unknown_run_is_an_error_that_names_near_ones(tmp_path, asked, capsys, word, near):
    make_runs(tmp_path, loc_cls="done", other="done")
    assert sync.main(["--runs", str(tmp_path), "0000000001", word]) == 2
    assert f"There is no run {word} in {tmp_path}. Did you mean: {near}" in capsys.readouterr().err
    assert not asked


def test_input_that_cannot_work_is_an_error(tmp_path, asked, monkeypatch, capsys):
    assert sync.main(["--runs", str(tmp_path / "nowhere")]) == 2
    assert sync.main(["--runs", str(tmp_path)]) == 2
    assert sync.main(["--runs", str(tmp_path), "--wait", "0"]) == 2
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert sync.main(["--runs", str(tmp_path)]) == 2
    words = ("not a folder", "No run in", "--wait 0", "WANDB_MODE=disabled")
    for line, word in zip(capsys.readouterr().err.splitlines(), words, strict=True):
        assert word in line


def test_what_is_offline_is_sent_with_one_command(tmp_path):
    runs = make_runs(tmp_path / "my runs", a="done", b="done")
    lives = [add_old_life(folder) for folder in runs.values()]
    root = lives[0].parents[2]
    assert sync.send_command(lives) == f"wandb sync '{root}'/*/wandb/offline-run-*"
    assert sync.send_command(lives[:1]) == f"wandb sync '{lives[0]}'"
