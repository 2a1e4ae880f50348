"""Requests: what a sweep tells a run's process to do."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import Locked, RunFolder
from onenet.system.files import write_json


@dataclass
class Request:
    """`id` and `config` are those of the run. Keys that do not enter the id (device, workers,
    tracker, ...) have the values of this command, which may differ from the frozen config."""

    id: str
    config: dict
    evaluations: list[EvalSpec] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    threads: int = 1
    rows: dict[str, str] = field(default_factory=dict)  # experiment: the label of its row
    since: float = 0.0  # Unix time: evaluations with an earlier result are repeated

    @staticmethod
    def read(file: Path) -> "Request":
        values = json.loads(file.read_text())
        values["evaluations"] = [EvalSpec(**spec) for spec in values["evaluations"]]
        return Request(**values)

    def write(self, folder: RunFolder) -> Path:
        """Writes the request for the run's process. The name has its digest, because two sweeps may
        have different requests at a time."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:10]
        file = folder.path / ".requests" / f"{digest}.json"
        write_json(file, asdict(self))
        return file


def all_rows(folder: RunFolder, rows: dict[str, str]) -> dict[str, str]:
    """Returns the table rows that the run belongs to: those in its folder, then `rows`."""
    return folder.status().get("rows", {}) | rows


def note_rows(folder: RunFolder, rows: dict[str, str]) -> None:
    """Adds rows to the folder of a finished run, unless the folder is locked or read-only."""
    if all_rows(folder, rows) == folder.status().get("rows", {}):
        return
    with contextlib.suppress(Locked, OSError), folder.lock():
        folder.set_status(rows=all_rows(folder, rows))
