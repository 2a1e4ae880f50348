"""Random flip, scale and crop of an image in training (section 5)."""

from dataclasses import dataclass

import numpy as np

from onenet.data.sizes import ImageSize

# DETR's random crop, as in OneNet's released code. It resizes the shortest side to one of these
# values, then crops sides with a length in the range below. In pixels, for training at a shortest
# side of 512 or more; a smaller training size scales them down.
CROP_FROM = (400, 500, 600)
CROP_SIDE = (384, 600)
MIN_SIDE = 1e-3  # pixels of the image: an object is dropped if the crop leaves no more of a side


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for each image and epoch.

    `flip`: probability in 0..1. `min_scale`: in (0, 1]; the shortest side is drawn uniformly from
    min_scale * short .. short (416..512 in section 5), in steps of `size_step` pixels of a shortest
    side of 512. `crop`: probability in 0..1 of DETR's random crop, which comes first.
    """

    flip: float = 0.5
    min_scale: float = 0.8125
    size_step: int = 1
    crop: float = 0.0


@dataclass(frozen=True)
class View:
    """The part of an image that the network sees, and how it is resized and flipped."""

    crop_xyxy: tuple[float, float, float, float]  # pixels of the image
    size_hw: tuple[int, int]  # pixels after resizing
    flip: bool  # horizontally

    def transform_boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps boxes [N, 4] from image to view coordinates and clips them to the view.

        Returns the boxes, [N, 4] float32 pixels, and a mask of those that are still visible,
        [N] bool.
        """
        x1, y1, x2, y2 = self.crop_xyxy
        low, high = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
        height, width = self.size_hw
        clipped = np.minimum(np.maximum(boxes_xyxy, low), high)
        visible = (clipped[:, 2:] - clipped[:, :2] > MIN_SIDE).all(axis=1)
        scale = np.array([width, height, width, height]) / (high - low)
        boxes = ((clipped - low) * scale).astype(np.float32)
        if self.flip:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return boxes, visible


def whole_view(image_hw: tuple[int, int], size: ImageSize) -> View:
    """Returns the view of the whole image, as used in evaluation."""
    height, width = image_hw
    return View((0.0, 0.0, float(width), float(height)), size.of(image_hw), flip=False)


def draw_view(
    image_hw: tuple[int, int],
    size: ImageSize,
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> View:
    """Draws a view for training; the result depends only on the generator's state."""
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
    """Returns x1, y1, x2, y2 in pixels of the image. `scale` multiplies CROP_FROM and CROP_SIDE."""
    zoom = scale * generator.choice(CROP_FROM) / min(image_hw)
    sides, corner = [], []
    for length in image_hw:
        zoomed = length * zoom
        low, high = (min(zoomed, scale * side) for side in CROP_SIDE)
        side = generator.uniform(low, high)
        sides.append(side / zoom)
        corner.append(generator.uniform(0, zoomed - side) / zoom)
    (height, width), (y, x) = sides, corner
    # Rounding must not push the crop past the border: Pillow refuses to resize such a box.
    return x, y, min(x + width, float(image_hw[1])), min(y + height, float(image_hw[0]))
