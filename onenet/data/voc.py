"""Converts a Pascal VOC folder to the COCO layout that `data=coco data.root=OUT_DIR` reads.

    python -m onenet.data.voc VOC_ROOT OUT_DIR [--train SPLIT] [--val SPLIT]
                              [--difficult crowd|keep|drop]

VOC_ROOT holds Annotations/*.xml, JPEGImages/ and, for the splits, ImageSets/Main/*.txt. OUT_DIR
gets annotations/instances_{train,val}2017.json and the images in train2017/ and val2017/: hard
links if the file system allows them, else copies.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onenet.data.images import open_image
from onenet.errors import UserError
from onenet.system.plural import plural
from onenet.system.printable import printable

VAL_FRACTION = 0.2  # if the folder has no ImageSets
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


@dataclass(frozen=True)
class VocObject:
    name: str
    xyxy: tuple[float, float, float, float]  # pixels, from 0, x2 and y2 exclusive
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    path: Path
    size_wh: tuple[int, int]
    objects: Sequence[VocObject]


def convert(
    voc_root: Path,
    out_dir: Path,
    train: str | None = None,
    val: str | None = None,
    difficult: str = "crowd",
) -> str:
    """Writes OUT_DIR and returns a summary for the user.

    `train` and `val` name files of ImageSets/Main (default: train, val). `difficult` objects become
    crowds (evaluation ignores them, as VOC does), are kept like all others, or are dropped.
    Raises UserError on bad input, before writing anything.
    """
    stems, note = _splits(voc_root, train, val)
    files = _image_files(voc_root / "JPEGImages")
    splits = {split: [_read(voc_root, stem, files) for stem in stems[split]] for split in stems}
    names = {obj.name for images in splits.values() for image in images for obj in image.objects}
    if not names:
        raise UserError(f"{voc_root}/Annotations: none of the images has an object")
    counts = []
    contents = {}
    for split, images in splits.items():
        contents[split] = _to_coco(images, sorted(names), difficult)
        boxes = plural(len(contents[split]["annotations"]), "box")
        counts.append(f"{plural(len(images), f'{split} image')} with {boxes}")
    for split, images in splits.items():
        _link_images([image.path for image in images], out_dir / f"{split}2017")
    for split, content in contents.items():
        _write(out_dir / "annotations" / f"instances_{split}2017.json", json.dumps(content))
    out_dir = out_dir.resolve()
    return (
        f"{note}{out_dir}: {', '.join(counts)}, {plural(len(names), 'class')}. "
        f"Use: python run.py data=coco data.root={out_dir}"
    )


def _splits(root: Path, train: str | None, val: str | None) -> tuple[dict[str, list[str]], str]:
    """Returns the image names (without suffix) of `train` and `val`, and a note for the user."""
    _check_layout(root)
    folder = root / "ImageSets" / "Main"
    if folder.is_dir():
        names = {"train": train or "train", "val": val or "val"}
        stems = {split: _read_split(folder, name, split) for split, name in names.items()}
        overlap = len(set(stems["train"]) & set(stems["val"]))
        return stems, f"Warning: {plural(overlap, 'image')} in both splits.\n" if overlap else ""
    if train or val:
        raise UserError(f"{folder} does not exist, so --train and --val cannot be used: omit them")
    all_stems = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    if len(all_stems) < 2:
        files = plural(len(all_stems), "file")
        raise UserError(f"{root}/Annotations holds {files} *.xml, but two are needed")
    by_hash = sorted(all_stems, key=lambda stem: hashlib.sha256(os.fsencode(stem)).digest())
    count = max(1, round(VAL_FRACTION * len(all_stems)))
    stems = {"train": sorted(by_hash[count:]), "val": sorted(by_hash[:count])}
    return stems, (
        f"{folder} does not exist: {VAL_FRACTION:.0%} of the images, by a hash of their names, "
        "are val.\n"
    )


def _check_layout(root: Path) -> None:
    missing = [name for name in ("Annotations", "JPEGImages") if not (root / name).is_dir()]
    if not missing:
        return
    subfolders = [
        path.parent for path in (*root.glob("*/Annotations"), *root.glob("*/*/Annotations"))
    ]
    hint = "It needs Annotations/*.xml and JPEGImages/."
    if subfolders:
        hint = f"Did you mean {' or '.join(map(str, sorted(subfolders)[:3]))} ?"
    if not root.exists():
        raise UserError(f"{root} does not exist\n{hint}")
    raise UserError(f"{root} has no folder {' and no '.join(missing)}\n{hint}")


def _read_split(folder: Path, name: str, split: str) -> list[str]:
    path = folder / f"{name}.txt"
    if not path.is_file():
        names = {file.stem for file in folder.glob("*.txt")}
        names &= {"train", "val", "trainval", "test"}  # without the lists of single classes
        raise UserError(
            f"{path} does not exist\nChoose another: --{split} NAME"
            + (f" ({', '.join(sorted(names))})" if names else "")
        )
    stems = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    stems = list(dict.fromkeys(stem for stem in stems if stem))
    if not stems:
        raise UserError(f"{path} names no image\nChoose another: --{split} NAME")
    return stems


def _image_files(folder: Path) -> dict[str, Path]:
    """Returns the path of each image, by its name without suffix."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    return {path.stem: path for path in sorted(paths, reverse=True)}  # .jpg before .png


