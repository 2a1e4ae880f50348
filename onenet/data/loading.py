"""Batches for training and evaluation.

They depend on seed, epoch and image only, so a run can be resumed at any step, and the number of
worker processes changes nothing.
"""

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from onenet.data.augment import Augmentation, View, draw_view, whole_view
from onenet.data.images import BadImage, ImageSource
from onenet.data.normalization import PADDING_RGB
from onenet.data.order import Key, split_batch, training_order
from onenet.data.sizes import ImageSize, pad_to_multiple
from onenet.errors import UserError
from onenet.structures import Target
from onenet.system.signals import SIGNALS

PILLOW_PIXELS = 256 * 256  # Pillow resizes images up to this size


@dataclass(frozen=True)
class Batch:
    images: Tensor  # [B, 3, H, W] uint8 RGB, padded right and below, H and W multiples of 32
    targets: list[Target]  # [B]
    original_hw: list[tuple[int, int]]  # [B] before resizing
    is_substitute: list[bool]  # [B] does it replace an image that could not be read?
    bad_images: list[str]  # a message for each image that could not be read

    def pin_memory(self) -> "Batch":
        return replace(self, images=self.images.pin_memory())

    def __reduce__(self) -> tuple:
        """Sends the targets from a worker process as arrays: a tensor would need an open file of
        its own. This takes a 20th of the time and never hits the limit of open files."""
        targets = [_convert_arrays(target, Tensor.numpy) for target in self.targets]
        others = (self.original_hw, self.is_substitute, self.bad_images)
        return _unpickle_batch, (self.images, targets, *others)


def _unpickle_batch(images: Tensor, targets: list[Target], *others: list) -> Batch:
    return Batch(images, [_convert_arrays(t, torch.from_numpy) for t in targets], *others)


def _convert_arrays(target: Target, convert: Callable) -> Target:
    """Applies `convert` to every tensor or array of the target."""
    arrays = {k: v for k, v in vars(target).items() if isinstance(v, Tensor | np.ndarray)}
    return replace(target, **{name: convert(value) for name, value in arrays.items()})


# Pixels [3, h, w] of a view, its target, the original (height, width), and a message for each
# unreadable image that it replaces.
Item = tuple[Tensor, Target, tuple[int, int], list[str]]


@dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass, and the batch that they are part of."""

    images: list[Key]
    batch: list[Key]  # its largest image sets the padded size


class DetectionDataset(Dataset):
    """Maps (epoch, image number) to an item. Without `augmentation` the epoch is ignored.

    If an image cannot be read, the next one replaces it, and the batch names the file.
    `on_bad_image` tells the loader what to do then: `error` raises UserError, `skip` continues.
    `crowd` says how to train on boxes around crowds. `ignore`: slots inside them do not learn their
    class; `drop`: they are background; `keep`: they are objects.
    """

    def __init__(
        self,
        source: ImageSource,
        size: ImageSize,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        on_bad_image: str = "error",
        crowd: str = "ignore",
    ):
        self.source, self.size, self.augmentation = source, size, augmentation
        self.seed, self.on_bad_image, self.crowd = seed, on_bad_image, crowd

    def __len__(self) -> int:
        return len(self.source.annotations)

    def __getitem__(self, key: Key) -> Item:
        return self.load(key, self.view(*key))

    def load(self, key: Key, view: View) -> Item:
        """Loads an item with the given view of its image."""
        epoch, image = key
        problems = []
        for number in range(image, image + len(self)):
            candidate = number % len(self)
            try:
                pixels = self.source.read(candidate)
            except BadImage as error:
                problems.append(str(error))
                continue
            if problems:
                view = self.view(epoch, candidate)
            target = self._target(view, candidate)
            return resample(pixels, view), target, pixels.shape[:2], problems
        raise UserError(f"None of the {len(self)} images can be read. The first: {problems[0]}")

    def view(self, epoch: int, image: int) -> View:
        """Returns the view of the image in this epoch."""
        image_hw = tuple(self.source.annotations.sizes_hw[image].tolist())
        if self.augmentation is None:
            return whole_view(image_hw, self.size)
        generator = np.random.default_rng([self.seed, 1, epoch, image])
        return draw_view(image_hw, self.size, self.augmentation, generator)

    def _target(self, view: View, image: int) -> Target:
        """Returns the objects to learn and the crowds to ignore, in coordinates of the view."""
        annotations = self.source.annotations
        rows = annotations.rows(image)
        boxes, visible = view.transform_boxes(annotations.boxes_xyxy[rows])
        crowd, labels = annotations.crowd[rows], annotations.labels[rows]
        objects = visible if self.crowd == "keep" else visible & ~crowd
        ignored = visible & crowd & (self.crowd == "ignore")
        return Target(
            gt_labels=torch.from_numpy(labels[objects]),
            gt_xyxy=torch.from_numpy(boxes[objects]),
            size_hw=view.size_hw,
            image_id=int(annotations.image_ids[image]),
            crowd_labels=torch.from_numpy(labels[ignored]),
            crowd_xyxy=torch.from_numpy(boxes[ignored]),
        )


class MicroBatchDataset(Dataset):
    """Maps a MicroBatch to its Batch."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        views = {key: self.dataset.view(*key) for key in micro_batch.batch}
        min_hw = tuple(map(max, zip(*(view.size_hw for view in views.values()), strict=True)))
        return collate([self.dataset.load(key, views[key]) for key in micro_batch.images], min_hw)


