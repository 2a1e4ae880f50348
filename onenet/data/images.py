"""Where the pixels of a data set come from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg

from onenet.data.annotations import Annotations
from onenet.data.shapes import ShapesConfig, draw_scene, scene_of

NAME_CODE = ("utf-8", "surrogatepass")  # takes every text


class BadImage(Exception):
    """A file that cannot be read as the image that its annotations describe."""


class ImageSource(Protocol):
    annotations: Annotations

    def read(self, image: int) -> np.ndarray:
        """[H, W, 3] uint8 RGB of image number `image`. Raises BadImage, naming the file."""


class DrawnImages:
    """The built-in images, drawn when first asked for and then kept (about 40 KB each)."""

    def __init__(self, annotations: Annotations, config: ShapesConfig, split: str):
        self.annotations, self.config, self.split = annotations, config, split
        self._drawn: dict[int, np.ndarray] = {}

    def read(self, image: int) -> np.ndarray:
        if image not in self._drawn:
            scene = scene_of(self.annotations, image)
            self._drawn[image] = draw_scene(self.config, self.split, image, scene)
        return self._drawn[image]


class ImageFiles:
    """Files in a folder: any format that Pillow reads, any colour mode, EXIF rotation applied."""

    def __init__(self, annotations: Annotations, folder: Path, names: Sequence[str]):
        self.annotations, self.folder = annotations, folder
        # Not as objects: a worker process would copy their memory by counting references.
        self._names = np.array([name.encode(*NAME_CODE) for name in names], dtype=bytes)

    def path(self, image: int) -> Path:
        return self.folder / self._names[image].decode(*NAME_CODE)

    def read(self, image: int) -> np.ndarray:
        path, size_hw = self.path(image), tuple(self.annotations.sizes_hw[image].tolist())
        try:
            pixels = _read(path, size_hw)
        except (
            OSError,
            SyntaxError,
            ValueError,
            RuntimeError,  # of broken AVIF
            Image.DecompressionBombError,
        ) as error:
            raise BadImage(f"{path}: {error}") from error
        if pixels.shape[:2] != size_hw:
            height, width = pixels.shape[:2]
            raise BadImage(
                f"{path} is {width}×{height}, its annotations say {size_hw[1]}×{size_hw[0]}"
            )
        return pixels


def _read(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 RGB; `size_hw` decides what EXIF leaves open."""
    with Image.open(path) as stored:
        if stored.format == "JPEG" and stored.mode in ("RGB", "L") and _is_upright(stored):
            pixels = _decoded(path)
            if pixels is not None:
                return pixels
        image = ImageOps.exif_transpose(stored)
        # The annotations are drawn on the turned image by most tools, on the raw by some.
        if image.size[::-1] != size_hw and stored.size[::-1] == size_hw:
            image = stored
        if stored.mode.startswith("I;16") or (stored.mode, stored.format) == ("I", "PPM"):
            # Grey of 16 bits. As with colours of 16 bits the upper 8 count; Pillow would clip.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))


def _is_upright(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _decoded(jpeg: Path) -> np.ndarray | None:
    """The pixels that Pillow gets, in less time; None where it shall say what is wrong."""
    try:
        return decode_jpeg(jpeg.read_bytes(), "RGB")
    except ValueError:
        return None


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are not in `folder`. Looks into each folder once, not at each file."""
    there: dict[str, set[str]] = {}
    for parent in {os.path.dirname(name) for name in names}:
        try:
            with os.scandir(folder / parent) as entries:
                there[parent] = {entry.name for entry in entries}
        except (OSError, ValueError):  # no such folder, no possible name
            there[parent] = set()
    return [n for n in names if os.path.basename(n) not in there[os.path.dirname(n)]]
