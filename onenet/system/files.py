"""Files that are whole whenever somebody reads them, and digests of what is in them."""

import hashlib
import json
import os
import threading
from functools import cache
from pathlib import Path

from onenet.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]  # the folder of run.py


def write_atomically(path: Path, text: str | bytes) -> None:
    """A reader sees the old content or the new, never a part; so does a reader after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        with open(temporary, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: dict) -> None:
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Empty if there is no such file, or no object in it."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def digest(key: str, file: str) -> str:
    """The first 16 hex digits of the SHA-256 of a file. Raises UserError, naming `key`."""
    try:
        status = Path(file).stat()
        return _digest(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"{key}={file} cannot be read: {error.strerror}\n"
            f"Name the file: {key}=FILE (relative to data.root, if it is annotations)."
        ) from None


@cache
def _digest(file: str, _size: int, _mtime_ns: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
