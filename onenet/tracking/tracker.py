"""Weights & Biases, seen from a run: a mirror of its files that another process makes.

`mirrored` starts `python -m onenet.tracking.mirror FOLDER` and tells it at the end how the run
went. So whatever W&B or the network do, they cannot end a run, and they hold it up at its end by
FINISH_SECONDS at most.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from onenet.config.schema import Config
from onenet.runs.folder import RunFolder
from onenet.system.files import read_json, write_json
from onenet.system.imports import python_path
from onenet.system.signals import Preempted
from onenet.tracking.wandb_run import POLL_SECONDS

FINISH_SECONDS = 12  # a run waits for its mirror no longer
BUSY, UNANSWERED = 3, 4  # what a mirror that should have rebuilt a run exits with
MIRROR_SECONDS = 120  # for what such a mirror does beside waiting for W&B


@contextlib.contextmanager
def mirrored(folder: RunFolder, config: Config) -> Iterator[None]:
    """Has the run that goes on inside mirrored as `tracker` says. Raises nothing of its own."""
    wanted = config.tracker.name == "wandb" and os.environ.get("WANDB_MODE") != "disabled"
    mirror, word = None, "failed"
    if wanted:
        try:
            mirror = _start(folder)
        except OSError as error:
            print(f"no W&B mirror of this run: {error}", flush=True)
    try:
        yield
        word = "done"
    except Preempted:
        word = "preempted"
        raise
    finally:
        if mirror is not None:
            _finish(mirror, word, folder)


def rebuilt(folder: RunFolder, word: str, seconds: float) -> tuple[int, str]:
    """Has the W&B run cleared and made again, from the files of a run that ended with `word`.

    Waits for W&B's server: `seconds` for each thing that takes long. Returns the status (0: all is
    there; BUSY; UNANSWERED) and what went wrong.
    """
    try:
        mirror = _start(folder, "--ended", word, "--wait", str(seconds))
    except OSError as error:
        return 1, str(error)
    problem = _problem(mirror, folder, "", 3 * seconds + MIRROR_SECONDS)
    return mirror.returncode, problem


def _log_file(folder: RunFolder) -> Path:
    return folder.path / "wandb" / "mirror.log"


def verdict_file(folder: RunFolder) -> Path:
    """How the last mirror ended: {"problems": [...]}, none if all is where it should be."""
    return folder.path / "wandb" / "mirror.json"


def leave_verdict(folder: RunFolder, problems: list[str]) -> None:
    write_json(verdict_file(folder), {"problems": problems})


def _start(folder: RunFolder, *words: str) -> subprocess.Popen:
    """The mirror's process. Raises OSError."""
    _log_file(folder).parent.mkdir(parents=True, exist_ok=True)
    with open(_log_file(folder), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "onenet.tracking.mirror", str(folder.path.absolute()), *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,  # Ctrl-C is for the run, which then says how it ended
        )


def _problem(mirror: subprocess.Popen, folder: RunFolder, word: str, seconds: float) -> str:
    """Says the word and waits for the mirror's end. Returns its problems, in a line."""
    try:
        mirror.communicate(f"{word}\n".encode(), timeout=seconds)
        problem = "it was killed" if mirror.returncode < 0 else ""
    except subprocess.TimeoutExpired:
        _kill(mirror)
        problem = f"stopped after {seconds:g} s"
    except BaseException:  # a second Ctrl-C
        _kill(mirror)
        raise
    if problem:  # it could not say so itself
        with contextlib.suppress(OSError):
            leave_verdict(folder, [problem])
        return problem
    return "; ".join(read_json(verdict_file(folder)).get("problems", ["it said nothing"]))


def _finish(mirror: subprocess.Popen, word: str, folder: RunFolder) -> None:
    """Waits for the mirror; prints one line if it is not all that it should be."""
    problem = _problem(mirror, folder, word, FINISH_SECONDS)
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


class Ending:
    """What the mirror hears: how the run ended. A word on standard input, or silence if its process
    was killed. `out_of_time` is called where the mirror has to end in the middle.
    """

    def __init__(self, out_of_time: Callable[[str], None]):
        self.word, self._out_of_time = "", out_of_time
        self.heard = threading.Event()
        pipe = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing that wandb starts reads the pipe
        threading.Thread(target=self._listen, args=(pipe, os.getppid()), daemon=True).start()

    def _listen(self, pipe: int, parent: int) -> None:
        # The pipe alone is not enough: data workers of the run hold it open for some seconds more.
        while os.getppid() == parent:
            if select.select([pipe], [], [], POLL_SECONDS)[0]:
                self.word = os.read(pipe, 64).decode().strip()
                break
        self.heard.set()
        time.sleep(FINISH_SECONDS - 1)
        self._out_of_time(f"out of time {FINISH_SECONDS - 1} s after the end of the run")
        os._exit(1)
