"""What a detector can be pointed at: files, folders and patterns, or pixels in memory."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from onenet.errors import UserError

SUFFIXES = (*(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"), ".webp")


def find_images(names: Sequence[str | Path], without: Path | None = None) -> list[Path]:
    """Returns the image files that the names stand for, sorted within each name, without repeats.

    A name is a file, a folder (all files in it and its subfolders that end in one of SUFFIXES) or a
    pattern such as `photos/*.jpg`. `without`: a folder to leave out. Raises UserError if a name
    stands for nothing.
    """
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            matches = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
            problem = f"{name} holds no image: no file in it ends in {', '.join(SUFFIXES)}."
        elif path.exists():
            matches, problem = [path], ""
        else:
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            problem = f"There is no file {name}. Give an image, a folder, or a pattern in quotes."
        matches = [f for f in matches if without is None or without not in f.absolute().parents]
        if not matches:
            raise UserError(problem)
        files |= dict.fromkeys(matches)
    return [*files]


def short_names(files: Sequence[Path]) -> Iterator[str]:
    """Yields each file's path relative to the folder that contains all of them."""
    absolute = [os.path.abspath(file) for file in files]
    folder = os.path.commonpath([os.path.dirname(file) for file in absolute])
    return (os.path.relpath(file, folder) for file in absolute)


def to_pixels(image: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """Returns [H, W, 3] uint8 RGB.

    A PIL image is rotated as its EXIF data says. An array is [H, W] grey or [H, W, 3] RGB, a tensor
    [3, H, W] RGB, both uint8. Raises UserError for anything else.
    """
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, Tensor):
        array, shape = image.detach().cpu().numpy(), "[3, H, W]"
        pixels = array.transpose(1, 2, 0) if array.ndim == 3 else array[None, None]
    elif isinstance(image, np.ndarray):
        array, shape = image, "[H, W, 3]"
        pixels = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array
    else:
        raise UserError(
            f"A {type(image).__name__} is not an image: give a path, a PIL image, an array or a "
            "tensor."
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UserError(
            f"An image of shape {list(array.shape)} and type {array.dtype} cannot be used: it must "
            f"be {shape}, RGB, uint8 (0..255)."
        )
    return np.ascontiguousarray(pixels)
