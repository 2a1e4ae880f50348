"""The fused copy for inference gives the outputs of the original, for any network.

Run: pytest tests/test_fusion.py
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from onenet.data.loading import DetectionDataset
from onenet.data.sizes import ImageSize
from onenet.detectors.backbones import TIMM_NAMES, make_backbone, timm
from onenet.detectors.necks import NECKS
from onenet.detectors.onenet import OneNet
from onenet.evaluation.predict import predict
from onenet.ops.fusion import FusedConv, for_inference, fuse
from tests.conftest import Pictures, make_annotations, seeded

SHAPES = [(2, 64, 96), (2, 64, 96), (1, 96, 64), (2, 64, 96), (1, 32, 32), (1, 32, 32), (1, 32, 32)]


@pytest.fixture(params=["fused", "folded only"])
def onednn(request, monkeypatch) -> bool:
    """With oneDNN, as on CPUs, and without, as on GPUs."""
    if request.param == "folded only":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return request.param == "fused" and torch.backends.mkldnn.is_available()


def trained(network: nn.Module) -> nn.Module:
    """Randomizes every BatchNorm, as if after training."""
    for number, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            generator = seeded(number)
            if module.affine:
                module.weight.data.uniform_(-1.5, 1.5, generator=generator)
                module.bias.data.uniform_(-0.5, 0.5, generator=generator)
            if module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network


def kinds(network: nn.Module, *kind: type) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("neck", sorted(NECKS))
@pytest.mark.parametrize(
    "backbone",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "resnet101")) for n in sorted(TIMM_NAMES)],
)
def test_the_copy_of_every_network_answers_like_it(backbone, neck, onednn):
    torch.manual_seed(0)
    features = make_backbone(backbone)
    top_down = NECKS[neck](features.feature_info.channels(), 8)
    model = OneNet(features, 3, neck=top_down, heads=2)
    for parameter in model.neck.parameters():
        if parameter.dim() > 1:  # else all deformable offsets are zero
            nn.init.xavier_uniform_(parameter, generator=seeded())
    trained(model).eval().to(memory_format=torch.channels_last)
    faster = for_inference(model)
    assert kinds(faster, nn.BatchNorm2d) == (3 if neck == "deconv_dcn" else 0)
    assert (kinds(faster, FusedConv) > 0) == onednn
    assert kinds(faster, nn.ReLU) <= (3 if onednn else 1000), "only after deformable convolutions"
    shapes = SHAPES if backbone == "tiny" else SHAPES[:3]
    for count, *size in shapes:  # each weight layout, and changes of it
        images = torch.randn(count, 3, *size, generator=seeded())
        with torch.inference_mode():
            expected, outputs = model(images, num_heads=2), faster(images, num_heads=2)
        for a, b in zip(expected, outputs, strict=True):
            assert_alike(b.class_logits, a.class_logits)
            assert_alike(b.boxes_xyxy, a.boxes_xyxy)


def assert_alike(actual: Tensor, expected: Tensor) -> None:
    """Up to rounding, relative to the largest value."""
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * largest)


def test_the_model_stays_as_it_is_and_can_go_on_training():
    torch.manual_seed(0)
    backbone = make_backbone("tiny")
    neck = NECKS["deconv"](backbone.feature_info.channels(), 8)
    model = OneNet(backbone, 3, neck=neck)
    before = copy.deepcopy(model.state_dict())
    faster = for_inference(model)
    assert not any(module.training for module in faster.modules())
    assert all(module.training for module in model.modules())
    faster(torch.zeros(1, 3, 64, 64))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    (output,) = model(torch.randn(2, 3, 64, 64, generator=seeded()))
    output.class_logits.sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_predict_uses_a_copy():
    torch.manual_seed(0)
    backbone = make_backbone("tiny")
    neck = NECKS["fpn"](backbone.feature_info.channels(), 8)
    model = OneNet(backbone, 3, neck=neck)
    before = copy.deepcopy(model.state_dict())
    source = Pictures(make_annotations([(64, 90), (70, 64)], [[], []]))
    predictions, _ = predict(model, DetectionDataset(source, ImageSize(64, 1.5)), batch=2)
    assert len(predictions.scores)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_detector_is_copied_only():
    detector = nn.Conv2d(3, 4, 1)
    copied = for_inference(detector)
    assert copied is not detector
    assert detector.training
    assert not copied.training


# --- networks that a careless fusion breaks ---


class Network(nn.Module):
    """Runs `forward` on these modules; the input has three channels."""

    def __init__(self, forward, **modules: nn.Module):
        super().__init__()
        self.steps = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def conv(inputs: int = 3, outputs: int = 6, side: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, **{"padding": side // 2, **options})


def norm(channels: int = 6, **options) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


def up(**options) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, **options)


def added_to_what_is_seen_elsewhere(n, x):
    first = n.a(x)
    view = first.view_as(first)
    first += n.b(x)
    return first * view


def rectified_in_place_between(n, x):
    first = n.a(x)
    second = n.b(first)
    return second + torch.relu_(first)


# name: network, and its fused convolutions, norms and ReLUs after fusion
NETWORKS = {
    "a convolution called twice": (
        Network(lambda n, x: n.norm(n.a(x)) + n.a(2 * x), a=conv(), norm=norm()),
        (0, 1, 0),
    ),
    "a norm called twice": (
        Network(lambda n, x: n.norm(n.a(x)) + n.norm(n.b(x)), a=conv(), b=conv(), norm=norm()),
        (2, 0, 0),
    ),
    "beside the norm another branch": (
        Network(lambda n, x: n.norm(y := n.a(x)) + y, a=conv(), norm=norm()),
        (1, 1, 0),
    ),
    "beside the ReLU another branch": (
        Network(lambda n, x: (y := n.a(x)).sigmoid() * n.relu(y), a=conv(), relu=nn.ReLU()),
        (1, 0, 1),
    ),
    "a sum of two convolutions": (
        Network(lambda n, x: n.relu(n.a(x) + n.b(x)), a=conv(), b=conv(), relu=nn.ReLU(True)),
        (2, 0, 0),
    ),
    "a convolution and itself": (Network(lambda n, x: (y := n.a(x)) + y, a=conv()), (1, 0, 0)),
    "a sum with a number": (Network(lambda n, x: n.a(x) + 1.0, a=conv()), (1, 0, 0)),
    "a sum that spreads a pixel": (
        Network(lambda n, x: n.a(x) + n.b(x.mean((2, 3), keepdim=True)), a=conv(), b=conv(side=1)),
        (2, 0, 0),
    ),
    "a sum that spreads an image": (
        Network(lambda n, x: n.b(x[:1]) + n.a(x), a=conv(), b=conv()),
        (2, 0, 0),
    ),
    "a sum with the image": (Network(lambda n, x: x + n.a(x), a=conv(outputs=3)), (1, 0, 0)),
    "a sum with a factor": (
        Network(lambda n, x: torch.add(x, n.a(x), alpha=2), a=conv(outputs=3)),
        (1, 0, 0),
    ),
    "written into between": (Network(rectified_in_place_between, a=conv(), b=conv(6)), (2, 0, 0)),
    "written into, seen elsewhere": (  # tracing changes the output
        Network(added_to_what_is_seen_elsewhere, a=conv(), b=conv()),
        (0, 0, 0),
    ),
    "identities": (
        Network(
            lambda n, x: n.relu(n.none(n.norm(n.a(x)))) + n.none(x.mean()),
            **{"a": conv(), "norm": norm(), "none": nn.Identity(), "relu": nn.ReLU()},
        ),
        (1, 0, 0),
    ),
    "another activation": (
        Network(lambda n, x: n.six(n.norm(n.a(x))), a=conv(), norm=norm(), six=nn.ReLU6()),
        (1, 0, 0),
    ),
    "statistics of the batch": (
        Network(lambda n, x: n.norm(n.a(x)), a=conv(), norm=norm(track_running_stats=False)),
        (1, 1, 0),
    ),
    "a norm without scale": (
        Network(lambda n, x: n.norm(n.a(x)), a=conv(bias=False), norm=norm(affine=False)),
        (1, 0, 0),
    ),
    "groups, strides, dilation": (
        Network(
            lambda n, x: n.norm(n.b(n.a(x))),
            a=conv(3, 6, 5, groups=3, stride=(2, 1)),
            b=conv(6, 6, 3, groups=6, dilation=2, padding=(2, 3)),
            norm=norm(),
        ),
        (2, 0, 0),
    ),
    "other paddings": (
        Network(
            lambda n, x: n.norm(n.b(n.a(x))),
            **{"a": conv(padding="same"), "b": conv(6, padding_mode="reflect"), "norm": norm()},
        ),
        (0, 1, 0),
    ),
    "transposed, asked for a size": (
        Network(
            lambda n, x: n.relu(n.norm(n.a(y := n.down(x)))) + n.b(y, output_size=x.shape[-2:]),
            **{"down": conv(stride=2), "a": up(bias=False), "b": up(), "norm": norm()},
            relu=nn.ReLU(),
        ),
        (2, 0, 0),
    ),
    "transposed, output padded": (
        Network(
            lambda n, x: n.relu(n.norm(n.a(n.down(x)))),
            down=conv(stride=2),
            a=nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, output_padding=1),
            norm=norm(9),
            relu=nn.ReLU(),
        ),
        (2, 0, 0),
    ),
    "transposed in groups": (
        Network(
            lambda n, x: n.norm(n.a(n.down(x))), down=conv(stride=2), a=up(groups=2), norm=norm()
        ),
        (1, 1, 0),
    ),
    "depends on a value": (
        Network(lambda n, x: n.a(x) if x.mean() > 0 else n.a(-x), a=conv()),
        (0, 0, 0),
    ),
}


@pytest.mark.filterwarnings("ignore:The network is not fused")
@pytest.mark.parametrize("name", NETWORKS)
def test_unusual_networks_answer_alike(name, onednn):
    network, expected = NETWORKS[name]
    network = trained(copy.deepcopy(network)).eval()
    faster = fuse(copy.deepcopy(network))
    if onednn:
        assert tuple(kinds(faster, k) for k in (FusedConv, nn.BatchNorm2d, nn.ReLU)) == expected
    for seed in range(3):  # the weight layout changes after the first call
        images = torch.randn(2, 3, 64, 96, generator=seeded(seed))
        with torch.inference_mode():
            assert_alike(faster(images), network(images))


def test_a_network_that_stays_as_it_is_says_so():
    network, _ = NETWORKS["depends on a value"]
    with pytest.warns(UserWarning, match="not fused for inference: TraceError"):
        assert fuse(network.eval()) is network
    network, _ = NETWORKS["written into, seen elsewhere"]
    with pytest.warns(UserWarning, match="not fused for inference: the fused network gives"):
        assert fuse(network.eval()) is network


@pytest.mark.parametrize("name", ["test_efficientnet", "test_byobnet", "densenet121", "repvgg_a0"])
def test_other_backbones_of_timm_answer_alike(name):
    """BatchNorm with an activation inside, before the convolution, or in parallel."""
    torch.manual_seed(0)
    features = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    network = nn.Sequential(features, NECKS["fpn"](features.feature_info.channels(), 8))
    faster = fuse(copy.deepcopy(trained(network).eval()))
    assert kinds(faster, FusedConv)
    for seed in range(3):
        images = torch.randn(2, 3, 64, 64, generator=seeded(seed))
        with torch.inference_mode():
            assert_alike(faster(images), network(images))
