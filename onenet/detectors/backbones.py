"""Bottom-up feature extractors: timm models at strides 4, 8, 16 and 32 (section 4, "Backbone")."""

import contextlib
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from onenet.errors import UserError
from onenet.system.imports import block_import

with block_import("wandb"):  # timm imports it where it can: half a second, and files in /tmp
    import timm
    from timm.layers import freeze_batch_norm_2d

TIMM_NAMES = {
    "tiny": "test_resnet",  # 0.4 M parameters, for proxies and tests
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
}


def make_backbone(
    name: str, weights: str | dict[str, Tensor] = "none", frozen: bool = False
) -> nn.Module:
    """A module from images [B, 3, H, W] to four maps [B, C_i, H / 2^i, W / 2^i] for i = 2..5.

    H and W are multiples of 32. `.feature_info.channels()` gives the C_i.
    `weights`: `none` (random), a timm tag such as `resnet50.tv_in1k` (fetched or cached), the path
    of a local file, or the state of another such backbone. Raises UserError where they cannot be
    had. `frozen`: BatchNorm keeps its statistics and weights, and the stem and the first stage
    theirs, as in Deformable DETR and Sparse R-CNN.
    """
    model = _filled(name, weights)
    return _freeze(model) if frozen else model


def _filled(name: str, weights: str | dict[str, Tensor]) -> nn.Module:
    architecture = TIMM_NAMES[name]
    model = timm.create_model(architecture, features_only=True, out_indices=(1, 2, 3, 4))
    if weights == "none":
        return model
    from_run = isinstance(weights, dict)
    if from_run or Path(weights).is_file():
        try:
            _fill(model, weights if from_run else timm.models.load_state_dict(weights))
        except Exception as error:
            source = "The backbone of that run" if from_run else f"backbone.weights={weights}"
            raise UserError(
                f"{source} does not fit {architecture}: {_one_line(error)}\n"
                f"Give a state dict of timm's {architecture}, or backbone.weights=none."
            ) from error
        return model
    if weights.partition(".")[0] != architecture or not timm.is_model_pretrained(weights):
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:6])
        raise UserError(
            f"backbone.weights={weights} is neither a file nor a timm tag of {architecture}.\n"
            f"Tags: {tags}. Or give the path of a local file, or none."
        )
    try:
        _check_hub(weights)
        _fill(model, timm.create_model(weights, pretrained=True).state_dict())
        return model
    except Exception as error:  # no network, no such file on the hub, a damaged cache
        raise UserError(
            f"backbone.weights={weights} could not be fetched: {_one_line(error)}\n"
            "Download the file elsewhere and give its path: backbone.weights=/path/to/file "
            "(.safetensors or .pth), or train from scratch: backbone.weights=none."
        ) from error


def _freeze(model: nn.Module) -> nn.Module:
    for name in ("conv1", "bn1", "layer1"):
        getattr(model, name).requires_grad_(False)
    return freeze_batch_norm_2d(model)


def _check_hub(tag: str) -> None:
    """Raises OSError at once if the weights are not cached and the hub does not answer: the hub's
    own client would try again and again for a minute."""
    name = timm.get_pretrained_cfg(tag).hf_hub_id
    cached = any(
        isinstance(try_to_load_from_cache(name, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
    )
    if not cached:
        with contextlib.suppress(HTTPError):  # an answer, whatever it is
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=3).close()


def _fill(model: nn.Module, state: dict) -> None:
    """Fills the model from a classifier's state dict; raises unless the two have the same tensors.

    timm's own loading into a feature extractor is not strict: it would keep random tensors.
    """
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
