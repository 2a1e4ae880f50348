"""Times loading a batch from JPEG files: torchvision's detection reference against ours."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from analysis.speed.timing import Timing, least_seconds, row
from onenet.data.augment import Augmentation, View
from onenet.data.coco import read_coco
from onenet.data.images import ImageFiles
from onenet.data.loading import DetectionDataset, training_batches
from onenet.data.normalization import PIXEL_MEAN, PIXEL_STD, normalize
from onenet.data.order import Key, training_order
from onenet.data.sizes import SIZE_MULTIPLE, ImageSize

BATCH = 8
SIZE = ImageSize(short=512, ratio=1.667)
AUGMENTATION = Augmentation(flip=0.5, min_scale=0.8125)  # shortest sides of 416..512
TORCHVISION = GeneralizedRCNNTransform(0, 0, PIXEL_MEAN, PIXEL_STD)  # without its resizing


def rows(folder: Path) -> list[Timing]:
    """Measures both on the same images, in the same order, resized to the same sizes.

    `folder` contains `train2017/` and `annotations/instances_train2017.json`, as in COCO. Raises
    UserError if there are no images.
    """
    file = folder / "annotations" / "instances_train2017.json"
    dataset = DetectionDataset(
        read_coco(folder / "train2017", file, "train"), SIZE, AUGMENTATION, seed=0
    )
    steps = max(1, len(dataset) // BATCH)
    order = training_order(dataset.source.annotations.sizes_hw, BATCH, dataset.seed)
    batches = [next(order) for _ in range(steps)]
    views = {key: dataset.view(*key) for keys in batches for key in keys}

    def plain(normalized: bool) -> None:
        for keys in batches:
            plain_batch(dataset.source, keys, views, normalized)

    def ours(normalized: bool) -> None:
        for batch in training_batches(dataset, BATCH, 0, steps):
            if normalized:
                normalize(batch.images)

    seconds = least_seconds(
        lambda: plain(True), lambda: ours(True), lambda: plain(False), lambda: ours(False)
    )
    images = steps * BATCH
    names = ("plain_rate", "our_rate", "plain_raw", "ours_raw")
    rates = dict(zip(names, (images / s for s in seconds), strict=True))
    return [row("jpeg", 1e3 / rates["plain_rate"], 1e3 / rates["our_rate"], images=images, **rates)]


def plain_batch(
    source: ImageFiles, keys: list[Key], views: dict[Key, View], normalized: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """Loads a batch like torchvision's references/detection in training, with
    `data_augmentation=multiscale` and PIL, its default. Then normalizes and pads it like
    torchvision's GeneralizedRCNNTransform.

    The views fix the sizes and flips, which are random there. Returns [B, 3, H, W] float32, padded
    with zeros, and the boxes of each image [N, 4].
    """
    annotations, images, boxes = source.annotations, [], []
    for key in keys:
        image = Image.open(source.path(key[1])).convert("RGB")
        image_boxes = torch.from_numpy(annotations.boxes_xyxy[annotations.rows(key[1])]).float()
        image, image_boxes = _transform(image, image_boxes, views[key])
        images.append(TORCHVISION.normalize(image) if normalized else image)
        boxes.append(image_boxes)
    return TORCHVISION.batch_images(images, SIZE_MULTIPLE), boxes


def _transform(image: Image.Image, boxes: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Applies RandomShortestSize, RandomHorizontalFlip, PILToTensor and ToDtype."""
    (width, height), (new_height, new_width) = image.size, view.size_hw
    image = functional.resize(image, [new_height, new_width], InterpolationMode.BILINEAR)
    boxes = boxes * torch.tensor([new_width / width, new_height / height] * 2)
    if view.flip:
        image = functional.horizontal_flip(image)
        boxes[:, [0, 2]] = new_width - boxes[:, [2, 0]]
    pixels = functional.pil_to_tensor(image)
    return functional.to_dtype(pixels, torch.float32, scale=True), boxes
