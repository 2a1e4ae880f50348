"""Weights & Biases, seen from a run: a mirror of its files that another process makes.

`mirrored` starts `python -m onenet.mirror FOLDER` and tells it at the end how the run went. So
whatever W&B or the network do, they cannot end a run, and they hold it up at its end by
FINISH_SECONDS at most.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from onenet.config import REPOSITORY, Config
from onenet.preemption import Preempted
from onenet.runs import RunFolder

FINISH_SECONDS = 12  # a run waits for its mirror no longer


@contextlib.contextmanager
def mirrored(folder: RunFolder, config: Config) -> Iterator[None]:
    """Has the run that goes on inside mirrored as `tracker` says. Raises nothing of its own."""
    wanted = config.tracker.name == "wandb" and os.environ.get("WANDB_MODE") != "disabled"
    mirror = _start(folder) if wanted else None
    word = "failed"
    try:
        yield
        word = "done"
    except Preempted:
        word = "preempted"
        raise
    finally:
        if mirror is not None:
            _finish(mirror, word, folder)


def _log_file(folder: RunFolder) -> Path:
    return folder.path / "wandb" / "mirror.log"


def _start(folder: RunFolder) -> subprocess.Popen | None:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    try:
        _log_file(folder).parent.mkdir(parents=True, exist_ok=True)
        with open(_log_file(folder), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "onenet.mirror", str(folder.path.absolute())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,  # Ctrl-C is for the run, which then says how it ended
            )
    except OSError as error:
        print(f"no W&B mirror of this run: {error}", flush=True)
        return None


def _finish(mirror: subprocess.Popen, word: str, folder: RunFolder) -> None:
    """Says the word and waits; prints one line if the mirror is not all that it should be."""
    try:
        mirror.communicate(f"{word}\n".encode(), timeout=FINISH_SECONDS)
        killed = mirror.returncode < 0
        problem = "it was killed" if killed else _last_line(_log_file(folder))
    except subprocess.TimeoutExpired:
        _kill(mirror)
        problem = f"stopped after {FINISH_SECONDS} s"
    except BaseException:  # a second Ctrl-C
        _kill(mirror)
        raise
    if mirror.returncode != 0:
        print(
            f"W&B lacks this run or a part of it ({problem}). "
            f"Nothing is lost, the record is {folder.path}",
            flush=True,
        )


def _kill(mirror: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(mirror.pid, signal.SIGKILL)  # wandb-core is no member: it ends when it sees this
    mirror.wait()


def _last_line(file: Path) -> str:
    try:
        return file.read_text(errors="replace").split("\n")[-2]
    except (OSError, IndexError):
        return "it said nothing"
