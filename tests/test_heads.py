"""Head, cascade and OneNet against hand-written forward passes; backbones.

Run: pytest tests/test_heads.py
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.boxes import grid_points, ltrb_to_xyxy
from onenet.data.normalization import normalize
from onenet.detectors import backbones
from onenet.detectors.backbones import TIMM_NAMES, make_backbone, timm
from onenet.detectors.necks import NECKS
from onenet.detectors.onenet import OneNet
from onenet.errors import UserError
from onenet.heads import CascadeHead
from tests.conftest import seeded

C, K = 6, 3


def make_head(heads: int = 1, **options) -> CascadeHead:
    torch.manual_seed(0)
    return CascadeHead(C, K, heads, **options)


def feature_map(height: int = 5, width: int = 7, images: int = 2) -> Tensor:
    return torch.randn(images, C, height, width, generator=seeded())


def slots(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H·W, C], row by row in a loop."""
    _, _, height, width = maps.shape
    rows = [maps[:, :, y, x] for y in range(height) for x in range(width)]
    return torch.stack(rows, dim=1)


def conv(maps: Tensor, module) -> Tensor:
    return F.conv2d(maps, module.weight, module.bias, padding=1)


def assert_is_read_off(output, feature: Tensor, head: CascadeHead) -> None:
    """The shared convolutions give these logits and boxes for this feature."""
    torch.testing.assert_close(output.class_logits, slots(conv(feature, head.class_conv)))
    ltrb = slots(F.relu(conv(feature, head.box_conv))) * head.box_unit
    points = grid_points(*feature.shape[-2:], head.stride)
    torch.testing.assert_close(output.boxes_xyxy, ltrb_to_xyxy(points, ltrb))
    assert torch.equal(output.points_xy, points)


# --- the head ---


def test_one_head_is_a_convolution_of_the_feature_map_alone():
    head, f0 = make_head(heads=1), feature_map()
    assert head.features[0].weight.shape == (C, C, 3, 3)
    (output,) = head(f0, num_heads=1)
    assert_is_read_off(output, F.relu(conv(f0, head.features[0])), head)


def test_a_cascade_sees_the_feature_map_twice_and_then_beside_the_previous_stage():
    head, f0 = make_head(heads=3), feature_map()
    assert [stage.weight.shape for stage in head.features] == [(C, 2 * C, 3, 3)] * 3
    previous = f0
    outputs = head(f0, num_heads=3)
    assert len(outputs) == 3
    for stage, output in zip(head.features, outputs, strict=True):
        previous = F.relu(conv(torch.cat([f0, previous], dim=1), stage))
        assert_is_read_off(output, previous, head)


@pytest.mark.parametrize("heads", [1, 2])
def test_outside_training_boxes_are_decoded_late_and_the_same(heads):
    head, f0 = make_head(heads), feature_map()
    slots = torch.tensor([3, 30, 3, 0])
    for a, b in zip(head(f0, heads), head.eval()(f0, heads), strict=True):
        assert torch.equal(a.class_logits, b.class_logits)
        assert torch.equal(a.points_xy, b.points_xy)
        assert torch.equal(a.boxes_xyxy[1, slots], b.boxes_at(1, slots))
        assert "boxes_xyxy" not in vars(b), "not computed before it is read"
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)


def test_stages_share_class_and_box_convolution_but_not_their_own():
    names = {name for name, _ in make_head(heads=3).named_parameters()}
    assert names == {
        f"{module}.{what}"
        for module in ("features.0", "features.1", "features.2", "class_conv", "box_conv")
        for what in ("weight", "bias")
    }
    stages = make_head(heads=3).features
    assert not torch.equal(stages[0].weight, stages[1].weight)


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_heads_do_not_depend_on_the_later_ones(count):
    head, f0 = make_head(heads=3), feature_map()
    whole, part = head(f0, num_heads=3), head(f0, num_heads=count)
    assert len(part) == count
    for a, b in zip(whole, part, strict=False):
        assert torch.equal(a.class_logits, b.class_logits)
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 3)])
@pytest.mark.parametrize("heads", [1, 2])
def test_shapes_at_odd_sizes(size, heads):
    outputs = make_head(heads)(feature_map(*size), num_heads=heads)
    for output in outputs:
        assert output.class_logits.shape == (2, size[0] * size[1], K)
        assert output.boxes_xyxy.shape == (2, size[0] * size[1], 4)
        assert output.points_xy.shape == (size[0] * size[1], 2)
        assert (output.boxes_xyxy[..., 2:] >= output.boxes_xyxy[..., :2]).all()


def test_slots_and_grid_points_are_in_the_same_order():
    """A feature that encodes its row and column is output at the slot of that point."""
    head = make_head(stride=8)
    for module in (head.features[0], head.class_conv):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
        for channel in range(2):
            module.weight.data[channel, channel, 1, 1] = 1
    f0 = torch.zeros(1, C, 3, 5)
    f0[0, 0] = torch.arange(5.0)[None, :]
    f0[0, 1] = torch.arange(3.0)[:, None]
    (output,) = head(f0, num_heads=1)
    column_row = output.class_logits[0, :, :2]
    assert torch.equal(8 * column_row + 4, output.points_xy)


