"""Checkpoints of the released code (PeizeSun/OneNet, built on detectron2), by our names."""

from pathlib import Path

import torch
from torch import Tensor

from onenet.errors import UserError

HEAD_PARTS = {"feat1": "features.0", "cls_score": "class_conv", "ltrb_pred": "box_conv"}
UPSAMPLING_PARTS = {
    **{"dcn": "0", "conv": "0", "dcn_offset": "0.taps", "dcn_bn": "1", "bn": "1"},
    **{"up_sample": "3", "up_bn": "4"},
}


def read_state(file: Path) -> dict[str, Tensor]:
    """Returns the state dict of a checkpoint. Raises UserError; never runs code from the file."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # any type: the file may hold any bytes
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"{file} cannot be read as a checkpoint: {reason}") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    is_state = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not state or not is_state:
        raise UserError(f"{file} is not a checkpoint: it has no state dict of tensors in `model`.")
    return state


def backbone_weights(file: Path) -> dict[str, Tensor]:
    """Returns the backbone's part of a checkpoint, by our names. Raises UserError."""
    named = {our_name(key): tensor for key, tensor in read_state(file).items()}
    prefix = "backbone."
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def our_name(key: str) -> str:
    """Returns our name of a parameter of the released network; unknown ones keep theirs."""
    kind, *rest = key.split(".")
    if kind == "backbone" and len(rest) > 2:
        return _backbone_name(rest)
    if kind == "head" and rest and rest[0] in HEAD_PARTS:
        return ".".join(["head", HEAD_PARTS[rest[0]], *rest[1:]])
    if kind == "head" and rest[:1] == ["deconv"] and len(rest) > 2:
        return _neck_name(rest[1:]) or key
    return key


def _backbone_name(parts: list[str]) -> str:
    if parts[0] == "stem":
        return "backbone." + ".".join(parts[1:]).replace("conv1.norm", "bn1")
    stage, block, part, *last = parts
    is_norm = last[:1] == ["norm"]
    if part == "shortcut":
        part = f"downsample.{int(is_norm)}"
    elif is_norm:
        part = part.replace("conv", "bn")
    number = stage.removeprefix("res")
    layer = f"layer{int(number) - 1}" if number.isdecimal() else stage
    return ".".join(["backbone", layer, block, part, *last[is_norm:]])


def _neck_name(parts: list[str]) -> str | None:
    part, *last = parts
    if part == "output_conv":
        return ".".join(["neck.output", *last])
    index = part[-1:]
    if index.isdecimal() and part.startswith("lateral_conv"):
        return ".".join(["neck.laterals", str(int(index) - 1), *last])
    if index.isdecimal() and part.startswith("deconv") and last[0] in UPSAMPLING_PARTS:
        layer = UPSAMPLING_PARTS[last[0]]
        return ".".join(["neck.upsamplings", str(int(index) - 1), layer, *last[1:]])
    return None


def is_folded_bias(name: str) -> bool:
    """Whether this is the bias of a plain convolution before BatchNorm, which ours has not."""
    return name.startswith("neck.upsamplings.") and name.endswith(".0.bias")


def fold_biases(weights: dict[str, Tensor]) -> None:
    """Moves the biases that ours has not into the running means of the BatchNorm behind them."""
    for name in filter(is_folded_bias, [*weights]):
        mean = name.replace(".0.bias", ".1.running_mean")
        if mean in weights:
            weights[mean] = weights[mean] - weights.pop(name)
