"""Atomic writes of files, JSON files, and digests of file contents."""

import errno
import hashlib
import json
import os
import stat
import threading
from functools import cache
from pathlib import Path

from onenet.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]  # the folder of run.py


def write_atomically(path: Path, text: str | bytes) -> None:
    """Writes a file so that readers, even after a crash, see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        with open(temporary, "wb") as file:
            # A lone surrogate becomes \udce9, which is also how JSON escapes it.
            file.write(text.encode(errors="backslashreplace") if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: dict) -> None:
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Returns the object in the file; empty if the file is missing or holds no object."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def digest(key: str, file: str) -> str:
    """Returns the first 16 hex digits of a file's SHA-256. Raises UserError, naming `key`, if the
    file cannot be read."""
    try:
        status = Path(file).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait
            raise OSError(errno.EINVAL, "it is not a file")
        return _digest(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"{key}={file} cannot be read: {error.strerror}\n"
            f"Give the path of the file: {key}=FILE (annotations: relative to data.root)."
        ) from None


@cache
def _digest(file: str, _size: int, _mtime_ns: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
