"""What a sweep asks of a run."""

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
    """`id`, `config`: of the run that is meant. What does not count in the id (device, workers,
    tracker, ...) may differ from the frozen config: it is what this command asks for."""

    id: str
    config: dict
    evaluations: list[EvalSpec] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    threads: int = 1
    rows: dict[str, str] = field(default_factory=dict)  # experiment: the label of its row

    @staticmethod
    def read(file: Path) -> "Request":
        values = json.loads(file.read_text())
        values["evaluations"] = [EvalSpec(**spec) for spec in values["evaluations"]]
        return Request(**values)

    def write(self, folder: RunFolder) -> Path:
        """For the process that runs it. Two sweeps may ask for different things at a time."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:10]
        file = folder.path / ".requests" / f"{digest}.json"
        write_json(file, asdict(self))
        return file


def all_rows(folder: RunFolder, rows: dict[str, str]) -> dict[str, str]:
    """The rows of tables that the run is, with those it was known to be first."""
    return folder.status().get("rows", {}) | rows


def note_rows(folder: RunFolder, rows: dict[str, str]) -> None:
    """Adds rows to what the folder of a run that is over says it is, if it can be written."""
    if all_rows(folder, rows) == folder.status().get("rows", {}):
        return
    with contextlib.suppress(Locked, OSError), folder.lock():
        folder.set_status(rows=all_rows(folder, rows))
