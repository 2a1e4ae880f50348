"""Necks against hand-written forward passes; the deformable convolution against a loop.

Run: pytest tests/test_necks.py
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.detectors.necks import FPN, NECKS, TAPS, ModulatedDeformConv, make_neck
from tests.conftest import seeded

CHANNELS = (3, 5, 7, 9)


def seeded_neck(name: str, channels: int = 6):
    torch.manual_seed(0)
    return NECKS[name](CHANNELS, channels)


def pyramid(height: int, width: int) -> list[Tensor]:
    generator = seeded()
    return [
        torch.randn(2, c, height // stride, width // stride, generator=generator)
        for c, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def conv(maps: Tensor, module) -> Tensor:
    return F.conv2d(maps, module.weight, module.bias, padding=1)


# --- all necks ---


@pytest.mark.parametrize("name", sorted(NECKS))
@pytest.mark.parametrize("size", [(32, 32), (32, 96), (64, 32), (96, 160)])
def test_necks_give_one_map_of_stride_4(name, size):
    neck = seeded_neck(name)
    out = neck(pyramid(*size))
    assert out.shape == (2, neck.channels, size[0] // 4, size[1] // 4)
    assert neck.channels == 6


@pytest.mark.parametrize("name", sorted(NECKS))
def test_gradients_reach_every_parameter_of_the_neck_and_every_map(name):
    neck = seeded_neck(name)
    maps = [map_.requires_grad_() for map_ in pyramid(32, 64)]
    neck(maps).square().sum().backward()
    for tensor in (*neck.parameters(), *maps):
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(NECKS))
def test_necks_work_under_autocast_and_with_channels_last(name):
    """A ReLU flipped by rounding changes gradients far more than rounding does."""
    plain = seeded_neck(name).eval()
    scatter_taps(plain, spread=0.1)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    maps = pyramid(96, 160)
    expected = plain(maps)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fast([map_.contiguous(memory_format=torch.channels_last) for map_ in maps])
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, expected) < 0.02
    direction = torch.randn(expected.shape, generator=seeded(3))
    expected.backward(direction)
    actual.backward(direction.bfloat16())
    for parameter, reference in zip(fast.parameters(), plain.parameters(), strict=True):
        assert relative_error(parameter.grad, reference.grad) < 0.4


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Over the whole, finite tensor."""
    assert actual.isfinite().all()
    return ((actual - expected).norm() / expected.norm()).item()


# --- each neck ---


def test_fpn_equals_a_forward_written_out():
    torch.manual_seed(0)
    neck = FPN(CHANNELS, 6)
    maps = pyramid(64, 96)

    def lateral(level: int) -> Tensor:
        module = neck.laterals[level]
        return F.conv2d(maps[level], module.weight, module.bias)

    def twice(coarse: Tensor) -> Tensor:
        """Each cell becomes four."""
        return coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    p5 = lateral(3)
    p4 = lateral(2) + twice(p5)
    p3 = lateral(1) + twice(p4)
    p2 = lateral(0) + twice(p3)
    torch.testing.assert_close(neck(maps), conv(p2, neck.output))


@pytest.mark.parametrize("name", ["deconv", "deconv_dcn"])
def test_the_deconvolution_path_has_four_two_and_one_times_the_channels(name):
    neck = seeded_neck(name)
    first = [stage[0] for stage in neck.upsamplings]
    assert [(module.in_channels, module.out_channels) for module in first] == [
        (9, 24),
        (24, 12),
        (12, 6),
    ]
    transposed = [stage[3] for stage in neck.upsamplings]
    assert [module.out_channels for module in transposed] == [24, 12, 6]
    assert [module.in_channels for module in neck.laterals] == [7, 5, 3]
    deformable = [isinstance(module, ModulatedDeformConv) for module in first]
    assert deformable == [name == "deconv_dcn"] * 3


@pytest.mark.parametrize(("name", "first_weight"), [("deconv", 1.0), ("deconv_dcn", 0.5)])
def test_the_deconvolution_path_equals_a_forward_written_out(name, first_weight):
    neck = seeded_neck(name, 4).eval()
    maps = pyramid(32, 64)
    top = maps[3]
    for stage, lateral, finer in zip(neck.upsamplings, neck.laterals, maps[2::-1], strict=True):
        first, norm_1, _, up, norm_2, _ = stage
        top = F.relu(norm_1(F.conv2d(top, first_weight * first.weight, padding=1)))
        top = F.relu(norm_2(F.conv_transpose2d(top, up.weight, stride=2, padding=1)))
        top = top + F.conv2d(finer, lateral.weight, lateral.bias)
    torch.testing.assert_close(neck(maps), conv(top, neck.output))


# --- the modulated deformable convolution ---


def make_deformable(in_channels: int = 2, out_channels: int = 3) -> ModulatedDeformConv:
    """In double precision."""
    torch.manual_seed(0)
    return ModulatedDeformConv(in_channels, out_channels).double()


