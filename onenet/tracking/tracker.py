"""A run's side of Weights & Biases: starts and ends the process that mirrors its files.

`mirrored` starts `python -m onenet.tracking.mirror FOLDER` and finally tells it how the run ended.
Whatever W&B or the network does, it cannot end the run, and delays its end by at most
FINISH_SECONDS.
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

FINISH_SECONDS = 12  # longest wait of a run for its mirror
BUSY, UNANSWERED = 3, 4  # exit statuses of a rebuilding mirror: run is locked, no answer from W&B
MIRROR_SECONDS = 120  # for the work of a rebuilding mirror, beside its waits for W&B


@contextlib.contextmanager
def mirrored(folder: RunFolder, config: Config) -> Iterator[None]:
    """Mirrors the run in the body of `with`, if `tracker` is wandb. Raises nothing itself."""
    enabled = config.tracker.name == "wandb" and os.environ.get("WANDB_MODE") != "disabled"
    mirror, outcome = None, "failed"
    if enabled:
        try:
            mirror = _start(folder)
        except OSError as error:
            print(f"this run is not mirrored to W&B: {error}", flush=True)
    try:
        yield
        outcome = "done"
    except Preempted:
        outcome = "preempted"
        raise
    finally:
        if mirror is not None:
            _finish(mirror, outcome, folder)


def rebuild_mirror(folder: RunFolder, outcome: str, seconds: float) -> tuple[int, str]:
    """Clears the W&B run and sends it again, from the files of a run that has ended.

    `outcome`: how the run ended. `seconds`: longest wait for each slow answer of W&B's server.
    Returns the exit status (0: W&B has everything; BUSY; UNANSWERED; 1: other) and the problems.
    """
    try:
        mirror = _start(folder, "--ended", outcome, "--wait", str(seconds))
    except OSError as error:
        return 1, str(error)
    problem = _end(mirror, folder, "", 3 * seconds + MIRROR_SECONDS)
    return mirror.returncode, problem


def _log_file(folder: RunFolder) -> Path:
    return folder.path / "wandb" / "mirror.log"


def verdict_file(folder: RunFolder) -> Path:
    """Returns the file with the last mirror's verdict: {"problems": [...]}, empty on success."""
    return folder.path / "wandb" / "mirror.json"


def write_verdict(folder: RunFolder, problems: list[str]) -> None:
    write_json(verdict_file(folder), {"problems": problems})


def _start(folder: RunFolder, *options: str) -> subprocess.Popen:
    """Starts the mirror's process. Raises OSError."""
    _log_file(folder).parent.mkdir(parents=True, exist_ok=True)
    with open(_log_file(folder), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "onenet.tracking.mirror", str(folder.path.absolute()), *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,  # Ctrl-C goes to the run, which then reports how it ended
        )


def _end(mirror: subprocess.Popen, folder: RunFolder, outcome: str, seconds: float) -> str:
    """Tells the mirror how the run ended, and waits for it. Returns its problems in one line."""
    try:
        mirror.communicate(f"{outcome}\n".encode(), timeout=seconds)
        problem = "it was killed" if mirror.returncode < 0 else ""
    except subprocess.TimeoutExpired:
        _kill(mirror)
        problem = f"stopped after {seconds:g} s"
    except BaseException:  # a second Ctrl-C
        _kill(mirror)
        raise
    if problem:  # the mirror could not report it itself
        with contextlib.suppress(OSError):
            write_verdict(folder, [problem])
        return problem
    return "; ".join(read_json(verdict_file(folder)).get("problems", ["it left no verdict"]))


def _finish(mirror: subprocess.Popen, outcome: str, folder: RunFolder) -> None:
    """Waits for the mirror; prints one line if W&B does not have the whole run."""
    problem = _end(mirror, folder, outcome, FINISH_SECONDS)
    if mirror.returncode != 0:
        print(
            f"W&B does not have the whole run ({problem}). "
            f"Nothing is lost: analysis/sync.py can send it from {folder.path}",
            flush=True,
        )


def _kill(mirror: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(mirror.pid, signal.SIGKILL)  # wandb-core has its own group and exits with it
    mirror.wait()


class EndListener:
    """Listens on the mirror's standard input for the end of the run.

    `outcome` says how the run ended; it stays empty if the run's process was killed. `on_timeout`
    is called with the reason if the mirror has to exit before it has finished.
    """

    def __init__(self, on_timeout: Callable[[str], None]):
        self.outcome, self._on_timeout = "", on_timeout
        self.end = threading.Event()
        pipe = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # so that wandb's processes cannot read it
        threading.Thread(target=self._listen, args=(pipe, os.getppid()), daemon=True).start()

    def _listen(self, pipe: int, parent: int) -> None:
        # The end of the pipe is not enough: the run's data workers keep it open for some seconds.
        while os.getppid() == parent:
            if select.select([pipe], [], [], POLL_SECONDS)[0]:
                self.outcome = os.read(pipe, 64).decode().strip()
                break
        self.end.set()
        time.sleep(FINISH_SECONDS - 1)
        self._on_timeout(f"not finished {FINISH_SECONDS - 1} s after the end of the run")
        os._exit(1)
