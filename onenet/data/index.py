"""A cache of parsed annotation files: arrays that load much faster than the JSON.

I images.
"""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onenet.data.annotations import Annotations
from onenet.errors import UserError
from onenet.system.files import digest, write_atomically

FORMAT = 2  # raise it when the reader changes and gets other values out of a file
TEXTS = ("category_ids", "category_names", "report")

Content = tuple[Annotations, list[str]]  # and the names of the image files [I]


def read_with_index(cache: Path | None, file: Path, read: Callable[[], Content]) -> Content:
    """Returns what `read` gets out of the annotation file `file`, from its index in `cache`.

    The index is keyed by the content of `file`, not by its name. If there is no usable index, calls
    `read` and writes one; a failure to write is ignored. Raises what `read` raises.
    """
    if cache is None:
        return read()
    path = _index_path(cache, file)
    content = None if path is None else _load(path)
    if content is None:
        content = read()
        if path is not None and path == _index_path(cache, file):  # unchanged during the read
            with contextlib.suppress(OSError):
                write_atomically(path, _pack(*content))
    return content


def _index_path(cache: Path, file: Path) -> Path | None:
    """Returns None if `file` cannot be read; the reader then reports that."""
    try:
        return cache / f"annotations-{digest('annotations', str(file))}-v{FORMAT}.npz"
    except UserError:
        return None


def _pack(annotations: Annotations, names: list[str]) -> bytes:
    fields = vars(annotations)
    arrays = {key: value for key, value in fields.items() if isinstance(value, np.ndarray)}
    texts = {key: list(fields[key]) for key in TEXTS} | {"names": names, "arrays": list(arrays)}
    buffer = io.BytesIO()
    np.savez(buffer, texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8), **arrays)
    return buffer.getvalue()


def _load(path: Path) -> Content | None:
    """Returns None if the index is missing or damaged in any way: it can always be rebuilt."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            texts = json.loads(archive["texts"].tobytes())
            arrays = {key: archive[key] for key in texts.pop("arrays")}
        names = texts.pop("names")
        texts["report"] = tuple(texts["report"])
        return Annotations(**texts, **arrays), names
    except Exception:
        return None
