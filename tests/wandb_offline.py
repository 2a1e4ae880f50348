"""Reads a run's .wandb file. For tests only: wandb no longer ships a reader.

The file is a LevelDB log: a header of 7 bytes, then blocks of 32 kB with pieces of records, each
with a checksum, a length and a kind (whole, first, middle, last).
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

HEADER = b":W&B"
BLOCK, PIECE_HEADER = 32768, 7
WHOLE, LAST = 1, 4


@dataclass
class OfflineRun:
    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    artifacts: list[tuple[str, list[str]]] = field(default_factory=list)  # name, files
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The runs in a wandb folder, oldest first, online runs included."""
    return [read(file) for file in sorted(folder.glob("*run-*-*/*.wandb"))]


def read(file: Path) -> OfflineRun:
    run = OfflineRun()
    for piece in _records(file.read_bytes()):
        record = Record.FromString(piece)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.project = record.run.run_id, record.run.project
            run.name, run.tags = record.run.display_name, list(record.run.tags)
            run.group, run.job_type = record.run.run_group, record.run.job_type
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "artifact":
            files = [entry.path for entry in record.artifact.manifest.contents]
            run.artifacts.append((record.artifact.name, sorted(files)))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items) -> dict:
    """A media value comes in parts: `nested_key` is the path to each."""
    values = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        target = values
        for name in outer:
            target = target.setdefault(name, {})
        target[last] = json.loads(item.value_json)
    return values


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == HEADER
    position, record = 7, b""
    while position + PIECE_HEADER <= len(content):
        remainder = BLOCK - position % BLOCK
        if remainder < PIECE_HEADER:
            position += remainder
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        if kind == length == 0:  # padding
            position += remainder
            continue
        piece = content[position + PIECE_HEADER :][:length]
        if len(piece) < length:  # truncated by a kill
            return
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        position += PIECE_HEADER + length
        record += piece
        if kind in (WHOLE, LAST):
            yield record
            record = b""