def _read(root: Path, stem: str, files: dict[str, Path]) -> VocImage:
    path = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML: {error}") from None
    image = files.get(stem)
    if image is None:
        raise UserError(
            f"{root}/JPEGImages has no image {stem} (.jpg, .png, …)\n"
            f"Add it, or remove {stem} from the split."
        )
    objects = [_object(path, i, element) for i, element in enumerate(tree.findall("object"), 1)]
    return VocImage(image, _size(path, tree, image), objects)


def _object(path: Path, number: int, element: ElementTree.Element) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{path}: object {number} has no name")
    sides = {}
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        sides[key] = _number(text)
        if not math.isfinite(sides[key]):
            raise UserError(f"{path}: object {number} ({name}) has {key} {text!r}, not a number")
    # VOC pixel coordinates start at 1 and include the last pixel.
    xyxy = (sides["xmin"] - 1, sides["ymin"] - 1, sides["xmax"], sides["ymax"])
    return VocObject(name, xyxy, (element.findtext("difficult") or "0").strip() == "1")


def _size(path: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Returns width and height from the XML, or from the image if the XML has none."""
    sides = [_number(tree.findtext(f"size/{key}")) for key in ("width", "height")]
    if all(side >= 1 and side.is_integer() for side in sides):
        return int(sides[0]), int(sides[1])
    try:
        with open_image(image) as file:
            return file.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} has no size, and {image} cannot be read: {error}\n"
            f"Repair one of them, or remove {image.stem} from the split."
        ) from None


def _number(text: str | None) -> float:
    """Returns NaN if the text is not a number."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _to_coco(images: Sequence[VocImage], names: Sequence[str], difficult: str) -> dict:
    """Numbers categories 1..K in the order of `names`, images from 1 in the order of `images`."""
    categories = {name: i for i, name in enumerate(names, 1)}
    annotations = []
    for image_id, image in enumerate(images, 1):
        for obj in image.objects:
            if obj.difficult and difficult == "drop":
                continue
            x1, y1, x2, y2 = obj.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[obj.name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(obj.difficult and difficult == "crowd"),
                }
            )
    return {
        "info": {"description": "converted from Pascal VOC by onenet.data.voc"},
        "images": [
            {
                "id": i,
                "file_name": image.path.name,
                "width": image.size_wh[0],
                "height": image.size_wh[1],
            }
            for i, image in enumerate(images, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
    }


def _link_images(paths: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        source, target = path.resolve(), folder / path.name
        if target.exists() and target.samefile(source):
            continue
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m onenet.data.voc", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "voc_root", type=Path, help="folder with Annotations, JPEGImages, ImageSets/Main"
    )
    parser.add_argument("out_dir", type=Path, help="created if it does not exist")
    parser.add_argument("--train", metavar="SPLIT", help="name in ImageSets/Main (default: train)")
    parser.add_argument("--val", metavar="SPLIT", help="name in ImageSets/Main (default: val)")
    parser.add_argument(
        "--difficult",
        choices=("crowd", "keep", "drop"),
        default="crowd",
        help="difficult objects: ignore as crowds (default), keep like all others, or drop",
    )
    args = parser.parse_args(arguments)
    try:
        summary = convert(args.voc_root, args.out_dir, args.train, args.val, args.difficult)
    except (UserError, OSError) as error:
        print(*map(printable, str(error).split("\n")), sep="\n", file=sys.stderr)
        return 2
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
