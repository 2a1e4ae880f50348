"""Batches for training and evaluation, as functions of (seed, epoch, image) and nothing else.

So a run can be resumed at any step, and the number of worker processes changes nothing.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onenet.data.images import BadImage, ImageSource
from onenet.errors import UserError
from onenet.structures import Target

SIZE_MULTIPLE = 32  # the coarsest stride: padded sizes are multiples of it
PADDING_RGB = (124, 116, 104)  # ImageNet's mean: 0 once normalized


@dataclass(frozen=True)
class ImageSize:
    """Shortest side `short` pixels, longest at most `short * ratio` (512 and 1.667: 512×853)."""

    short: int
    ratio: float

    def of(self, size_hw: tuple[int, int], short: int | None = None) -> tuple[int, int]:
        """(height, width) that an image gets; `short` (<= self.short) where it is jittered."""
        height, width = size_hw
        scale = (short or self.short) / min(height, width)
        longest = int(self.short * self.ratio + 1e-6)  # whole pixels, in spite of rounding
        scale = min(scale, longest / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class Augmentation:
    """`flip`: probability in 0..1. `min_scale`: in (0, 1]; the shortest side is drawn uniformly
    from min_scale * short .. short (416..512 in section 5)."""

    flip: float = 0.5
    min_scale: float = 0.8125


@dataclass(frozen=True)
class Batch:
    images: Tensor  # [B, 3, H, W] uint8 RGB, padded right and below, H and W multiples of 32
    targets: list[Target]  # [B]
    original_hw: list[tuple[int, int]]  # [B] before resizing
    stands_in: list[bool]  # [B] is it the neighbour of an image that could not be read?
    bad_images: list[str]  # what is wrong with those


def pad_to_multiple(size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size_hw)
    return height, width


class DetectionDataset(Dataset):
    """Items are asked for as (epoch, image number). Without `augmentation` the epoch is ignored.

    In the place of an image that cannot be read stands the next one, and the batch names the file.
    `on_bad_image` says what the loader does about it: `error` raises UserError, `skip` goes on.
    """

    def __init__(
        self,
        source: ImageSource,
        size: ImageSize,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        on_bad_image: str = "error",
    ):
        self.source, self.size, self.augmentation = source, size, augmentation
        self.seed, self.on_bad_image = seed, on_bad_image

    def __len__(self) -> int:
        return len(self.source.annotations)

    def __getitem__(
        self, key: tuple[int, int]
    ) -> tuple[Tensor, Target, tuple[int, int], list[str]]:
        epoch, image = key
        bad = []
        for candidate in range(image, image + len(self)):
            try:
                pixels = self.source.read(candidate % len(self))
            except BadImage as error:
                bad.append(str(error))
                continue
            return *self._prepare(pixels, epoch, candidate % len(self)), bad
        raise UserError(f"None of the {len(self)} images can be read. The first: {bad[0]}")

    def _prepare(self, pixels: np.ndarray, epoch: int, image: int):
        """Resized, in training flipped and jittered: pixels [3, h, w], target, original size."""
        rng = np.random.default_rng([self.seed, 1, epoch, image])
        original_hw = pixels.shape[:2]
        short, flip = self.size.short, False
        if self.augmentation is not None:
            flip = rng.random() < self.augmentation.flip
            smallest = round(self.augmentation.min_scale * self.size.short)
            short = int(rng.integers(smallest, self.size.short + 1))
        height, width = self.size.of(original_hw, short)
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        target = self._target(image, (height, width))
        values = np.asarray(resized)
        if flip:
            values = values[:, ::-1]
            x1, y1, x2, y2 = target.gt_xyxy.unbind(1)
            flipped = torch.stack([width - x2, y1, width - x1, y2], dim=1)
            target = replace(target, gt_xyxy=flipped)
        return torch.from_numpy(values.transpose(2, 0, 1).copy()), target, original_hw

    def _target(self, image: int, size_hw: tuple[int, int]) -> Target:
        """The objects to learn: clipped to the image and scaled with it, without crowds."""
        annotations = self.source.annotations
        rows = annotations.rows(image)
        single = ~annotations.crowd[rows]
        original = annotations.sizes_hw[image]
        scale = np.tile(np.array(size_hw[::-1]) / original[::-1], 2)
        limit = np.tile(original[::-1], 2)
        boxes = np.clip(annotations.boxes_xyxy[rows][single], 0, limit) * scale
        return Target(
            gt_labels=torch.from_numpy(annotations.labels[rows][single]),
            gt_xyxy=torch.from_numpy(boxes.astype(np.float32)).reshape(-1, 4),
            size_hw=size_hw,
            image_id=int(annotations.image_ids[image]),
        )


def collate(items: list) -> Batch:
    """Pads right and below to the largest image of the batch, in multiples of 32."""
    pixels, targets, original_hw, bad = zip(*items, strict=True)
    height, width = pad_to_multiple(np.max([p.shape[1:] for p in pixels], axis=0))
    images = torch.tensor(PADDING_RGB, dtype=torch.uint8)[None, :, None, None]
    images = images.repeat(len(items), 1, height, width)
    for padded, image in zip(images, pixels, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    all_bad = [name for names in bad for name in names]
    return Batch(images, list(targets), list(original_hw), list(map(bool, bad)), all_bad)


def training_order(sizes_hw: np.ndarray, batch: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of (epoch, image) without end: each epoch a new permutation.

    Wide and tall images go into batches of their own, so that little is padded. A batch may reach
    over the end of an epoch.
    """
    wide = (sizes_hw[:, 1] > sizes_hw[:, 0]).tolist()
    waiting: tuple[list, list] = ([], [])
    epoch = 0
    while True:
        for image in np.random.default_rng([seed, 0, epoch]).permutation(len(wide)).tolist():
            group = waiting[wide[image]]
            group.append((epoch, image))
            if len(group) == batch:
                yield list(group)
                group.clear()
        epoch += 1


def training_batches(
    dataset: DetectionDataset, batch: int, first_step: int, last_step: int, workers: int = 0
) -> Iterator[Batch]:
    """The batches of steps first_step + 1 .. last_step."""
    order = training_order(dataset.source.annotations.sizes_hw, batch, dataset.seed)
    return _load(dataset, list(islice(order, first_step, last_step)), workers)


def evaluation_batches(dataset: DetectionDataset, batch: int, workers: int = 0) -> Iterator[Batch]:
    """Every image once. Only images of one padded size share a batch, so that the predictions do
    not depend on the batch size.
    """
    groups: dict[tuple[int, int], list] = {}
    for image, (height, width) in enumerate(dataset.source.annotations.sizes_hw.tolist()):
        groups.setdefault(pad_to_multiple(dataset.size.of((height, width))), []).append((0, image))
    batches = [g[i : i + batch] for _, g in sorted(groups.items()) for i in range(0, len(g), batch)]
    return _load(dataset, batches, workers)


def _load(dataset: DetectionDataset, batches: list, workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_reset_signals,
    )
    for batch in loader:
        if batch.bad_images and dataset.on_bad_image == "error":
            raise UserError(
                f"Bad image: {batch.bad_images[0]}\n"
                "Repair or remove it, or go on without such images: data.on_bad_image=skip"
            )
        yield batch


def _reset_signals(_worker: int) -> None:
    """Workers must not inherit the run's handlers: a signal to the group would checkpoint twice."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
