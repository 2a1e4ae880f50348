"""Sources of images: files in a folder, or the built-in drawings."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from simplejpeg import decode_jpeg

from onenet.data.annotations import Annotations
from onenet.data.shapes import ShapeSettings, draw_scene, scene_of
from onenet.system.printable import printable

# Whatever the name of the file ends in. PPM is all of PNM.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
NAME_ENCODING = ("utf-8", "surrogatepass")  # can encode any str


class BadImage(Exception):
    """An image file that cannot be read, or does not have the size given in the annotations."""

    def __init__(self, message: str):
        super().__init__(printable(message))


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
    """Image files in a folder, in one of FORMATS and any colour mode. Applies EXIF rotation."""

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
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImage(f"{path}: {error}") from error
        if pixels.shape[:2] != size_hw:
            raise _wrong_size(path, pixels.shape[:2], size_hw)
        return pixels


def open_image(path: Path) -> Image.Image:
    """Opens an image without decoding it. Raises OSError if it is not a file in one of FORMATS, or
    has over 179 million pixels."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
        raise OSError("not a file, but a folder, pipe or device")
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise OSError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from None


def read_image(path: Path) -> np.ndarray:
    """Returns an image as it is meant to be seen, with EXIF rotation: [H, W, 3] uint8 RGB. Raises
    BadImage, naming the file."""
    try:
        return _read(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{path}: {error}") from error


def _wrong_size(path: Path, size_hw: tuple[int, ...], annotated_hw: tuple[int, int]) -> BadImage:
    (height, width), (annotated_height, annotated_width) = size_hw, annotated_hw
    return BadImage(
        f"{path} is {width}×{height}, but its annotations say {annotated_width}×{annotated_height}"
    )


def _read(path: Path, size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Returns [H, W, 3] uint8 RGB. `size_hw`, if the annotations say it, decides whether EXIF
    rotation applies."""
    with open_image(path) as raw:
        # A small file may decode to gigabytes.
        if size_hw and raw.size not in (size_hw, size_hw[::-1]):
            raise _wrong_size(path, raw.size[::-1], size_hw)
        if raw.format == "JPEG" and raw.mode in ("RGB", "L") and _is_upright(raw):
            pixels = _decode_jpeg(path)
            if pixels is not None:
                return pixels
        image = ImageOps.exif_transpose(raw)
        # Most tools annotate the rotated image, some the raw one.
        if size_hw and image.size[::-1] != size_hw and raw.size[::-1] == size_hw:
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