def scatter_taps(module: torch.nn.Module, spread: float) -> None:
    """Gives deformable convolutions offsets and weights that vary over positions and taps."""
    generator = seeded(1)
    for part in module.modules():
        if isinstance(part, ModulatedDeformConv):
            for parameter in part.taps.parameters():
                parameter.data.normal_(0, spread, generator=generator)


def double_map(height: int, width: int, images: int = 2, channels: int = 2) -> Tensor:
    return torch.randn(images, channels, height, width, generator=seeded(2), dtype=torch.float64)


def sample(feature: Tensor, y: float, x: float) -> Tensor:
    """[C, H, W] -> [C]: bilinear in the four cells around (y, x), 0 outside the map."""
    total = feature.new_zeros(len(feature))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < feature.shape[1] and 0 <= column < feature.shape[2]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total = total + weight * feature[:, row, column]
    return total


def convolved_by_hand(feature: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
    """[C, H, W], [27, H, W], [D, C, 3, 3] -> [D, H, W], tap by tap."""
    height, width = feature.shape[1:]
    out = torch.zeros(len(weight), height, width, dtype=feature.dtype)
    for y in range(height):
        for x in range(width):
            for tap in range(TAPS):
                row, column = divmod(tap, 3)
                dy, dx, logit = (taps[i, y, x].item() for i in (2 * tap, 2 * tap + 1, 18 + tap))
                value = sample(feature, y + row - 1 + dy, x + column - 1 + dx)
                out[:, y, x] += weight[:, :, row, column] @ value / (1 + math.exp(-logit))
    return out


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 3)])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_the_deformable_convolution_equals_a_loop_over_taps_and_bilinear_samples(size, spread):
    module, feature = make_deformable(), double_map(*size)
    scatter_taps(module, spread)
    taps = conv(feature, module.taps).detach()
    if spread == 1:
        assert (taps[:, :18].abs() > max(size) + 1).any(), "some taps leave the map"
    expected = [convolved_by_hand(f, t, module.weight) for f, t in zip(feature, taps, strict=True)]
    torch.testing.assert_close(module(feature), torch.stack(expected))


@pytest.mark.parametrize(
    ("first", "border"),
    [(0, (1, 1, 0, 2)), (1, (0, 2, 1, 1))],
    ids=["down", "right"],
)
def test_even_offsets_go_down_and_odd_ones_to_the_right(first, border):
    """Offsets of one cell at full weight give a convolution of the shifted map."""
    module, feature = make_deformable(), double_map(5, 7)
    module.taps.bias.data[first:18:2] = 1
    module.taps.bias.data[18:] = 50
    expected = F.conv2d(F.pad(feature, border), module.weight)
    torch.testing.assert_close(module(feature), expected)


def test_the_deformable_convolution_starts_as_half_a_plain_one():
    module, feature = make_deformable(), double_map(5, 7)
    assert sum(p.numel() for p in module.taps.parameters()) == 27 * (2 * 9 + 1)
    torch.testing.assert_close(module(feature), 0.5 * F.conv2d(feature, module.weight, padding=1))


def test_gradients_of_map_weights_offsets_and_modulation_are_right():
    module, feature = make_deformable(), double_map(3, 4, images=1)
    scatter_taps(module, 0.5)
    parameters = dict(module.named_parameters())

    def forward(feature, *values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, state, feature)

    inputs = [t.detach().requires_grad_() for t in (feature, *parameters.values())]
    assert torch.autograd.gradcheck(forward, inputs)
    forward(*inputs).sum().backward()
    bias = inputs[1 + list(parameters).index("taps.bias")]
    assert bias.grad.all(), "each of the 18 offsets and 9 logits has a gradient"


def test_the_deformable_convolution_is_computed_in_float32_under_autocast():
    """Offsets and map are exact in bfloat16, so only the computation can round."""
    module = make_deformable().float()
    module.taps.bias.data = torch.randn(27, generator=seeded(1)).bfloat16().float()
    feature = double_map(5, 7).bfloat16()
    expected = module(feature.float())
    with torch.autocast("cpu", torch.bfloat16):
        actual = module(feature.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)
    direction = torch.randn(expected.shape, generator=seeded(3))
    gradients = (
        torch.autograd.grad(out, module.parameters(), direction) for out in (actual, expected)
    )
    for low, full in zip(*gradients, strict=True):
        assert relative_error(low, full) < 0.01


# --- initial weights ---


@pytest.mark.parametrize("name", sorted(NECKS))
def test_xavier_draws_every_weight_from_its_own_range(name):
    neck = make_neck(name, CHANNELS, 16, "xavier")
    for parameter in neck.parameters():
        if parameter.dim() > 1:
            fan_out, fan_in = parameter.shape[:2]
            bound = (6 / ((fan_in + fan_out) * parameter[0, 0].numel())) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound


def test_by_default_a_neck_starts_as_its_modules_do():
    torch.manual_seed(3)
    plain = NECKS["deconv_dcn"](CHANNELS, 8).state_dict()
    torch.manual_seed(3)
    state = make_neck("deconv_dcn", CHANNELS, 8).state_dict()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    assert not state["upsamplings.0.0.taps.weight"].any()
