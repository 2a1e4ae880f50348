"""A run's folder: its files, its state, and the lock for writing.

The files are the only record of a run. Its process holds an exclusive lock on `.lock`, which the
operating system releases when the process ends, for whatever reason.
"""

import contextlib
import difflib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf.errors import OmegaConfBaseException

from onenet.config.compose import from_dict
from onenet.config.upgrade import upgrade
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec
from onenet.system.files import read_json, write_atomically, write_json

LOCK_TRIES = 5  # 0.1 s apart
MAX_SUGGESTIONS = 5  # in an error message
STATES = ("done", "partial", "running", "failed", "missing", "unreadable")
# Raised by a config.yaml that is missing, damaged, or not that of a run.
CONFIG_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError),
    *(yaml.YAMLError, OmegaConfBaseException, UserError),
)
# How a run ended: `kind` in status.json, null during the run.
KINDS = ("done", "preempted", "diverged", "out_of_memory", "bad_input", "killed", "failed")
# Earlier commits recorded only the exception of a failed run.
KIND_BY_EXCEPTION = {
    "FloatingPointError": "diverged",
    "OutOfMemoryError": "out_of_memory",
    "MemoryError": "out_of_memory",
    "UserError": "bad_input",
}


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def id(self) -> str:
        """The run's id, also in W&B."""
        return self.status().get("id") or self.path.name.rsplit("-", 1)[-1]

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def assignments_file(self) -> Path:
        return self.path / "assignments.npz"

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.npz"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def previous_checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "previous.pt"

    @property
    def cache(self) -> Path:
        """The cache that all runs of this root share: the indices of annotation files."""
        return self.path.parent / ".cache"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def evaluation(self, spec: EvalSpec) -> Path:
        return self.path / "evaluations" / spec.id

    # --- config ---

    def freeze(self, config: dict) -> None:
        """Writes the resolved config unless the folder has one, so that later edits of YAML files
        do not affect this run."""
        if self.config_file.is_file():
            return
        try:
            write_atomically(self.config_file, yaml.safe_dump(config, sort_keys=False))
        except OSError as error:
            raise UserError(
                f"The runs root is not writable: {error}\nChoose another: runs_root=DIR"
            ) from error

    def config(self) -> dict:
        """Returns the frozen config, upgraded to the current keys. Raises UserError if it is not
        the configuration of a run."""
        try:
            values = upgrade(yaml.safe_load(self.config_file.read_text()))
            from_dict(values)  # checks the types
            return values
        except CONFIG_ERRORS as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.config_file} is not the configuration of a run: {reason}\n"
                "Move the folder away, then repeat the command to start the run afresh."
            ) from error

    # --- state ---

    def status(self) -> dict:
        """Returns the content of status.json; empty if it is missing or damaged."""
        return read_json(self.path / "status.json")

    def set_status(self, **changes) -> None:
        write_json(self.path / "status.json", {**self.status(), **changes})

    def state(self) -> str:
        """Returns one of STATES. `partial`: preempted, or the process died during the run.
        `unreadable`: the folder or a file in it belongs to someone else."""
        try:
            return self._state()
        except PermissionError:
            return "unreadable"

    def _state(self) -> str:
        if not os.access(self.path, os.R_OK | os.X_OK) and self.path.exists():
            return "unreadable"
        state = self.status().get("state")
        if state == "done" and self.result():  # else result.json is damaged: evaluate again
            return "done"
        if state is None and not self.checkpoint_file.is_file():
            return "missing"
        if state == "running" and self.is_locked():
            return "running"
        return "failed" if state == "failed" else "partial"

    def kind(self) -> str | None:
        """Returns how the run ended, one of KINDS, or None if it has not ended.

        If the kind was not recorded, it follows from the state: a run marked running by a process
        that is gone was killed.
        """
        status = self.status()
        if status.get("kind") or status.get("state") is None:
            return status.get("kind")
        if status["state"] == "running":
            return None if self.is_locked() else "killed"
        if status["state"] == "failed":  # by a commit that recorded only the exception
            name = (status.get("exception") or "").partition(":")[0]
            return KIND_BY_EXCEPTION.get(name, "failed")
        return status["state"]

    def note_end(self, kind: str) -> None:
        """Records how the run's process ended, unless the process did so itself. For the process
        that started it."""
        with contextlib.suppress(Locked, OSError), self.lock():
            status = self.status()
            if status.get("state") == "running" and not status.get("kind"):
                self.set_status(kind=kind, ended=time.time())

    def result(self, spec: EvalSpec | None = None, since: float = 0.0) -> dict:
        """Returns result.json of the default evaluation, or of `spec`; empty if there is none, or
        only an earlier one than `since` (Unix time)."""
        result = read_json(self.evaluation(spec) / "result.json" if spec else self.result_file)
        finished = result.get("timing", {}).get("finished", 0.0) if since else 0.0
        return result if finished >= since else {}

    def last_metrics(self) -> dict:
        """Returns the last complete line of metrics.jsonl; empty if there is none."""
        try:
            with open(self.metrics_file, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                for line in reversed(file.read().splitlines()):
                    with contextlib.suppress(json.JSONDecodeError):
                        return json.loads(line)
        except OSError:
            pass
        return {}

    def clean(self) -> None:
        """Removes temporary files left by a killed process. The caller must hold the lock."""
        names = (".metrics.jsonl.*", ".result.json.*", ".status.json.*", ".*.npz.*")
        for pattern in (*names, "checkpoints/.*", "evaluations/*/.*", "pictures/.*"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    # --- ownership ---

    def is_locked(self) -> bool:
        if not self._lock_file.is_file():
            return False
        with open(self._lock_file) as file:  # shared: two readers do not block each other
            return not _try_lock(file, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the lock. Raises Locked if another process holds it, unless only to check it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self._lock_file, "a") as file:
            for _ in range(LOCK_TRIES):
                if _try_lock(file, fcntl.LOCK_EX):
                    break
                time.sleep(0.1)
            else:
                raise Locked(self.path)
            _held_locks.add(file)
            try:
                yield
            finally:
                _held_locks.discard(file)

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"


_held_locks: set = set()  # open lock files of this process


def _close_held_locks() -> None:
    """Keeps forked children, such as data workers, from holding a lock after its owner ends."""
    for file in _held_locks:
        os.close(file.fileno())


os.register_at_fork(after_in_child=_close_held_locks)


def _try_lock(file, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def find_runs(root: Path, folders: Sequence[RunFolder], names: Sequence[str]) -> list[RunFolder]:
    """Returns the folders of `root` with these ids or folder names, without repeats. Raises
    UserError with similar names if there is none."""
    by_name = {name: folder for folder in folders for name in (folder.id, folder.path.name)}
    for name in names:
        if name not in by_name:
            similar = [other for other in by_name if name in other]
            similar = similar or difflib.get_close_matches(name, by_name) or sorted(by_name)
            suggestions = ", ".join((similar or ["--runs DIR"])[:MAX_SUGGESTIONS])
            raise UserError(f"There is no run {name} in {root}. Did you mean: {suggestions}?")
    return list(dict.fromkeys(by_name[name] for name in names))


class Locked(Exception):
    """Another process holds this run's folder."""


def owner() -> dict:
    """Returns this process's id, host and start time for status.json."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
