"""metrics.jsonl: a JSON object per line, each with its checksum, since any digit is a valid one. A
line that is torn or changed costs that line only."""

import json
import os
import zlib
from pathlib import Path

from onenet.runs.status import is_count, is_number

TAIL = 4096  # bytes that contain the last line


def format_line(numbers: dict) -> str:
    """Returns the line of these numbers, with its checksum and its end."""
    return json.dumps({**numbers, "crc32": _checksum(numbers)}) + "\n"


def parse_line(text: str | bytes) -> dict:
    """Returns the numbers of a line; empty if it is torn or changed, or not one that a run writes.
    Lines of earlier commits have no checksum."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(line, dict) or not is_count(line.get("step")):
        return {}
    if not is_number(line.get("loss", 0)):
        return {}
    checksum = line.pop("crc32", None)
    return line if checksum in (None, _checksum(line)) else {}


def _checksum(numbers: dict) -> str:
    return f"{zlib.crc32(json.dumps(numbers).encode()):08x}"


def read_lines(file: Path) -> list[dict]:
    """Returns all complete lines; none if there is no such file."""
    try:
        texts = file.read_bytes().split(b"\n")
    except OSError:
        return []
    return [line for text in texts if (line := parse_line(text))]


def last_line(file: Path) -> dict:
    """Returns the last complete line; empty if there is none."""
    try:
        with open(file, "rb") as content:
            content.seek(max(0, content.seek(0, os.SEEK_END) - TAIL))
            texts = content.read().split(b"\n")
    except OSError:
        return {}
    return next((line for text in reversed(texts) if (line := parse_line(text))), {})
