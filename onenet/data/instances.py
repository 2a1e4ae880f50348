"""The JSON content of COCO's instances_*.json without its masks: boxes are all that is used.

Masks are two thirds of the file.
"""

import gc
import json
import re
from pathlib import Path

from onenet.errors import UserError

# Inside a text every quote is escaped, so that in valid JSON this is a key with lists of numbers.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[\[[-+\d.eE,\s\[\]]*\]\]')


def load_instances(where: str, path: Path, split: str):
    """Whatever the file holds, no value of it checked; no object has a `segmentation`.

    `where` starts the messages. Raises UserError where `path` cannot be read or is not JSON.
    """
    try:
        return _parse(path)
    except FileNotFoundError:
        raise UserError(
            f"{where} does not exist\n"
            f"Name the file: data.{split}.annotations=FILE, or the folder above: data.root=FOLDER"
        ) from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # with line, column and character
        raise UserError(
            f"{where} is not valid JSON: {error}\n"
            "Is it cut off, or packed? Fetch or unpack it again."
        ) from None


def _parse(path: Path):
    collecting = gc.isenabled()
    gc.disable()  # it would walk through the growing content again and again: a third of the time
    try:
        return json.loads(
            POLYGONS.sub(b'"segmentation":0', path.read_bytes()),  # 40 million numbers less
            object_hook=_without_mask,
        )
    except ValueError:  # at another place than in the file
        return json.loads(path.read_bytes(), object_hook=_without_mask)
    finally:
        if collecting:
            gc.enable()


def _without_mask(entry: dict) -> dict:
    entry.pop("segmentation", None)  # a mask of another form, or what was left of it
    return entry
