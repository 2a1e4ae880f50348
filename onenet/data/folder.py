"""Checks that the images named in an annotation file are files of the image folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from onenet.errors import UserError


def check_images(
    images: Path,
    annotations: Path,
    split: str,
    names: Sequence[str],
    image_ids: Sequence[int],
    allow_outside: bool,
) -> None:
    """Checks the `names` [I] of the images with these ids in the file `annotations`.

    Raises UserError, naming the keys of `split`, if a name is not in the folder `images` or, unless
    `allow_outside`, leads out of it.
    """
    missing = _missing_names(images, names)
    if missing:
        raise UserError(
            f"data.{split}.images={images} lacks {len(missing)} of the {len(names)} images of "
            f"{annotations}\nThe first: {missing[0]!r}. Add them, or give the folder that "
            f"file_name is relative to: data.{split}.images=FOLDER"
        )
    outside = [] if allow_outside else _outside_names(images, names)
    if outside:
        raise UserError(
            f"data.{split}.annotations={annotations}: image id {image_ids[outside[0]]} has "
            f"file_name {names[outside[0]]!r},\nwhich is not in data.{split}.images={images}\n"
            "Correct it, or allow such names in a data set that you trust: data.allow_outside=true"
        )


def _outside_names(folder: Path, names: Sequence[str]) -> list[int]:
    """Returns the indices of the `names` that lead out of `folder`, by an absolute path or by `..`.

    Symbolic links are the user's own and may lead anywhere.
    """
    indices = [i for i, n in enumerate(names) if os.path.isabs(n) or ".." in n.split("/")]
    root, parents = folder.resolve(), {os.path.dirname(names[i]) for i in indices}
    outside = {p for p in parents if not (folder / p).resolve().is_relative_to(root)}
    return [i for i in indices if os.path.dirname(names[i]) in outside]


def _missing_names(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns the `names` that are not in `folder`. Lists each folder once instead of testing each
    file."""
    names_by_folder: dict[str, set[str]] = {}
    for parent in {os.path.dirname(name) for name in names}:
        try:
            with os.scandir(folder / parent) as entries:
                names_by_folder[parent] = {entry.name for entry in entries}
        except (OSError, ValueError):  # the folder does not exist, or its name is not valid
            names_by_folder[parent] = set()
    return [n for n in names if os.path.basename(n) not in names_by_folder[os.path.dirname(n)]]
