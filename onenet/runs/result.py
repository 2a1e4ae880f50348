"""result.json of an evaluation: its digest shows damage, since any digit is a valid one."""

import hashlib
import json
from pathlib import Path

from onenet.runs.status import is_number
from onenet.system.files import read_json, write_json

# Not in the digest: a committed record has other paths there.
WITH_PATHS = ("overrides", "config")
TYPES = {"id": str, "overrides": list} | dict.fromkeys(
    ("metrics", "metrics_notes", "timing", "config", "choices", "evaluation", "curves", "env"), dict
)


def write_result(file: Path, result: dict) -> None:
    write_json(file, {**result, "digest": _digest(result)})


def read_result(file: Path) -> dict:
    """Returns the result; empty if the file is missing or damaged. Results of earlier commits have
    no digest: of these, only the types are checked."""
    result = read_json(file)
    for name, expected in TYPES.items():
        if not isinstance(result.get(name, expected()), expected):
            return {}
    numbers = [*result.get("metrics", {}).values(), *result.get("timing", {}).values()]
    if not all(value is None or is_number(value) for value in numbers):
        return {}
    if "digest" in result and result["digest"] != _digest(result):
        return {}
    return result and {"metrics": {}, **result}


def _digest(result: dict) -> str:
    """Returns the first 16 hex digits of a SHA-256 of the result."""
    content = {k: v for k, v in result.items() if k not in ("digest", *WITH_PATHS)}
    as_read = json.loads(json.dumps(content))  # JSON has no tuples and no keys that are numbers
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()[:16]