def test_box_unit_scales_the_distances_to_the_sides():
    one, four = make_head(box_unit=1.0), make_head(box_unit=4.0)
    f0 = feature_map()
    (a,), (b,) = one(f0, 1), four(f0, 1)
    points = a.points_xy.repeat(1, 2)
    torch.testing.assert_close(4 * (a.boxes_xyxy - points), b.boxes_xyxy - points)
    assert (a.boxes_xyxy != points).any()


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_every_class_starts_with_the_prior_as_its_score(prior):
    head = make_head(heads=2, prior=prior)
    for output in head(torch.zeros(1, C, 4, 4), num_heads=2):
        scores = output.class_logits.sigmoid()
        torch.testing.assert_close(scores, torch.full_like(scores, prior))
    scores = head(0.1 * feature_map(), num_heads=2)[-1].class_logits.sigmoid()
    assert scores.mean().item() == pytest.approx(prior, rel=0.1)


@pytest.mark.parametrize("heads", [1, 3])
def test_gradients_reach_every_parameter_of_the_head(heads):
    head = make_head(heads)
    outputs = head(feature_map(), heads)
    sum(o.class_logits.sum() + o.boxes_xyxy.square().sum() for o in outputs).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# --- backbones ---


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_backbones_give_maps_of_strides_4_to_32(name):
    backbone = make_backbone(name)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    channels = backbone.feature_info.channels()
    expected = [(c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(map_.shape[1:]) for map_ in maps] == expected


def error_of(weights, name: str = "tiny") -> str:
    with pytest.raises(UserError) as raised:
        make_backbone(name, str(weights))
    message = str(raised.value)
    assert len(message.splitlines()) <= 3
    assert f"backbone.weights={weights}" in message
    return message


def classifier(name: str = "tiny") -> dict[str, Tensor]:
    torch.manual_seed(1)
    return timm.create_model(TIMM_NAMES[name]).state_dict()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_local_file_fills_every_tensor_of_the_backbone(tmp_path, wrapped):
    stored = classifier()
    for tensor in stored.values():
        if tensor.is_floating_point():
            tensor.uniform_()  # no value stays at its initial 0 or 1
    torch.save({"state_dict": stored} if wrapped else stored, tmp_path / "weights.pth")
    loaded = make_backbone("tiny", str(tmp_path / "weights.pth")).state_dict()
    assert set(loaded) == {name for name in stored if not name.startswith("fc.")}
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)


def test_a_safetensors_file_is_read_too(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    stored = classifier()
    safetensors.save_file(stored, tmp_path / "weights.safetensors")
    loaded = make_backbone("tiny", str(tmp_path / "weights.safetensors")).state_dict()
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)


