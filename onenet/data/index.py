"""What was read out of an annotation file, kept as arrays: reading it again takes a moment.

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

FORMAT = 1  # raise it when a change of the reader changes what it gets out of a file
TEXTS = ("category_ids", "category_names", "report")

Content = tuple[Annotations, list[str]]  # with the names of the image files [I]


def indexed(cache: Path | None, file: Path, read: Callable[[], Content]) -> Content:
    """What `read` gets out of the annotation file `file`, from its index in the folder `cache`.

    The index goes by what `file` contains, not by its name. Where there is none that can be used,
    it is written; where it cannot be written, there is none. Raises what `read` raises.
    """
    if cache is None:
        return read()
    path = _index_path(cache, file)
    content = None if path is None else _load(path)
    if content is None:
        content = read()
        if path is not None and path == _index_path(cache, file):  # not changed while it was read
            with contextlib.suppress(OSError):
                write_atomically(path, _pack(*content))
    return content


def _index_path(cache: Path, file: Path) -> Path | None:
    """None where `file` cannot be read: reading it will say so."""
    try:
        return cache / f"annotations-{digest('annotations', str(file))}-v{FORMAT}.npz"
    except UserError:
        return None


def _pack(annotations: Annotations, names: list[str]) -> bytes:
    fields = vars(annotations)
    arrays = {key: value for key, value in fields.items() if isinstance(value, np.ndarray)}
    texts = {key: list(fields[key]) for key in TEXTS} | {"names": names, "arrays": list(arrays)}
    packed = io.BytesIO()
    np.savez(packed, texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8), **arrays)
    return packed.getvalue()


def _load(path: Path) -> Content | None:
    """None where there is no whole index, whatever is wrong with it: nothing depends on it."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as packed:
            texts = json.loads(packed["texts"].tobytes())
            arrays = {key: packed[key] for key in texts.pop("arrays")}
        names = texts.pop("names")
        texts["report"] = tuple(texts["report"])
        return Annotations(**texts, **arrays), names
    except Exception:
        return None