def resample(pixels: np.ndarray, view: View) -> Tensor:
    """Resizes the view of an image [H, W, 3] to [3, h, w], uint8: bilinear and antialiased.

    Pillow resizes images up to PILLOW_PIXELS, so that runs on the built-in images stay reproducible
    to the bit, and crops, which may start between two pixels. Torch resizes the rest in a third of
    the time; about one value in some hundred differs from Pillow's, by one grey level.
    """
    height, width, _ = pixels.shape
    if height * width > PILLOW_PIXELS and view.crop_xyxy == (0, 0, width, height):
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
        resized = interpolate(planes[None], view.size_hw, mode="bilinear", antialias=True)[0]
        return resized.flip(-1) if view.flip else resized
    resized = Image.fromarray(pixels).resize(
        view.size_hw[::-1], Image.Resampling.BILINEAR, box=view.crop_xyxy
    )
    values = np.asarray(resized)
    if view.flip:
        values = values[:, ::-1]
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def collate(items: list[Item], min_hw: tuple[int, int] = (1, 1)) -> Batch:
    """Makes a batch of images that are padded alike, see `pad`."""
    pixels, targets, original_hw, problems = zip(*items, strict=True)
    is_substitute = list(map(bool, problems))
    bad_images = [message for messages in problems for message in messages]
    images = pad(pixels, min_hw)
    return Batch(images, list(targets), list(original_hw), is_substitute, bad_images)


def pad(pixels: Sequence[Tensor], min_hw: tuple[int, int] = (1, 1)) -> Tensor:
    """Pads images [3, h, w] right and below to the largest one and `min_hw`, in multiples of 32:
    [B, 3, H, W] uint8."""
    sides = zip(min_hw, *(image.shape[1:] for image in pixels), strict=True)
    height, width = pad_to_multiple(tuple(map(max, sides)))
    padding = np.array(PADDING_RGB, dtype=np.uint8)[:, None, None]
    images = np.empty((len(pixels), 3, height, width), dtype=np.uint8)
    for padded, image in zip(images, pixels, strict=True):
        _, image_height, image_width = image.shape
        padded[:, :image_height, :image_width] = image.numpy()
        padded[:, image_height:] = padding
        padded[:, :image_height, image_width:] = padding
    return torch.from_numpy(images)


def training_batches(
    dataset: DetectionDataset,
    batch: int,
    first_step: int,
    last_step: int,
    workers: int = 0,
    *,
    rank: int = 0,
    processes: int = 1,
    accumulate: int = 1,
) -> Iterator[Batch]:
    """Yields the micro-batches of process `rank` for steps first_step + 1 .. last_step.

    Each step has `accumulate` of them; together with those of the other processes they make up one
    batch of `batch` images.
    """
    order = training_order(dataset.source.annotations.sizes_hw, batch, dataset.seed)
    micro_batches = (
        MicroBatch(images, keys)
        for keys in islice(order, first_step, last_step)
        for images in split_batch(keys, processes * accumulate)[rank::processes]
    )
    return _load(dataset, micro_batches, workers)


def evaluation_batches(
    dataset: DetectionDataset, batch: int, workers: int = 0, *, rank: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Yields the batches of process `rank`; all processes together cover every image once.

    The images of a batch have the same padded size, so that predictions depend neither on the batch
    size nor on the number of processes.
    """
    groups: dict[tuple[int, int], list] = {}
    for image, (height, width) in enumerate(dataset.source.annotations.sizes_hw.tolist()):
        groups.setdefault(pad_to_multiple(dataset.size.of((height, width))), []).append((0, image))
    batches = [g[i : i + batch] for _, g in sorted(groups.items()) for i in range(0, len(g), batch)]
    return _load(dataset, (MicroBatch(keys, keys) for keys in batches[rank::processes]), workers)


def _load(
    dataset: DetectionDataset, micro_batches: Iterable[MicroBatch], workers: int
) -> Iterator[Batch]:
    with warnings.catch_warnings():  # that there are more workers than cores: some read files
        warnings.filterwarnings("ignore", "This DataLoader will create")
        batches = iter(DataLoader(
            MicroBatchDataset(dataset),
            batch_size=None,
            sampler=micro_batches,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        ))  # fmt: skip
    for batch in batches:
        if batch.bad_images and dataset.on_bad_image == "error":
            raise UserError(
                f"Bad image: {batch.bad_images[0]}\n"
                "Repair or remove the image, or skip unreadable ones: data.on_bad_image=skip"
            )
        yield batch


def _ignore_signals(_worker: int) -> None:
    """Makes a data worker ignore signals, which may go to the whole process group: the run itself
    stops its workers after saving. Workers also end by themselves if the run is gone."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
