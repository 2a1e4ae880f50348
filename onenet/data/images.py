"""Sources of images: files in a folder, or the built-in drawings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg

from onenet.data.annotations import Annotations
from onenet.data.shapes import ShapeSettings, draw_scene, scene_of

NAME_ENCODING = ("utf-8", "surrogatepass")  # can encode any str


class BadImage(Exception):
    """An image file that cannot be read, or does not have the size given in the annotations."""


class ImageSource(Protocol):
    annotations: Annotations

    def read(self, image: int) -> np.ndarray:
        """Returns image number `image`, [H, W, 3] uint8 RGB. Raises BadImage, naming the file."""


class DrawnImages:
    """The built-in images, drawn on first use and then cached (about 40 KB each)."""

    def __init__(self, annotations: Annotations, config: ShapeSettings, split: str):
        self.annotations, self.config, self.split = annotations, config, split
        self._cache: dict[int, np.ndarray] = {}

    def read(self, image: int) -> np.ndarray:
        if image not in self._cache:
            scene = scene_of(self.annotations, image)
            self._cache[image] = draw_scene(self.config, self.split, image, scene)
        return self._cache[image]


class ImageFiles:
    """Image files in a folder, in any format and colour mode that Pillow reads. Applies EXIF
    rotation."""

    def __init__(self, annotations: Annotations, folder: Path, names: Sequence[str]):
        self.annotations, self.folder = annotations, folder
        # An array, not a list of str: reference counts would make each worker copy the memory.
        self._names = np.array([name.encode(*NAME_ENCODING) for name in names], dtype=bytes)

    def path(self, image: int) -> Path:
        return self.folder / self._names[image].decode(*NAME_ENCODING)

    def read(self, image: int) -> np.ndarray:
        path, size_hw = self.path(image), tuple(self.annotations.sizes_hw[image].tolist())
        try:
            pixels = _read(path, size_hw)
        except (
            OSError,
            SyntaxError,
            ValueError,
            RuntimeError,  # broken AVIF
            Image.DecompressionBombError,
        ) as error:
            raise BadImage(f"{path}: {error}") from error
        if pixels.shape[:2] != size_hw:
            height, width = pixels.shape[:2]
            raise BadImage(
                f"{path} is {width}×{height}, but its annotations say {size_hw[1]}×{size_hw[0]}"
            )
        return pixels


def _read(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """Returns [H, W, 3] uint8 RGB. `size_hw` decides whether EXIF rotation applies."""
    with Image.open(path) as raw:
        if raw.format == "JPEG" and raw.mode in ("RGB", "L") and _is_upright(raw):
            pixels = _decode_jpeg(path)
            if pixels is not None:
                return pixels
        image = ImageOps.exif_transpose(raw)
        # Most tools annotate the rotated image, some the raw one.
        if image.size[::-1] != size_hw and raw.size[::-1] == size_hw:
            image = raw
        if raw.mode.startswith("I;16") or (raw.mode, raw.format) == ("I", "PPM"):
            # 16-bit grey. Keep the upper 8 bits, as for 16-bit colour; Pillow would clip.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))


def _is_upright(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _decode_jpeg(path: Path) -> np.ndarray | None:
    """Decodes to the same pixels as Pillow, but faster. Returns None on an error, for Pillow to
    report."""
    try:
        return decode_jpeg(path.read_bytes(), "RGB")
    except ValueError:
        return None


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
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
