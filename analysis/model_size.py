"""Compares our networks with the released code's: parameters and multiply-accumulates.

python analysis/model_size.py                      an image of 512×853 pixels, padded to 512×864
python analysis/model_size.py --size 800 1344
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from analysis.core.cli import plain_parser
from analysis.core.render import NOTES, Page, markdown
from analysis.core.table import PAPER
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import NECKS
from onenet.detectors.onenet import OneNet
from onenet.system.terminal import run_command

BACKBONES = ("resnet18", "resnet50", "resnet101")
PYRAMIDS = ("deconv_dcn", "deconv", "fpn")  # options of neck
SIZE_HW = (512, 864)
CHANNELS, CLASSES = 64, 80


class ModelSize(NamedTuple):
    parameters: float  # millions
    macs: float  # multiply-accumulates of one image, in 10^9


RELEASED = pd.read_csv(PAPER.with_name("released_sizes.csv"), index_col=["backbone", "neck"])


def main(arguments: list[str]) -> int:
    parser, names = plain_parser(__doc__), ("H", "W")
    about = "default: 512 864"
    parser.add_argument(
        "--size", nargs=2, type=padded_side, default=SIZE_HW, metavar=names, help=about
    )
    print(markdown(page(tuple(parser.parse_args(arguments).size))), end="")
    return 0


def page(size_hw: tuple[int, int]) -> Page:
    """The printed page, for one image of this padded size."""
    question = "Are our networks as large as the released ones?"
    context = ["image {} × {}".format(*size_hw)]
    context.append(f"{CLASSES} classes, 1 head, neck.channels={CHANNELS}")
    return Page("Size of the networks", question, context, [_table(size_hw)], NOTES["sizes"])


def _table(size_hw: tuple[int, int]) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([BACKBONES, PYRAMIDS], names=RELEASED.index.names)
    ours = pd.DataFrame([measure(*network, size_hw) for network in index], index)
    released = RELEASED.reindex(index)
    if size_hw != SIZE_HW:
        released["macs"] = float("nan")
    gap = (100 * (ours / released - 1)).map("{:+z.1f} %".format)
    tables = []
    for name, unit, digits in (("parameters", "M", "{:.2f}"), ("macs", "GMAC", "{:.1f}")):
        columns = [each[name].map(digits.format) for each in (ours, released)]
        names = [unit, f"{unit} released", "gap"]
        tables.append(pd.concat([*columns, gap[name]], axis=1).set_axis(names, axis=1))
        tables[-1].loc[released[name].isna(), names[1:]] = ""
    return pd.concat(tables, axis=1)


def measure(backbone: str, neck: str, size_hw: tuple[int, int]) -> ModelSize:
    """Measures OneNet without allocating a tensor or computing a number."""
    with FakeTensorMode():
        features = make_backbone(backbone, weights="none")
        top_down = NECKS[neck](features.feature_info.channels(), CHANNELS)
        model = OneNet(features, CLASSES, neck=top_down)
        operators = {torch.ops.torchvision.deform_conv2d: _deformable_flops}
        with FlopCounterMode(display=False, custom_mapping=operators) as counter:
            model(torch.empty(1, 3, *size_hw))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(parameters / 1e6, counter.get_total_flops() / 2 / 1e9)


def _deformable_flops(feature_shape, weight_shape, *_, out_shape, **__) -> int:
    """Counts a deformable convolution like an ordinary one of these shapes."""
    return conv_flop_count(feature_shape, weight_shape, out_shape)


def padded_side(text: str) -> int:
    """Parses the side of a padded image, in pixels. Raises ArgumentTypeError or ValueError."""
    side = int(text)
    if side <= 0 or side % 32:
        raise argparse.ArgumentTypeError(
            f"{side} is not a positive multiple of 32: give the padded size"
        )
    return side


if __name__ == "__main__":
    sys.exit(run_command(main))
