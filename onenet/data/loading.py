"""Batches for training and evaluation, as functions of (seed, epoch, image) and nothing else.

So a run can be resumed at any step, and the number of worker processes changes nothing.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
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
from onenet.data.order import Key, pieces, training_order
from onenet.data.sizes import ImageSize, pad_to_multiple
from onenet.errors import UserError
from onenet.structures import Target
from onenet.system.signals import SIGNALS

PILLOW_PIXELS = 256 * 256  # of an image: up to so many Pillow resizes it


@dataclass(frozen=True)
class Batch:
    images: Tensor  # [B, 3, H, W] uint8 RGB, padded right and below, H and W multiples of 32
    targets: list[Target]  # [B]
    original_hw: list[tuple[int, int]]  # [B] before resizing
    stands_in: list[bool]  # [B] is it the neighbour of an image that could not be read?
    bad_images: list[str]  # what is wrong with those

    def pin_memory(self) -> "Batch":
        return replace(self, images=self.images.pin_memory())

    def __reduce__(self) -> tuple:
        """From a worker process each tensor comes through an open file of its own, the arrays of
        the targets as bytes: a 20th of the time, and no limit of open files is hit."""
        packed = [_converted(target, Tensor.numpy) for target in self.targets]
        return _unpacked, (self.images, packed, self.original_hw, self.stands_in, self.bad_images)


def _unpacked(images: Tensor, targets: list[Target], *others: list) -> Batch:
    return Batch(images, [_converted(target, torch.from_numpy) for target in targets], *others)


def _converted(target: Target, convert: Callable) -> Target:
    """Its arrays with `convert`, which are tensors or were."""
    arrays = {k: v for k, v in vars(target).items() if isinstance(v, Tensor | np.ndarray)}
    return replace(target, **{name: convert(value) for name, value in arrays.items()})


# The pixels [3, h, w] of a view, its target, the size of the image, what was wrong with images that
# it stands in for.
Item = tuple[Tensor, Target, tuple[int, int], list[str]]


@dataclass(frozen=True)
class Share:
    """What one forward pass gets of a batch."""

    images: list[Key]
    batch: list[Key]  # all of it: the padded size is that of its largest image


class DetectionDataset(Dataset):
    """Items are asked for as (epoch, image number). Without `augmentation` the epoch is ignored.

    In the place of an image that cannot be read stands the next one, and the batch names the file.
    `on_bad_image` says what the loader does about it: `error` raises UserError, `skip` goes on.
    `crowd`: what boxes around crowds are in training. `ignore`: their class is not learnt at slots
    inside them; `drop`: background; `keep`: objects.
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
        """The item `key`, whose view is given."""
        epoch, image = key
        bad = []
        for number in range(image, image + len(self)):
            candidate = number % len(self)
            try:
                pixels = self.source.read(candidate)
            except BadImage as error:
                bad.append(str(error))
                continue
            if bad:
                view = self.view(epoch, candidate)
            return resample(pixels, view), self._target(view, candidate), pixels.shape[:2], bad
        raise UserError(f"None of the {len(self)} images can be read. The first: {bad[0]}")

    def view(self, epoch: int, image: int) -> View:
        """How the image is seen in that epoch."""
        image_hw = tuple(self.source.annotations.sizes_hw[image].tolist())
        if self.augmentation is None:
            return whole_view(image_hw, self.size)
        generator = np.random.default_rng([self.seed, 1, epoch, image])
        return draw_view(image_hw, self.size, self.augmentation, generator)

    def _target(self, view: View, image: int) -> Target:
        """The objects to learn, and the crowds to leave alone, where they lie in the view."""
        annotations = self.source.annotations
        rows = annotations.rows(image)
        boxes, left = view.place(annotations.boxes_xyxy[rows])
        crowd, labels = annotations.crowd[rows], annotations.labels[rows]
        objects = left if self.crowd == "keep" else left & ~crowd
        ignored = left & crowd & (self.crowd == "ignore")
        return Target(
            gt_labels=torch.from_numpy(labels[objects]),
            gt_xyxy=torch.from_numpy(boxes[objects]),
            size_hw=view.size_hw,
            image_id=int(annotations.image_ids[image]),
            crowd_labels=torch.from_numpy(labels[ignored]),
            crowd_xyxy=torch.from_numpy(boxes[ignored]),
        )


class Shares(Dataset):
    """Items are asked for as a Share and are a Batch."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset

    def __getitem__(self, share: Share) -> Batch:
        views = {key: self.dataset.view(*key) for key in share.batch}
        least_hw = tuple(map(max, zip(*(view.size_hw for view in views.values()), strict=True)))
        return collate([self.dataset.load(key, views[key]) for key in share.images], least_hw)


def resample(pixels: np.ndarray, view: View) -> Tensor:
    """The view [3, h, w] of the image [H, W, 3], uint8: bilinear, over all that a pixel covers.

    Pillow's results up to PILLOW_PIXELS, so that what was trained on the built-in images can be
    repeated to the bit, and for a part of an image, which may begin between two pixels. Else a
    third of its time, and a grey level off in one of some hundred values.
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


def collate(items: list[Item], least_hw: tuple[int, int] = (1, 1)) -> Batch:
    """Pads right and below to the largest image, at least to `least_hw`, in multiples of 32."""
    pixels, targets, original_hw, bad = zip(*items, strict=True)
    sides = zip(least_hw, *(image.shape[1:] for image in pixels), strict=True)
    height, width = pad_to_multiple(tuple(map(max, sides)))
    padding = np.array(PADDING_RGB, dtype=np.uint8)[:, None, None]
    images = np.empty((len(items), 3, height, width), dtype=np.uint8)
    for padded, image in zip(images, pixels, strict=True):
        _, image_height, image_width = image.shape
        padded[:, :image_height, :image_width] = image.numpy()
        padded[:, image_height:] = padding
        padded[:, :image_height, image_width:] = padding
    all_bad = [name for names in bad for name in names]
    images = torch.from_numpy(images)
    return Batch(images, list(targets), list(original_hw), list(map(bool, bad)), all_bad)


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
    """The batches of steps first_step + 1 .. last_step: of each step `accumulate` pieces, which
    are the share of process `rank`."""
    order = training_order(dataset.source.annotations.sizes_hw, batch, dataset.seed)
    shares = (
        Share(piece, keys)
        for keys in islice(order, first_step, last_step)
        for piece in pieces(keys, processes * accumulate)[rank::processes]
    )
    return _load(dataset, shares, workers)


def evaluation_batches(
    dataset: DetectionDataset, batch: int, workers: int = 0, *, rank: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Every image once, over all processes. Only images of one padded size share a batch, so that
    the predictions depend neither on the batch size nor on the number of processes.
    """
    groups: dict[tuple[int, int], list] = {}
    for image, (height, width) in enumerate(dataset.source.annotations.sizes_hw.tolist()):
        groups.setdefault(pad_to_multiple(dataset.size.of((height, width))), []).append((0, image))
    batches = [g[i : i + batch] for _, g in sorted(groups.items()) for i in range(0, len(g), batch)]
    return _load(dataset, (Share(keys, keys) for keys in batches[rank::processes]), workers)


def _load(dataset: DetectionDataset, shares: Iterable[Share], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        Shares(dataset),
        batch_size=None,
        sampler=shares,
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
    """A signal to the whole group is for the run, which ends its workers when it has saved. They
    also end by themselves when it is gone."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
