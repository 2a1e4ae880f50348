"""The W&B mirror: what arrives, and that no failure of W&B harms a run.

pytest tests/test_tracking.py

Real wandb, no network: offline files are read back, and servers are local.
"""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from onenet.config.compose import compose, to_dict
from onenet.runs.folder import RunFolder
from onenet.system.files import REPOSITORY, write_json
from onenet.tracking import tracker
from onenet.tracking.mirror import Mirror, boxes
from onenet.tracking.tracker import mirrored
from onenet.tracking.wandb_run import at_most
from tests.wandb_offline import offline_runs
from tests.wandb_server import refusing_url, serving

KEY = "k" * 40
CONFIG = compose(["debug=tiny", "tracker=wandb", "seed=3"])
METRICS = {"AP": 31.5, "AP_nms": 33.25, "APs": None, "params": 12345}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """An empty home, an empty folder for temporary files, and no key."""
    for name in [n for n in os.environ if n.startswith(("WANDB", "NETRC", "XDG"))]:
        monkeypatch.delenv(name)
    folders = {"HOME": tmp_path / "home", "TMPDIR": tmp_path / "temporary"}
    for name, place in folders.items():
        place.mkdir()
        monkeypatch.setenv(name, str(place))
    return folders


def make_run(path: Path) -> RunFolder:
    """A run's folder as it is just before training."""
    folder = RunFolder(path)
    folder.freeze(to_dict(CONFIG))
    folder.set_status(state="running", id="0123456789")
    return folder


def add_steps(folder: RunFolder, *steps: int) -> None:
    with open(folder.metrics_file, "a") as lines:
        for step in steps:
            lines.write(json.dumps({"step": step, "loss": 1 / step, "lr": 0.1, "wall": 1.5}) + "\n")
    folder.set_status(saved_step=max(steps))


def add_evaluation(folder: RunFolder, name: str, step: int, metrics: dict = METRICS) -> dict:
    with open(folder.metrics_file, "a") as lines:
        numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
        lines.write(json.dumps({"step": step, "evaluation": name, **numbers}) + "\n")
    target = folder.path / "evaluations" / name
    result = {"evaluation": {"short": name}, "metrics": metrics, "timing": {"train_seconds": 7.5}}
    write_json(target / "result.json", result)
    (target / "detections.json.gz").write_bytes(gzip.compress(b"[]"))
    (target / "per_image.npz").write_bytes(b"arrays")
    return result


def add_pictures(folder: RunFolder) -> None:
    pictures = folder.path / "pictures"
    pictures.mkdir()
    entries = []
    for number in (17, 18):
        entry = {"file": f"image_{number}.png", "panel": f"panel_{number}.png"}
        Image.new("RGB", (60, number), (number, 0, 0)).save(pictures / entry["file"])
        Image.new("RGB", (180, 40), (0, number, 0)).save(pictures / entry["panel"])
        entry["ground_truth"] = [[1, 2, 30, 20.4, 1]]
        entry["before_nms"] = [[1, 2, 30, 21, 1, 0.75], [2, 2, 30, 21, 1.0, 0.5]]
        entry["after_nms"] = [[1, 2, 30, 21, 1, 0.75]] if number == 17 else []
        entry["positives"] = [[10, 10, 1]]
        entries.append(entry)
    names = {"0": "ellipse", "1": "triangle"}
    write_json(pictures / "pictures.json", {"categories": names, "images": entries})


def train_and_evaluate(folder: RunFolder) -> None:
    """Writes a job's files from start to end."""
    add_steps(folder, 1, 2)
    time.sleep(2.5)  # the mirror reads while lines are added
    add_steps(folder, 3)
    write_json(folder.result_file, add_evaluation(folder, "e1", 3))
    add_pictures(folder)


def rows(history: list[dict], name: str) -> list[tuple]:
    """(step, value) of the rows with this key."""
    return [(row["train/step"], row[name]) for row in history if name in row]


def run_folder(folder: RunFolder) -> Path:
    return folder.path / "wandb"


# --- offline ---


