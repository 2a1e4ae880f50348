"""A run's folder: its files, its state, and who may write into it.

The files are the record. Whoever trains holds an exclusive lock on `.lock`, which the operating
system releases when the process ends, however it ends.
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

from onenet.config.upgrade import upgrade
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec
from onenet.system.files import read_json, write_atomically, write_json

LOCK_TRIES = 5  # a tenth of a second apart
LISTED = 5  # names in an error
STATES = ("done", "partial", "running", "failed", "missing")
# How a run ended, `kind` in status.json; null while it runs.
KINDS = ("done", "preempted", "diverged", "out_of_memory", "bad_input", "killed", "failed")
# What earlier commits said of a failed run: the type of its exception.
KINDS_BEFORE = {
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
        """The run's id: what W&B knows it by."""
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
        """What all runs of the root may use again: the indices of annotation files."""
        return self.path.parent / ".cache"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def evaluation(self, spec: EvalSpec) -> Path:
        return self.path / "evaluations" / spec.id

    # --- config ---

    def freeze(self, config: dict) -> None:
        """Writes the resolved config when the run is first asked for, and never again: later edits
        of any YAML change nothing for this run."""
        if self.config_file.is_file():
            return
        try:
            write_atomically(self.config_file, yaml.safe_dump(config, sort_keys=False))
        except OSError as error:
            raise UserError(
                f"The runs root cannot be written: {error}\nChoose another: runs_root=DIR"
            ) from error

    def config(self) -> dict:
        """The frozen config with today's keys, whatever commit wrote it. Raises UserError if it
        cannot be read."""
        try:
            return upgrade(yaml.safe_load(self.config_file.read_text()))
        except (OSError, ValueError, yaml.YAMLError, UserError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.config_file} is not the configuration of a run: {reason}\n"
                "Move the folder away; the same command then makes the run anew."
            ) from error

    # --- state ---

    def status(self) -> dict:
        """What status.json says; empty if it is not there or torn."""
        return read_json(self.path / "status.json")

    def set_status(self, **changes) -> None:
        write_json(self.path / "status.json", {**self.status(), **changes})

    def state(self) -> str:
        """One of STATES. `partial`: preempted, or called running by a process that is gone."""
        claimed = self.status().get("state")
        if claimed == "done" and self.result():  # empty if it is torn: evaluated again
            return "done"
        if claimed is None and not self.checkpoint_file.is_file():
            return "missing"
        if claimed == "running" and self.is_locked():
            return "running"
        return "failed" if claimed == "failed" else "partial"

    def kind(self) -> str | None:
        """How the run ended, one of KINDS; None if it has not. Where nobody has written it, the
        state tells; a run that is called running by a process that is gone was killed."""
        status = self.status()
        if status.get("kind") or status.get("state") is None:
            return status.get("kind")
        if status["state"] == "running":
            return None if self.is_locked() else "killed"
        if status["state"] == "failed":  # by a commit that wrote the exception only
            name = (status.get("exception") or "").partition(":")[0]
            return KINDS_BEFORE.get(name, "failed")
        return status["state"]

    def note_end(self, kind: str) -> None:
        """Writes down how the process that ran it ended, if that has left no word itself. For
        whoever started it."""
        with contextlib.suppress(Locked, OSError), self.lock():
            status = self.status()
            if status.get("state") == "running" and not status.get("kind"):
                self.set_status(kind=kind, ended=time.time())

    def result(self, spec: EvalSpec | None = None) -> dict:
        """result.json of the default evaluation, or of `spec`; empty if there is none."""
        return read_json(self.evaluation(spec) / "result.json" if spec else self.result_file)

    def last_metrics(self) -> dict:
        """The last whole line of metrics.jsonl; empty if there is none."""
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
        """Removes what a killed process left half-written. For who holds the lock."""
        names = (".metrics.jsonl.*", ".result.json.*", ".status.json.*", ".*.npz.*")
        for pattern in (*names, "checkpoints/.*", "evaluations/*/.*", "pictures/.*"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    # --- ownership ---

    def is_locked(self) -> bool:
        if not self._lock_file.is_file():
            return False
        with open(self._lock_file) as file:  # shared: two who only look do not see each other
            return not _try_lock(file, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder. Raises Locked if another process does, for longer than a look takes."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self._lock_file, "a") as file:
            for _ in range(LOCK_TRIES):
                if _try_lock(file, fcntl.LOCK_EX):
                    break
                time.sleep(0.1)
            else:
                raise Locked(self.path)
            _held.add(file)
            try:
                yield
            finally:
                _held.discard(file)

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"


_held: set = set()  # lock files that this process holds


def _let_go() -> None:
    """Forked children, such as data workers, must not hold a lock for longer than its owner."""
    for file in _held:
        os.close(file.fileno())


os.register_at_fork(after_in_child=_let_go)


def _try_lock(file, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def named(root: Path, folders: Sequence[RunFolder], words: Sequence[str]) -> list[RunFolder]:
    """Those of the root's folders that the words name, by id or by name. Raises UserError, with
    what is near."""
    names = {word: folder for folder in folders for word in (folder.id, folder.path.name)}
    for word in words:
        if word not in names:
            near = [name for name in names if word in name]
            near = near or difflib.get_close_matches(word, names) or sorted(names) or ["--runs DIR"]
            listed = ", ".join(near[:LISTED])
            raise UserError(f"There is no run {word} in {root}. Did you mean: {listed}?")
    return list(dict.fromkeys(names[word] for word in words))


class Locked(Exception):
    """Another process is writing into this run's folder."""


def owner() -> dict:
    """Who is running this, for status.json."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
