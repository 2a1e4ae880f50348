"""Which part of an image is seen, how large and which way round (section 5)."""

from dataclasses import dataclass

import numpy as np

from onenet.data.sizes import ImageSize

# The random crop of DETR, as in OneNet's released code, in pixels of an image that is trained at a
# shortest side of 512 or more: it is brought to one of these shortest sides, then sides of a length
# within the range are cut out.
CROP_FROM = (400, 500, 600)
CROP_SIDE = (384, 600)
SLIVER = 1e-3  # pixels of the image: what a crop leaves less of is no object


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for each image and epoch.

    `flip`: probability in 0..1. `min_scale`: in (0, 1]; the shortest side is drawn uniformly from
    min_scale * short .. short (416..512 in section 5), in steps of `size_step` pixels of a shortest
    side of 512. `crop`: probability in 0..1 of DETR's random crop, before that.
    """

    flip: float = 0.5
    min_scale: float = 0.8125
    size_step: int = 1
    crop: float = 0.0


@dataclass(frozen=True)
class View:
    """A part of an image as the network sees it."""

    crop_xyxy: tuple[float, float, float, float]  # pixels of the image
    size_hw: tuple[int, int]  # pixels that the part is resized to
    flip: bool  # left to right

    def place(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the image [N, 4] as they lie in the view, clipped to it: [N, 4] float32 pixels,
        and which of them are left: [N] bool."""
        x1, y1, x2, y2 = self.crop_xyxy
        low, high = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
        height, width = self.size_hw
        clipped = np.minimum(np.maximum(boxes_xyxy, low), high)
        left = (clipped[:, 2:] - clipped[:, :2] > SLIVER).all(axis=1)
        scale = np.array([width, height, width, height]) / (high - low)
        boxes = ((clipped - low) * scale).astype(np.float32)
        if self.flip:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return boxes, left


def whole_view(image_hw: tuple[int, int], size: ImageSize) -> View:
    """All of the image, as in evaluation."""
    height, width = image_hw
    return View((0.0, 0.0, float(width), float(height)), size.of(image_hw), flip=False)


def draw_view(
    image_hw: tuple[int, int],
    size: ImageSize,
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> View:
    """A view for training, as a function of the generator's state."""
    flip = generator.random() < augmentation.flip
    step = max(1, round(augmentation.size_step * size.short / 512))
    steps = (size.short - round(augmentation.min_scale * size.short)) // step
    short = size.short - step * (steps - int(generator.integers(steps + 1)))
    height, width = image_hw
    crop = (0.0, 0.0, float(width), float(height))
    if augmentation.crop and generator.random() < augmentation.crop:
        crop = _draw_crop(image_hw, min(1.0, size.short / 512), generator)
    x1, y1, x2, y2 = crop
    return View(crop, size.of((y2 - y1, x2 - x1), short), bool(flip))


def _draw_crop(
    image_hw: tuple[int, int], scale: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 in pixels of the image. `scale`: the pixels above count so many."""
    zoom = scale * generator.choice(CROP_FROM) / min(image_hw)
    sides, corner = [], []
    for length in image_hw:
        zoomed = length * zoom
        low, high = (min(zoomed, scale * side) for side in CROP_SIDE)
        side = generator.uniform(low, high)
        sides.append(side / zoom)
        corner.append(generator.uniform(0, zoomed - side) / zoom)
    (height, width), (y, x) = sides, corner
    # Rounding must not reach over the border, where a resize would refuse.
    return x, y, min(x + width, float(image_hw[1])), min(y + height, float(image_hw[0]))