@pytest.mark.slow
def test_a_run_without_a_key_is_mirrored_whole_and_nothing_lies_elsewhere(tmp_path, places, capsys):
    # The path is too long for a socket: wandb must put it elsewhere and clean up.
    folder = make_run(tmp_path / "runs" / ("long" * 40))
    with mirrored(folder, CONFIG):
        train_and_evaluate(folder)
    assert capsys.readouterr().out == ""
    (run,) = offline_runs(run_folder(folder))
    assert (run.id, run.project, run.name) == ("0123456789", "onenet", folder.path.name)
    assert run.tags == ["proxy", "loc_cls", "predicted", "seed 3"]
    assert (run.group, run.job_type, "rows" in run.config) == ("", "", False)  # in no table
    assert run.config["cost"]["weights"] == {
        "cls": 2.0, "l1": 5.0, "iou": 0.0, "giou": 2.0, "center": 10.0,
    }  # fmt: skip
    assert run.config["steps"] == 6
    assert run.exit_code == 0

    assert rows(run.history, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert rows(run.history, "eval/e1/AP_nms") == [(3, 33.25)]
    assert run.summary["status"] == "done"
    assert {name: run.summary[name] for name in METRICS} == METRICS
    assert run.summary["timing/train_seconds"] == 7.5

    (media,) = (row for row in run.history if "positives" in row)
    assert media["positives"]["captions"] == ["image_17", "image_18"]
    for stage in ("before_nms", "after_nms"):
        overlay = media[f"boxes/{stage}"]
        words = stage.replace("_", " ")
        assert overlay["captions"] == [f"image_17, {words}", f"image_18, {words}"]
        groups = [set(image) for image in overlay["all_boxes"]]
        assert groups == [{"predictions", "ground_truth"}] * 2
        assert (overlay["width"], overlay["height"]) == (60, 18)
    pictures = run_folder(folder).glob("*run-*-*/files/media/**/*.png")
    assert Counter(Image.open(file).size for file in pictures) == {(60, 18): 4, (180, 40): 2}

    files = ["e1/detections.json.gz", "e1/per_image.npz"]
    assert run.artifacts == [("detections-0123456789", files)]

    assert [list(place.rglob("*")) for place in places.values()] == [[], []]
    entries = {entry.name for entry in run_folder(folder).iterdir()}
    assert not entries & {"tmp", "cache"}
    assert {entry.name for entry in folder.path.parent.iterdir()} == {folder.path.name}


@pytest.mark.slow
def test_a_resumed_and_later_evaluated_run_has_each_step_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = make_run(tmp_path / "run")
    with pytest.raises(FloatingPointError), mirrored(folder, CONFIG):  # noqa: PT012
        add_steps(folder, 1, 2, 3, 4)
        raise FloatingPointError("the gradient is not finite")
    with mirrored(folder, CONFIG):  # resumes from step 2
        folder.metrics_file.unlink()
        add_steps(folder, 1, 2, 3, 4, 5, 6)
        write_json(folder.result_file, add_evaluation(folder, "e1", 6))
    with mirrored(folder, CONFIG):
        add_evaluation(folder, "e2", 6, {"AP": 40.0})
    assert capsys.readouterr().out == ""
    lives = offline_runs(run_folder(folder))
    assert [run.exit_code for run in lives] == [1, 0, 0]
    assert [run.summary["status"] for run in lives] == ["failed", "done", "done"]
    assert {run.id for run in lives} == {"0123456789"}
    logged = [row for run in lives for row in run.history]
    assert [step for step, _ in rows(logged, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert rows(logged, "eval/e1/AP") == [(6, 31.5)]
    assert rows(logged, "eval/e2/AP") == [(6, 40.0)]
    assert (lives[2].summary["AP"], lives[2].summary["e2/AP"]) == (31.5, 40.0)
    assert [len(files) for run in lives for _, files in run.artifacts] == [2, 4]

    with serving() as server:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sync = [sys.executable, "-m", "wandb", "sync", *run_folder(folder).glob("offline-run-*")]
        subprocess.run(sync, capture_output=True, check=True, cwd=tmp_path)  # it makes wandb/ there
    assert [step for step, _ in rows(server.history, "train/loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_killed_run_is_marked_failed_and_its_mirror_ends(tmp_path):
    folder = make_run(tmp_path / "run")
    add_steps(folder, 1, 2)
    code = f"""
import os, time
from pathlib import Path
from onenet.config.compose import compose
from onenet.runs.folder import RunFolder
from onenet.tracking.tracker import mirrored
with mirrored(RunFolder(Path({str(folder.path)!r})), compose(["debug=tiny", "tracker=wandb"])):
    if worker := os.fork():  # like a data worker, the child holds the pipe open
        print(worker, flush=True)
    time.sleep(60)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY)
    worker = int(run.stdout.readline())
    try:
        wait_for((run_folder(folder) / "mirrored.json").is_file)
        run.kill()
        run.wait()
        wait_for(lambda: not processes_with(str(folder.path)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    (life,) = offline_runs(run_folder(folder))
    assert life.exit_code == 1
    assert life.summary["status"] == "failed"
    assert [step for step, _ in rows(life.history, "train/loss")] == [1, 2]


def wait_for(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes_with(text: str) -> list[int]:
    """The mirrors of this folder, and their helpers."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if text in command and ("-m\0onenet.tracking.mirror" in command or "wandb-core" in command):
            pids.append(int(process.name))
    return pids


# --- online ---


@pytest.mark.slow
def test_an_online_run_finds_the_login_and_sends_each_row_once(
    tmp_path, places, monkeypatch, capsys
):
    folder = make_run(tmp_path / "run")
    with serving() as server:
        login = f"machine {server.host}\n login user\n password {KEY}\n"
        (places["HOME"] / ".netrc").write_text(login)
        (places["HOME"] / ".netrc").chmod(0o600)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with mirrored(folder, CONFIG):
            train_and_evaluate(folder)
    assert rows(server.history, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert rows(server.history, "eval/e1/AP") == [(3, 31.5)]
    assert {name: server.summary.get(name) for name in METRICS} == METRICS
    assert server.config["seed"]["value"] == 3
    assert server.exit_code == 0
    assert Counter(Path(file).suffix for file in server.files)[".png"] == 6
    # This server rejects artifacts: the rest still arrives, and one line says so.
    (line,) = capsys.readouterr().out.splitlines()
    assert "detections: " in line
    assert "detections" not in json.loads((run_folder(folder) / "mirrored.json").read_text())


@pytest.mark.slow
def test_a_bad_server_delays_a_run_by_seconds_and_loses_nothing(tmp_path, monkeypatch, capsys):
    """All at once, since each mostly waits."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started, delays = threading.Barrier(4), {}

    def run(name: str) -> None:
        folder = make_run(tmp_path / name)
        with mirrored(folder, CONFIG):
            started.wait()
            add_steps(folder, 1)
            if name == "lost":  # the server hangs mid-run
                wait_for((run_folder(folder) / "mirrored.json").is_file)
                server.behaviour = "hangs"
            time.sleep(15)  # a shorter run may lose its mirror, which takes seconds to start
            add_steps(folder, 2)
            add_evaluation(folder, "e1", 2)
            end = time.monotonic()
        delays[name] = time.monotonic() - end

    with serving("fails") as fails, serving("hangs") as hangs, serving() as server:
        urls = {"refuses": refusing_url(), "fails": fails.url, "hangs": hangs.url}
        urls["lost"] = server.url
        threads = {}
        for name, url in urls.items():
            monkeypatch.setenv("WANDB_BASE_URL", url)
            threads[name] = threading.Thread(target=run, args=(name,))
            threads[name].start()
            wait_for(lambda name=name: processes_with(str(tmp_path / name)))
        for thread in threads.values():
            thread.join()
    assert max(delays.values()) < 15, delays
    assert len(capsys.readouterr().out.splitlines()) == 4
    for name in urls:
        (life,) = offline_runs(tmp_path / name / "wandb")
        assert [step for step, _ in rows(life.history, "train/loss")] == [1, 2], name


# --- without W&B ---


def test_without_wandb_a_run_goes_on_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb on this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = make_run(tmp_path / "run")
    with mirrored(folder, CONFIG):
        add_steps(folder, 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert "no wandb on this machine" in line
    assert str(folder.path) in line


def test_a_mirror_that_cannot_be_started_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    folder = make_run(tmp_path / "run")
    with mirrored(folder, CONFIG):
        pass
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("signal_number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_mirror_that_hangs_or_dies_is_one_line(tmp_path, monkeypatch, capsys, signal_number):
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 0.5)
    folder = make_run(tmp_path / "run")
    with mirrored(folder, CONFIG):
        wait_for(lambda: processes_with(str(folder.path)))
        os.kill(*processes_with(str(folder.path)), signal_number)
    (line,) = capsys.readouterr().out.splitlines()
    (problem,) = json.loads((run_folder(folder) / "mirror.json").read_text())["problems"]
    assert problem in line
    assert not processes_with(str(folder.path))


def test_no_tracker_starts_nothing(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    with mirrored(folder, compose(["debug=tiny"])):
        assert not processes_with(str(folder.path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with mirrored(folder, CONFIG):
        assert not processes_with(str(folder.path))
    assert not run_folder(folder).exists()


@pytest.mark.slow
def test_the_run_itself_never_imports_wandb():
    code = "import sys, onenet.job.run; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


# --- parts ---


class FakeRun:
    id = "0123456789"

    def __init__(self):
        self.history = []

    def define_metric(self, *_, **__):
        pass

    def log(self, row: dict) -> None:
        self.history.append(row)


def test_a_time_limit_leaves_the_alarm_of_others_as_it_was():
    before = signal.getsignal(signal.SIGALRM)
    with at_most(5.0):
        assert signal.getsignal(signal.SIGALRM) != before
    with pytest.raises(TimeoutError, match=r"took more than 0\.01 s"), at_most(0.01):
        time.sleep(5)
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_torn_line_waits_for_its_end(tmp_path):
    folder, run = make_run(tmp_path / "run"), FakeRun()
    mirror = Mirror(folder, run)
    mirror.send_lines()
    add_steps(folder, 1)
    folder.set_status(saved_step=2)
    with open(folder.metrics_file, "a") as lines:
        lines.write('{"step": 2, ')
        lines.flush()
        mirror.send_lines()
        assert [row["train/step"] for row in run.history] == [1]
        lines.write('"loss": 0.5}\n')
    mirror.send_lines()
    assert run.history[1:] == [{"train/step": 2, "train/loss": 0.5}]


def test_lines_cut_back_and_grown_again_between_two_looks_are_not_repeated(tmp_path):
    folder, run = make_run(tmp_path / "run"), FakeRun()
    mirror = Mirror(folder, run)
    add_steps(folder, 1, 2, 3, 4)
    mirror.send_lines()
    cut = folder.path / "cut"
    cut.write_text("".join(folder.metrics_file.read_text().splitlines(keepends=True)[:2]))
    cut.replace(folder.metrics_file)
    add_steps(folder, 3, 4, 5, 6, 7)
    mirror.send_lines()
    assert [row["train/step"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7]


def test_boxes_are_whole_pixels_of_the_image():
    result = boxes([[0.4, 1.6, 30, 20, 1.0, 0.756], [2, 3, 4, 5, 0]], {0: "ellipse", 1: "triangle"})
    assert result["box_data"] == [
        {
            "position": {"minX": 0, "minY": 2, "maxX": 30, "maxY": 20},
            "domain": "pixel",
            "class_id": 1,
            "box_caption": "triangle 0.76",
            "scores": {"score": 0.756},
        },
        {
            "position": {"minX": 2, "minY": 3, "maxX": 4, "maxY": 5},
            "domain": "pixel",
            "class_id": 0,
            "box_caption": "ellipse",
        },
    ]
    assert result["class_labels"] == {0: "ellipse", 1: "triangle"}
