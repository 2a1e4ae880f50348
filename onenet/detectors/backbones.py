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
    "tiny": "test_resnet",  # 0.4 M parameters, for the proxy and tests
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
}


def make_backbone(
    name: str, weights: str | dict[str, Tensor] = "none", frozen: bool = False
) -> nn.Module:
    """Returns a module that maps images [B, 3, H, W] to four maps [B, C_i, H / 2^i, W / 2^i] for
    i = 2..5.

    H and W are multiples of 32. `.feature_info.channels()` returns the C_i.
    `weights`: `none` (random), a timm tag such as `resnet50.tv_in1k` (cached or downloaded), the
    path of a local file, or the state dict of another such backbone. Raises UserError if they
    cannot be loaded. `frozen`: the statistics and weights of BatchNorm and the weights of the stem
    and the first stage do not change, as in Deformable DETR and Sparse R-CNN.
    """
    model = _create(name, weights)
    return _freeze(model) if frozen else model


def _create(name: str, weights: str | dict[str, Tensor]) -> nn.Module:
    architecture = TIMM_NAMES[name]
    model = timm.create_model(architecture, features_only=True, out_indices=(1, 2, 3, 4))
    if weights == "none":
        return model
    from_run = isinstance(weights, dict)
    if from_run or Path(weights).is_file():
        try:
            state = weights if from_run else timm.models.load_state_dict(weights, weights_only=True)
            _load_classifier(model, state)
        except Exception as error:
            source = "The backbone of that run" if from_run else f"backbone.weights={weights}"
            raise UserError(
                f"{source} does not fit {architecture}: {_one_line(error)}\n"
                f"Use a state dict of timm's {architecture}, or backbone.weights=none."
            ) from error
        return model
    if weights.partition(".")[0] != architecture or not timm.is_model_pretrained(weights):
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:6])
        raise UserError(
            f"backbone.weights={weights} is neither a file nor a timm tag of {architecture}.\n"
            f"Tags: {tags}. Or use the path of a local file, or none."
        )
    try:
        _check_hub(weights)
        _load_classifier(model, timm.create_model(weights, pretrained=True).state_dict())
        return model
    except Exception as error:  # no network, no such file on the hub, a corrupt cache
        raise UserError(
            f"backbone.weights={weights} could not be downloaded: {_one_line(error)}\n"
            "Download the file elsewhere and set its path, backbone.weights=/path/to/file "
            "(.safetensors or .pth), or train from scratch, backbone.weights=none."
        ) from error


def _freeze(model: nn.Module) -> nn.Module:
    for name in ("conv1", "bn1", "layer1"):
        getattr(model, name).requires_grad_(False)
    return freeze_batch_norm_2d(model)


def _check_hub(tag: str) -> None:
    """Raises OSError at once if the weights are not cached and the hub does not respond: the hub's
    own client would retry for a minute."""
    name = timm.get_pretrained_cfg(tag).hf_hub_id
    cached = any(
        isinstance(try_to_load_from_cache(name, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
    )
    if not cached:
        with contextlib.suppress(HTTPError):  # any response will do
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=3).close()


def _load_classifier(model: nn.Module, state: dict) -> None:
    """Loads a classifier's state dict into the model; raises if a tensor is missing, unexpected or
    of another shape.

    timm's own loading into a feature extractor is not strict: it would leave tensors random.
    """
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
