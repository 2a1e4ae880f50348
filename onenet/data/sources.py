"""Opens the images and annotations that the `data` part of a configuration names."""

from pathlib import Path

from onenet.config.schema import DataConfig
from onenet.data.coco import read_coco
from onenet.data.images import DrawnImages, ImageSource
from onenet.data.shapes import ShapeSettings, make_annotations
from onenet.errors import UserError
from onenet.system.own import load


def open_split(data: DataConfig, split: str, cache: Path | None = None) -> ImageSource:
    """Opens `split` (`train` or `val`), limited to its first `data.limit` images.

    The folder `cache` holds parsed annotation files for later calls.

    Raises UserError, naming the key, if a folder or file is missing or broken.
    """
    if data.own is not None:
        source = load(data.own)(split)
        source.annotations = source.annotations.limit(data.limit)
        return source
    if data.name == "shapes":
        shapes = data.shapes
        config = ShapeSettings(
            kind=shapes.kind,
            seed=data.seed,
            min_short=shapes.min_short,
            max_short=shapes.max_short,
            max_aspect=shapes.max_aspect,
            max_objects=shapes.max_objects,
            min_side=shapes.min_side,
            max_side=shapes.max_side,
            body_scale=shapes.body_scale,
            part_side=shapes.part_side,
        )
        count = shapes.train_images if split == "train" else shapes.val_images
        annotations = make_annotations(config, split, min(count, data.limit or count))
        return DrawnImages(annotations, config, split)
    files = data.train if split == "train" else data.val
    if not files.images or not files.annotations:
        raise UserError(f"This run has no data: data.{split}.images and .annotations are not set.")
    images, annotations = Path(files.images), Path(files.annotations)
    source = read_coco(images, annotations, split, cache, data.allow_outside)
    source.annotations = source.annotations.limit(data.limit)
    return source


def check_splits(data: DataConfig, cache: Path | None = None) -> list[str]:
    """Reads both splits of a COCO-format data set and returns what was cleaned, a sentence each.

    Raises UserError like `open_split`, or if the categories of the splits differ.
    """
    if data.name == "shapes" or data.own is not None:
        return []
    splits = {split: open_split(data, split, cache).annotations for split in ("train", "val")}
    names = {split: list(a.category_names) for split, a in splits.items()}
    if list(splits["train"].category_ids) != list(splits["val"].category_ids):
        raise UserError(
            f"The category ids differ: {len(names['train'])} in data.train.annotations, "
            f"{len(names['val'])} in data.val.annotations.\nBoth need the same list."
        )
    return [f"data.{split}: {line}" for split, a in splits.items() for line in a.report]
