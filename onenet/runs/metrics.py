"""metrics.jsonl: a JSON object per line. A line that a crash has torn costs that line only."""

import json
import os
from pathlib import Path

from onenet.runs.status import is_count, is_number

TAIL = 4096  # bytes that contain the last line


def parse_line(text: str | bytes) -> dict:
    """Returns the line; empty if it is torn, or not one that a run writes."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    is_line = isinstance(line, dict) and is_count(line.get("step"))
    return line if is_line and is_number(line.get("loss", 0)) else {}


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
