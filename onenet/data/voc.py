"""A Pascal-VOC folder turned into the COCO layout that `data=coco data.root=OUT_DIR` reads.

    python -m onenet.data.voc VOC_ROOT OUT_DIR [--train SPLIT] [--val SPLIT]
                              [--difficult crowd|keep|drop]

VOC_ROOT holds Annotations/*.xml, JPEGImages/ and, for the splits, ImageSets/Main/*.txt. OUT_DIR
gets annotations/instances_{train,val}2017.json and the images as train2017/, val2017/: hard links
where the file system allows them, else copies.
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

from PIL import Image

from onenet.errors import UserError

VAL_SHARE = 0.2  # where the folder has no ImageSets
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


@dataclass(frozen=True)
class VocObject:
    name: str
    xyxy: tuple[float, float, float, float]  # pixels, from 0, x2 and y2 just outside
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
    """Writes OUT_DIR and returns what to tell about it. Raises UserError before writing anything.

    `train` and `val` name files of ImageSets/Main (default: train, val). `difficult` objects become
    crowds (evaluation ignores them, as VOC does), are kept like all others, or are dropped.
    """
    stems, told = _splits(voc_root, train, val)
    files = _image_files(voc_root / "JPEGImages")
    splits = {split: [_read(voc_root, stem, files) for stem in stems[split]] for split in stems}
    names = {
        thing.name for images in splits.values() for image in images for thing in image.objects
    }
    if not names:
        raise UserError(f"{voc_root}/Annotations: none of the images has an object")
    counts = []
    made = {}
    for split, images in splits.items():
        made[split] = _to_coco(images, sorted(names), difficult)
        counts.append(f"{len(images)} {split} images with {len(made[split]['annotations'])} boxes")
    for split, images in splits.items():
        _place([image.path for image in images], out_dir / f"{split}2017")
    for split, content in made.items():
        _write(out_dir / "annotations" / f"instances_{split}2017.json", json.dumps(content))
    out_dir = out_dir.resolve()
    told += f"{out_dir}: {', '.join(counts)}, {len(names)} classes. "
    return told + f"Use: python run.py data=coco data.root={out_dir}"


def _splits(root: Path, train: str | None, val: str | None) -> tuple[dict[str, list[str]], str]:
    """The image names (without suffix) of `train` and `val`, and what there is to say of them."""
    _check_layout(root)
    folder = root / "ImageSets" / "Main"
    if folder.is_dir():
        chosen = {"train": train or "train", "val": val or "val"}
        stems = {split: _listed(folder, name, split) for split, name in chosen.items()}
        both = len(set(stems["train"]) & set(stems["val"]))
        return stems, f"Warning: {both} images are in both splits.\n" if both else ""
    if train or val:
        raise UserError(f"{folder} does not exist, so --train and --val cannot be chosen")
    found = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    if len(found) < 2:
        raise UserError(f"{root}/Annotations holds {len(found)} files *.xml, two are needed")
    by_hash = sorted(found, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    count = max(1, round(VAL_SHARE * len(found)))
    stems = {"train": sorted(by_hash[count:]), "val": sorted(by_hash[:count])}
    told = f"No {folder}: {VAL_SHARE:.0%} of the images, by a hash of their names, are val.\n"
    return stems, told


def _check_layout(root: Path) -> None:
    missing = [name for name in ("Annotations", "JPEGImages") if not (root / name).is_dir()]
    if not missing:
        return
    inside = [path.parent for level in ("*", "*/*") for path in root.glob(f"{level}/Annotations")]
    hint = "It needs Annotations/*.xml and JPEGImages/."
    if inside:
        hint = f"Do you mean {' or '.join(map(str, sorted(inside)[:3]))} ?"
    if not root.exists():
        raise UserError(f"{root} does not exist\n{hint}")
    raise UserError(f"{root} has no folder {' and no '.join(missing)}\n{hint}")


def _listed(folder: Path, name: str, split: str) -> list[str]:
    path = folder / f"{name}.txt"
    if not path.is_file():
        found = {entry.stem for entry in folder.glob("*.txt")}
        known = found & {"train", "val", "trainval", "test"}  # not the lists of each class
        raise UserError(
            f"{path} does not exist\nChoose another: --{split} NAME"
            + (f" ({', '.join(sorted(known))})" if known else "")
        )
    stems = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    stems = list(dict.fromkeys(stem for stem in stems if stem))
    if not stems:
        raise UserError(f"{path} names no image\nChoose another: --{split} NAME")
    return stems


def _image_files(folder: Path) -> dict[str, Path]:
    """The images by their name without suffix."""
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
    objects = [_object(path, i, found) for i, found in enumerate(tree.findall("object"), 1)]
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
    # VOC counts pixels from 1 and includes the last one.
    xyxy = (sides["xmin"] - 1, sides["ymin"] - 1, sides["xmax"], sides["ymax"])
    return VocObject(name, xyxy, (element.findtext("difficult") or "0").strip() == "1")


def _size(path: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Width and height: of the XML, or of the image where the XML has none."""
    stated = [_number(tree.findtext(f"size/{key}")) for key in ("width", "height")]
    if all(side >= 1 and side.is_integer() for side in stated):
        return int(stated[0]), int(stated[1])
    try:
        with Image.open(image) as opened:
            return opened.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} has no size, and {image} cannot be read: {error}\n"
            f"Repair one of them, or remove {image.stem} from the split."
        ) from None


def _number(text: str | None) -> float:
    """NaN where it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _to_coco(images: Sequence[VocImage], names: Sequence[str], difficult: str) -> dict:
    """Category ids 1..K in the order of `names`, image ids in the order of `images`."""
    categories = {name: i for i, name in enumerate(names, 1)}
    annotations = []
    for image_id, image in enumerate(images, 1):
        for thing in image.objects:
            if thing.difficult and difficult == "drop":
                continue
            x1, y1, x2, y2 = thing.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[thing.name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(thing.difficult and difficult == "crowd"),
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


def _place(paths: Sequence[Path], folder: Path) -> None:
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
    unfinished = path.with_suffix(".json.tmp")
    try:
        unfinished.write_text(text)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m onenet.data.voc", description=__doc__.split("\n")[0]
    )
    parser.add_argument("voc_root", type=Path, help="with Annotations, JPEGImages, ImageSets/Main")
    parser.add_argument("out_dir", type=Path, help="made where it does not exist")
    parser.add_argument("--train", metavar="SPLIT", help="of ImageSets/Main (default: train)")
    parser.add_argument("--val", metavar="SPLIT", help="of ImageSets/Main (default: val)")
    parser.add_argument(
        "--difficult",
        choices=("crowd", "keep", "drop"),
        default="crowd",
        help="objects marked difficult: ignored in evaluation and training (default), or as named",
    )
    args = parser.parse_args(arguments)
    try:
        told = convert(args.voc_root, args.out_dir, args.train, args.val, args.difficult)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
