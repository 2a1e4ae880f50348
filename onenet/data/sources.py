"""From the `data` part of a configuration to images and annotations."""

from pathlib import Path

from onenet.config.schema import DataConfig
from onenet.data.coco import read_coco
from onenet.data.images import DrawnImages, ImageSource
from onenet.data.shapes import ShapesConfig, make_annotations
from onenet.errors import UserError
from onenet.system.own import load


def open_split(data: DataConfig, split: str, cache: Path | None = None) -> ImageSource:
    """The images of `split` (`train` or `val`), the first `data.limit` of them.

    The folder `cache` keeps what was read out of annotation files for the next time.

    Raises UserError, naming the key, where a folder or file is missing or broken.
    """
    if data.own is not None:
        source = load(data.own)(split)
        source.annotations = source.annotations.limit(data.limit)
        return source
    if data.name == "shapes":
        s = data.shapes
        config = ShapesConfig(
            kind=s.kind,
            seed=data.seed,
            min_short=s.min_short,
            max_short=s.max_short,
            max_aspect=s.max_aspect,
            max_objects=s.max_objects,
            min_side=s.min_side,
            max_side=s.max_side,
            body_scale=s.body_scale,
            part_side=s.part_side,
        )
        count = s.train_images if split == "train" else s.val_images
        annotations = make_annotations(config, split, min(count, data.limit or count))
        return DrawnImages(annotations, config, split)
    files = data.train if split == "train" else data.val
    source = read_coco(Path(files.images), Path(files.annotations), split, cache)
    source.annotations = source.annotations.limit(data.limit)
    return source


def check_splits(data: DataConfig, cache: Path | None = None) -> list[str]:
    """Reads both splits of a folder; returns what was cleaned. Raises UserError as `open_split`."""
    if data.name == "shapes" or data.own is not None:
        return []
    splits = {split: open_split(data, split, cache).annotations for split in ("train", "val")}
    names = {split: list(a.category_names) for split, a in splits.items()}
    if list(splits["train"].category_ids) != list(splits["val"].category_ids):
        raise UserError(
            f"The categories differ: {len(names['train'])} in data.train.annotations, "
            f"{len(names['val'])} in data.val.annotations.\nGive both files the same list."
        )
    return [f"data.{split}: {line}" for split, a in splits.items() for line in a.report]