def test_a_local_file_of_another_network_is_an_error(tmp_path):
    """Even where timm would silently load only what fits, or nothing."""
    whole = classifier()
    lacking = {k: v for k, v in whole.items() if k != "layer1.0.conv1.weight"}
    files = {
        "other architecture": timm.create_model("resnet18").state_dict(),
        "no network at all": {"foo": torch.zeros(3)},
        "names with a prefix": {f"backbone.{k}": v for k, v in whole.items()},
        "a tensor is missing": lacking,
        "a tensor too many": whole | {"layer4.9.conv1.weight": torch.zeros(3)},
        "one tensor": torch.zeros(3),
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        assert "does not fit test_resnet" in error_of(tmp_path / f"{name}.pth"), name
    (tmp_path / "text.pth").write_text("no weights")
    assert "does not fit test_resnet" in error_of(tmp_path / "text.pth")
    assert "layer1.0.conv1.weight" in error_of(tmp_path / "a tensor is missing.pth")


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_a_frozen_backbone_only_learns_above_its_first_stage(name):
    frozen = make_backbone(name, frozen=True).train()
    plain = make_backbone(name)
    plain.load_state_dict(frozen.state_dict(), strict=False)
    learns = {key.partition(".")[0] for key, p in frozen.named_parameters() if p.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    assert not [key for key, p in frozen.named_parameters() if p.requires_grad and p.ndim == 1]
    images = torch.randn(2, 3, 64, 64)
    for map_, expected in zip(frozen(images), plain.eval()(images), strict=True):
        torch.testing.assert_close(map_, expected, rtol=1e-4, atol=1e-4)


def test_a_backbone_starts_from_anothers_state():
    other = make_backbone("tiny")
    copied = make_backbone("tiny", other.state_dict())
    for one, expected in zip(copied.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, expected)
    with pytest.raises(UserError, match="The backbone of that run does not fit resnet18"):
        make_backbone("resnet18", other.state_dict())


def test_a_missing_file_is_an_error_that_lists_tags():
    message = error_of("/nowhere/weights.pth", "resnet50")
    assert "neither a file nor a timm tag of resnet50" in message
    assert "Tags: resnet50.a1_in1k, " in message


def test_a_tag_of_another_architecture_is_an_error():
    assert "timm tag of resnet18" in error_of("resnet50.tv_in1k", "resnet18")
    assert "timm tag of test_resnet" in error_of("resnet50", "tiny")


def test_without_network_the_error_says_how_to_give_a_local_file(monkeypatch):
    def no_network(*_, **__):
        raise OSError("Could not reach the hub.\nMany more lines.\nAnd more.\n")

    monkeypatch.setattr(backbones, "_check_hub", lambda tag: None)
    pretrained(monkeypatch, no_network)
    message = error_of("resnet50.tv_in1k", "resnet50")
    assert "could not be downloaded: Could not reach the hub." in message
    assert "backbone.weights=/path/to/file" in message
    assert "backbone.weights=none" in message


def pretrained(monkeypatch, make) -> None:
    """`make` replaces timm's creation of a pretrained model."""
    create = timm.create_model
    choose = lambda *a, **k: make(*a, **k) if k.get("pretrained") else create(*a, **k)  # noqa: E731
    monkeypatch.setattr(timm, "create_model", choose)


def test_the_hub_is_not_asked_again_and_again_where_it_does_not_answer(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(backbones, "urlopen", unreachable)
    pretrained(monkeypatch, lambda *_, **__: pytest.fail("its client retries"))
    assert "could not be downloaded: Name or service not known" in error_of("test_resnet.r160_in1k")


def test_a_proxy_that_does_not_answer_costs_no_minute(monkeypatch):
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: None)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    pretrained(monkeypatch, lambda *_, **__: pytest.fail("its client retries"))
    assert "could not be downloaded" in error_of("test_resnet.r160_in1k")


def test_cached_weights_need_no_network_and_fill_every_tensor(monkeypatch):
    torch.manual_seed(1)
    whole = timm.create_model("test_resnet")
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    monkeypatch.setattr(backbones, "urlopen", lambda *_, **__: pytest.fail("not needed"))
    pretrained(monkeypatch, lambda *_, **__: whole)
    loaded = make_backbone("tiny", "test_resnet.r160_in1k").state_dict()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in loaded.items())
    pretrained(monkeypatch, lambda *_, **__: timm.create_model("resnet18"))
    assert "could not be downloaded" in error_of("test_resnet.r160_in1k")


# --- OneNet ---


def make_onenet(heads: int = 1, neck: str = "fpn") -> OneNet:
    torch.manual_seed(0)
    backbone = make_backbone("tiny")
    top_down = NECKS[neck](backbone.feature_info.channels(), 8)
    return OneNet(backbone, K, neck=top_down, heads=heads)


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (64, 64)])
def test_onenet_predicts_at_every_fourth_pixel(size):
    outputs = make_onenet(heads=2).eval()(torch.randn(2, 3, *size, generator=seeded()))
    assert len(outputs) == 2
    for output in outputs:
        assert output.class_logits.shape == (2, size[0] * size[1] // 16, K)
        assert torch.equal(output.points_xy, grid_points(size[0] // 4, size[1] // 4, 4))
        scores = output.class_logits.sigmoid()
        assert scores.median().item() == pytest.approx(0.01, rel=0.5)


def test_onenet_is_backbone_neck_and_head_in_a_row():
    model, images = make_onenet(heads=3).eval(), torch.randn(2, 3, 64, 32, generator=seeded())
    whole = model(images)
    by_hand = model.head(model.neck(model.backbone(images)), 3)
    assert len(whole) == 3
    for a, b in zip(whole, by_hand, strict=True):
        assert torch.equal(a.class_logits, b.class_logits)
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
    (first,) = model(images, num_heads=1)
    assert torch.equal(first.class_logits, whole[0].class_logits)


def test_an_image_is_predicted_alike_alone_and_in_a_batch():
    model, images = make_onenet().eval(), torch.randn(3, 3, 64, 64, generator=seeded())
    (together,) = model(images)
    for i in range(3):
        (alone,) = model(images[i : i + 1])
        torch.testing.assert_close(
            alone.class_logits[0], together.class_logits[i], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            alone.boxes_xyxy[0], together.boxes_xyxy[i], rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("neck", sorted(NECKS))
def test_gradients_reach_every_parameter_of_onenet(heads, neck):
    model = make_onenet(heads, neck)
    for name, parameter in model.named_parameters():
        if "bn" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)  # timm initialises residual branches at 0
    outputs = model(torch.randn(2, 3, 64, 64, generator=seeded()))
    sum(o.class_logits.square().sum() + o.boxes_xyxy.square().sum() for o in outputs).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_normalize_takes_mean_and_deviation_of_imagenet():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).repeat(2, 3, 1, 1)  # [2, 3, 1, 3]
    expected = [
        [(value / 255 - mean) / deviation for value in (0, 128, 255)]
        for mean, deviation in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    torch.testing.assert_close(normalize(images)[1, :, 0], torch.tensor(expected))
