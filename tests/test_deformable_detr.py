"""Deformable DETR against scalar loops and hand-written formulas, and the whole model.

Run: pytest tests/test_deformable_detr.py
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from onenet.assigners import make_matcher
from onenet.costs import MatchingCost
from onenet.detectors.backbones import make_backbone
from onenet.detectors.deformable_detr.attention import (
    LevelGeometry,
    MultiScaleDeformableAttention,
    deformable_sampling,
    sine_encoding,
)
from onenet.detectors.deformable_detr.model import (
    UNUSABLE_LOGIT,
    DeformableDETR,
    MaskedGroupNorm,
    MultiScaleMaps,
    Proposals,
    base_proposals,
)
from onenet.detectors.deformable_detr.transformer import Encoder, LearnedQueries, PredictionHead
from onenet.losses import DetectionLoss
from onenet.structures import HeadOutput
from tests.conftest import make_target, random_target, seeded

K = 3
VARIANTS = {
    "plain": {},
    "refine": {"refine": True},
    "two_stage": {"refine": True, "two_stage": True},
}
TINY = {
    "dim": 16,
    "attention_heads": 2,
    "points": 2,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "feedforward": 24,
    "queries": 10,
    "levels": 4,
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_model(variant: str = "plain", backbone: nn.Module | None = None, **options):
    torch.manual_seed(0)
    options = {**TINY, **VARIANTS[variant], **options}
    return DeformableDETR(backbone or make_backbone("tiny"), K, **options)


def shaken(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Perturbs every parameter, so that none is zero."""
    generator = seeded(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def images_of(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=seeded(seed))


def make_geometry(sizes_hw, padded_hw, strides=(8, 16)) -> LevelGeometry:
    shapes = [tuple(math.ceil(side / stride) for side in padded_hw) for stride in strides]
    return LevelGeometry(shapes, strides, torch.tensor(sizes_hw))


class Patches(nn.Module):
    """A stand-in backbone: one convolution per level; cells do not see their neighbours."""

    def __init__(self):
        super().__init__()
        self.feature_info = SimpleNamespace(channels=lambda: [4, 6, 8, 10])
        self.levels = nn.ModuleList(
            nn.Conv2d(3, width, stride, stride=stride)
            for width, stride in zip(self.feature_info.channels(), (4, 8, 16, 32), strict=True)
        )
        for conv in self.levels:
            nn.init.constant_(conv.bias, 3.0)  # the value of padding

    def forward(self, images: Tensor) -> list[Tensor]:
        return [conv(images) for conv in self.levels]


# --- attention ---


def bilinear(rows: list, y: float, x: float) -> float:
    """The value of a map at cell coordinates; cell (0, 0) has its centre at (0, 0)."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(rows) and 0 <= column < len(rows[0]):
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * rows[row][column]
    return total


def sampled_by_hand(values: Tensor, shapes_hw, locations: Tensor, weights: Tensor) -> Tensor:
    images, queries, heads, levels, points, _ = locations.shape
    depth = values.shape[2] // heads
    answer = torch.zeros(images, queries, heads * depth, dtype=values.dtype)
    first = 0
    for level, (height, width) in enumerate(shapes_hw):
        maps = values[:, first : first + height * width].unflatten(1, (height, width))
        first += height * width
        for image in range(images):
            for channel in range(heads * depth):
                head, rows = channel // depth, maps[image, :, :, channel].tolist()
                for query in range(queries):
                    for point in range(points):
                        place = image, query, head, level, point
                        x, y = locations[place].tolist()
                        value = bilinear(rows, y * height - 0.5, x * width - 0.5)
                        answer[image, query, channel] += weights[place] * value
    return answer


def sampling_case(dtype=torch.float32, shapes_hw=((3, 4), (2, 2), (1, 3))):
    """2 images, 3 queries, 2 heads of 2 channels, 2 points up to 0.3 maps outside."""
    generator = seeded()
    positions = sum(height * width for height, width in shapes_hw)
    values = torch.randn(2, positions, 4, generator=generator, dtype=dtype)
    shape = (2, 3, 2, len(shapes_hw), 2)
    locations = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(shape, generator=generator, dtype=dtype)
    return values, shapes_hw, locations, weights


def test_sampling_is_the_weighted_sum_of_bilinear_samples():
    case = sampling_case()
    torch.testing.assert_close(deformable_sampling(*case), sampled_by_hand(*case))


@pytest.mark.parametrize("place", [0.0, 1.0, -0.125, 1.125, 0.125, 0.5, -5.0, 7.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_sampling_at_borders_and_centres_of_cells(place, axis):
    values, shapes_hw, locations, weights = sampling_case(shapes_hw=((4, 4), (1, 1)))
    locations[..., axis] = place
    case = values, shapes_hw, locations, weights
    torch.testing.assert_close(deformable_sampling(*case), sampled_by_hand(*case))


def test_gradients_of_the_sampling():
    values, shapes_hw, locations, weights = sampling_case(torch.float64)
    inputs = [t.requires_grad_() for t in (values, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_sampling(v, shapes_hw, p, w), inputs)


def test_heads_start_in_different_directions_with_equal_weights():
    attention = MultiScaleDeformableAttention(16, heads=8, levels=2, points=3)
    queries = torch.randn(1, 5, 16, generator=seeded())
    geometry = make_geometry([(32, 32)], (32, 32))
    references = torch.full((1, 5, 2), 0.5)
    moved = attention.sampling_locations(queries, references, geometry) - 0.5
    cells = moved * geometry.cells_wh[:, None]
    circle = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, (x, y) in enumerate(circle):
        for n in range(3):
            expected = torch.tensor([x * (n + 1.0), y * (n + 1.0)]).expand(1, 5, 2, 2)
            torch.testing.assert_close(cells[:, :, head, :, n], expected)
    assert not attention.attention_weights(queries).any()


def test_offsets_are_cells_around_points_and_shares_of_boxes():
    """Points by equation 3, boxes by appendix A.4, in an image smaller than its maps."""
    attention = shaken(MultiScaleDeformableAttention(8, heads=2, levels=2, points=4))
    geometry = make_geometry([(32, 20), (24, 48)], (32, 64))
    queries = torch.randn(2, 3, 8, generator=seeded())
    boxes = torch.rand(2, 3, 4, generator=seeded(1))
    offsets = attention.sampling_offsets(queries).unflatten(2, (2, 2, 4, 2))
    of_points = attention.sampling_locations(queries, boxes[..., :2], geometry)
    of_boxes = attention.sampling_locations(queries, boxes, geometry)
    for image, (height, width) in enumerate([(32, 20), (24, 48)]):
        for level, (rows, columns) in enumerate([(4, 8), (2, 4)]):
            ratio = torch.tensor([width / 64, height / 32])
            for query in range(3):
                offset = offsets[image, query, :, level]
                center, size = boxes[image, query].chunk(2)
                torch.testing.assert_close(
                    of_points[image, query, :, level],
                    center * ratio + offset / torch.tensor([columns, rows]),
                )
                torch.testing.assert_close(
                    of_boxes[image, query, :, level],
                    (center + offset / 4 * size / 2) * ratio,
                )


@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_is_equation_3(coordinates):
    attention = shaken(MultiScaleDeformableAttention(8, heads=2, levels=2, points=2))
    geometry = make_geometry([(20, 32), (32, 20)], (32, 32))
    tokens = torch.randn(2, 20, 8, generator=seeded())
    queries = torch.randn(2, 3, 8, generator=seeded(1))
    references = torch.rand(2, 3, coordinates, generator=seeded(2))
    values = attention.value_projection(tokens) * ~geometry.padding[..., None]
    weights = attention.attention_weights(queries).view(2, 3, 2, 4).softmax(-1)
    locations = attention.sampling_locations(queries, references, geometry)
    by_hand = sampled_by_hand(values, geometry.shapes_hw, locations, weights.view(2, 3, 2, 2, 2))
    expected = attention.output_projection(by_hand)
    torch.testing.assert_close(attention(queries, references, tokens, geometry), expected)


def test_attention_does_not_see_padding():
    attention = shaken(MultiScaleDeformableAttention(8, heads=2, levels=2, points=2))
    geometry = make_geometry([(20, 32), (32, 20)], (32, 32))
    tokens = torch.randn(2, 20, 8, generator=seeded())
    queries = torch.randn(2, 3, 8, generator=seeded(1))
    references = torch.rand(2, 3, 2, generator=seeded(2))
    other = tokens.masked_fill(geometry.padding[..., None], 100.0)
    assert geometry.padding.any()
    assert torch.equal(
        attention(queries, references, tokens, geometry),
        attention(queries, references, other, geometry),
    )


# --- geometry, positions and maps ---


def test_geometry_by_hand():
    sizes = [(20, 33), (32, 64)]
    geometry = make_geometry(sizes, (32, 64), strides=(8, 16, 32, 64))
    assert geometry.shapes_hw == [(4, 8), (2, 4), (1, 2), (1, 1)]
    for image, (height, width) in enumerate(sizes):
        position = 0
        for level, stride in enumerate((8, 16, 32, 64)):
            rows, columns = geometry.shapes_hw[level]
            ratio = geometry.valid_ratios[image, level].tolist()
            assert ratio == pytest.approx([width / (columns * stride), height / (rows * stride)])
            for row in range(rows):
                for column in range(columns):
                    point = [(column + 0.5) * stride, (row + 0.5) * stride]
                    share = [point[0] / width, point[1] / height]
                    assert geometry.points_xy[position].tolist() == point
                    reference = geometry.reference_points[image, position]
                    assert reference.tolist() == pytest.approx(share)
                    outside = row * stride >= height or column * stride >= width
                    assert geometry.padding[image, position].item() == outside
                    position += 1


def test_positions_are_encoded_by_the_formula():
    coordinates = torch.rand(4, 3, generator=seeded())
    encoding = sine_encoding(coordinates, features=6)
    assert encoding.shape == (4, 18)
    for i in range(4):
        for j in range(18):
            angle = 2 * math.pi * coordinates[i, j // 6].item()
            angle /= 10000 ** (2 * (j % 6 // 2) / 6)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert encoding[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_the_encoder_adds_y_then_x_and_the_level():
    geometry = make_geometry([(20, 33)], (32, 64))
    encoder = Encoder(layers=1, dim=8, heads=2, levels=2, points=1, hidden=8, dropout=0.0)
    positions = encoder.positions(geometry)
    y_x = geometry.reference_points.flip(-1)
    places = torch.cat([sine_encoding(y_x[..., :1], 4), sine_encoding(y_x[..., 1:], 4)], dim=-1)
    level = [0] * 32 + [1] * 8
    torch.testing.assert_close(positions, places + encoder.level_embedding[level])


def test_masked_group_norm_is_group_norm_of_the_image_alone():
    norm = shaken(MaskedGroupNorm(2, 6))
    maps = 5 + torch.randn(2, 6, 5, 4, generator=seeded())
    valid = torch.zeros(2, 5, 4, dtype=torch.bool)
    valid[0, :3, :2] = True
    valid[1] = True
    answer, plain = norm(maps, valid), super(MaskedGroupNorm, norm).forward
    torch.testing.assert_close(answer[:1, :, :3, :2], plain(maps[:1, :, :3, :2]))
    torch.testing.assert_close(answer[1:], plain(maps[1:]))
    assert not answer[0, :, 3:].any()
    assert not answer[0, :, :, 2:].any()


@pytest.mark.parametrize(("finest", "levels"), [(4, 4), (4, 6), (8, 4), (16, 2), (32, 1), (32, 3)])
def test_levels_start_at_the_finest_stride_and_halve(finest, levels):
    pyramid = MultiScaleMaps([4, 6, 8, 10], 12, levels, finest)
    maps = Patches()(images_of(2, 64, 96))
    tokens, geometry = pyramid(maps, torch.tensor([[64, 96], [50, 40]]))
    strides = [finest * 2**level for level in range(levels)]
    shapes = [(math.ceil(64 / s), math.ceil(96 / s)) for s in strides]
    assert geometry.strides == strides
    assert geometry.shapes_hw == shapes
    assert tokens.shape == (2, sum(h * w for h, w in shapes), 12)
    assert not tokens[geometry.padding].any()
    assert len(pyramid.coarser) == levels - sum(s <= 32 for s in strides)


# --- heads, queries and proposals ---


def test_boxes_are_offsets_from_references_behind_the_inverse_sigmoid():
    head = shaken(PredictionHead(8, K, prior=0.01, size_bias=-2.0))
    features = torch.randn(2, 5, 8, generator=seeded())
    boxes = torch.rand(2, 5, 4, generator=seeded(1)) * 0.8 + 0.1
    offsets = head.box(features)
    odds = torch.log(boxes / (1 - boxes))
    torch.testing.assert_close(head.boxes(features, boxes), (offsets + odds).sigmoid())
    odds[..., 2:] = 0
    torch.testing.assert_close(head.boxes(features, boxes[..., :2]), (offsets + odds).sigmoid())


def test_references_at_the_border_give_finite_boxes():
    head = shaken(PredictionHead(8, K, prior=0.01, size_bias=-2.0))
    references = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])
    assert head.boxes(torch.zeros(1, 1, 8), references).isfinite().all()


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_every_class_starts_with_the_prior(prior):
    head = PredictionHead(8, K, prior, size_bias=-2.0)
    scores = head.class_logits(torch.zeros(1, 2, 8)).sigmoid()
    torch.testing.assert_close(scores, torch.full((1, 2, K), prior))


def test_boxes_start_at_the_references_with_an_eighth_of_the_image():
    for variant in ("plain", "refine"):
        outputs = make_model(variant)(images_of(1, 32, 64))
        for output in outputs:
            sides = output.boxes_xyxy[..., 2:] - output.boxes_xyxy[..., :2]
            shares = torch.sigmoid(torch.tensor(-2.0)) * torch.tensor([64.0, 32.0])
            torch.testing.assert_close(sides, shares.expand_as(sides))
            torch.testing.assert_close(output.boxes_xyxy, outputs[0].boxes_xyxy)


def test_learned_queries_are_alike_for_all_images():
    queries = LearnedQueries(5, 8)(3)
    assert queries.usable is None
    for part, width in ((queries.content, 8), (queries.position, 8), (queries.references, 2)):
        assert part.shape == (3, 5, width)
        assert torch.equal(part[0], part[2])
    assert not torch.equal(queries.content, queries.position)


def test_base_proposals_by_brute_force():
    sizes, strides = [(10, 60), (64, 33), (3, 5)], (8, 16, 32, 64, 128, 256)
    geometry = make_geometry(sizes, (64, 64), strides)
    boxes, usable = base_proposals(geometry)
    for image, (height, width) in enumerate(sizes):
        position = 0
        for level, (rows, columns) in enumerate(geometry.shapes_hw):
            for row in range(rows):
                for column in range(columns):
                    y, x = row * strides[level], column * strides[level]
                    half = strides[level] / 2
                    side = 0.05 * 2**level
                    box = [(x + half) / width, (y + half) / height, side, side]
                    assert boxes[image, position].tolist() == pytest.approx(box)
                    used = y < height and x < width and all(0.01 < c < 0.99 for c in box)
                    assert usable[image, position].item() == used
                    position += 1
    assert usable[0].any()
    assert not usable[2].any(), "image 2 has none"


def test_the_best_positions_become_queries():
    stage = shaken(Proposals(8, queries=4))
    head = shaken(PredictionHead(8, K, prior=0.01, size_bias=0.0), 0.5)
    geometry = make_geometry([(32, 64), (20, 33)], (32, 64))
    memory = torch.randn(2, 40, 8, generator=seeded())
    logits, boxes, queries = stage(memory, geometry, head)
    starts, usable = base_proposals(geometry)
    features = stage.memory_norm(stage.memory_projection(memory))
    for image in range(2):
        scores = []
        for position in range(40):
            at = features[image : image + 1, position : position + 1]
            if usable[image, position]:
                box = head.boxes(at, starts[image : image + 1, position : position + 1])
                torch.testing.assert_close(boxes[image, position], box[0, 0])
                torch.testing.assert_close(logits[image, position], head.classes(at)[0, 0])
            else:
                assert boxes[image, position].tolist() == [0.5] * 4
                assert logits[image, position].tolist() == [UNUSABLE_LOGIT] * K
            scores.append(logits[image, position].max().item())
        best = sorted(range(40), key=lambda position: -scores[position])[:4]
        assert torch.equal(queries.references[image], boxes[image, best])
        assert queries.usable[image].all()
    encoding = torch.cat([sine_encoding(c, 4) for c in queries.references.split(1, dim=2)], dim=2)
    projected = stage.query_norm(stage.query_projection(encoding))
    torch.testing.assert_close(torch.cat([queries.position, queries.content], 2), projected)
    assert not queries.references.requires_grad


def test_positions_that_are_not_used_have_no_gradient():
    stage = Proposals(8, queries=4)
    head = shaken(PredictionHead(8, K, prior=0.01, size_bias=0.0))
    geometry = make_geometry([(20, 33)], (32, 64))
    memory = torch.randn(1, 40, 8, generator=seeded(), requires_grad=True)
    logits, boxes, _ = stage(memory, geometry, head)
    (logits.sum() + boxes.sum()).backward()
    usable = base_proposals(geometry)[1]
    assert not memory.grad[~usable].any()
    assert memory.grad[usable].any(dim=1).all()


# --- the model ---


@every_variant
@pytest.mark.parametrize("size", [(32, 32), (32, 96), (96, 64)])
def test_one_output_a_decoder_layer_in_training_and_one_in_eval(variant, size):
    model, images = make_model(variant), images_of(2, *size)
    positions = sum(math.ceil(size[0] / s) * math.ceil(size[1] / s) for s in (8, 16, 32, 64))
    counts = [positions] * (variant == "two_stage") + [10] * 3
    for expected in (counts, [10]):
        outputs = model(images, num_heads=1)
        model.eval()
        assert len(outputs) == len(expected)
        for count, output in zip(expected, outputs, strict=True):
            assert isinstance(output, HeadOutput)
            assert output.class_logits.shape == (2, count, K)
            assert output.boxes_xyxy.shape == (2, count, 4)
            assert output.points_xy.shape == (count, 2)
            assert output.points_xy.isnan().all() == (count == 10)
            assert (output.boxes_xyxy[..., 2:] >= output.boxes_xyxy[..., :2]).all()


def test_fewer_positions_than_queries():
    model = shaken(make_model("two_stage", queries=50)).eval()
    (output,) = model(images_of(2, 32, 32), torch.tensor([[32, 32], [9, 9]]))
    used = output.class_logits > UNUSABLE_LOGIT
    assert output.class_logits.shape == (2, 16 + 4 + 1 + 1, K)
    assert used[0].sum() > used[1].sum() > 0
    assert output.boxes_xyxy.isfinite().all()


def test_an_image_without_any_usable_proposal():
    outputs = make_model("two_stage")(images_of(2, 32, 32), torch.tensor([[3, 3], [2, 4]]))
    for output in outputs:
        assert (output.class_logits == UNUSABLE_LOGIT).all()
        assert output.boxes_xyxy.isfinite().all()


@every_variant
def test_the_same_answer_alone_and_beside_a_larger_image(variant):
    """The backbone does not see padding. Shapes differ; sizes are not stride multiples."""
    model = shaken(make_model(variant, Patches(), encoder_layers=2)).eval()
    small, large = images_of(1, 64, 96), images_of(1, 128, 160, seed=1)
    size = torch.tensor([[37, 70]])
    small[:, :, 37:] = 0
    small[:, :, :, 70:] = 0
    padded = torch.zeros_like(large)
    padded[:, :, :64, :96] = small
    (alone,) = model(small, size)
    together = torch.cat([size, torch.tensor([[128, 160]])])
    (batch,) = model(torch.cat([padded, large]), together)
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(batch.class_logits[:1], alone.class_logits, **close)
    torch.testing.assert_close(batch.boxes_xyxy[:1], alone.boxes_xyxy, **close)
    (large_alone,) = model(large)
    torch.testing.assert_close(batch.class_logits[1:], large_alone.class_logits, **close)
    torch.testing.assert_close(batch.boxes_xyxy[1:], large_alone.boxes_xyxy, **close)
    assert (alone.class_logits > UNUSABLE_LOGIT).all()


def test_queries_that_are_not_used_change_nothing():
    """Fewer usable positions than queries; the batch has more unused queries."""
    model = shaken(make_model("two_stage", Patches(), queries=60)).eval()
    small, large = images_of(1, 32, 64), images_of(1, 64, 96, seed=1)
    padded = torch.zeros_like(large)
    padded[:, :, :32, :64] = small
    (alone,) = model(small)
    (batch,) = model(torch.cat([padded, large]), torch.tensor([[32, 64], [64, 96]]))
    used = int((alone.class_logits[0, :, 0] > UNUSABLE_LOGIT).sum())
    assert 0 < used < alone.class_logits.shape[1] < batch.class_logits.shape[1]
    assert (batch.class_logits[0, used:] == UNUSABLE_LOGIT).all()
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(batch.class_logits[0, :used], alone.class_logits[0, :used], **close)
    torch.testing.assert_close(batch.boxes_xyxy[0, :used], alone.boxes_xyxy[0, :used], **close)


@every_variant
def test_without_sizes_there_is_no_padding(variant):
    model, images = shaken(make_model(variant)).eval(), images_of(2, 32, 64)
    (a,), (b,) = model(images), model(images, torch.tensor([[32, 64], [32, 64]]))
    assert torch.equal(a.class_logits, b.class_logits)
    assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)


def detection_loss() -> DetectionLoss:
    return DetectionLoss(MatchingCost(), make_matcher("hungarian", "keep"))


@every_variant
@pytest.mark.parametrize("objects", [0, 3])
def test_every_parameter_gets_a_gradient(variant, objects):
    model = shaken(make_model(variant))
    targets = [random_target(objects, K, (64, 96), seeded(i)) for i in range(2)]
    loss, parts = detection_loss()(model(images_of(2, 64, 96)), targets)
    loss.backward()
    assert loss.isfinite()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    if objects:
        assert not [name for name, p in model.named_parameters() if not p.grad.any()]
    else:
        assert parts["loss_l1"] == 0


@every_variant
def test_the_loss_falls(variant):
    model = make_model(variant, dropout=0.0)
    targets = [make_target([1], [[8, 4, 40, 28]], (32, 64))]
    images, optimizer = images_of(1, 32, 64), torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss, _ = detection_loss()(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@every_variant
def test_no_gradient_flows_from_a_layer_to_the_boxes_before_it(variant):
    model = shaken(make_model(variant))
    last = model(images_of(1, 32, 64))[-1]
    last.boxes_xyxy.sum().backward()
    of_heads = [any(p.grad is not None for p in head.box.parameters()) for head in model.heads]
    expected = {
        "plain": [True],
        "refine": [False, False, True],
        "two_stage": [False, False, True, False],
    }
    assert of_heads == expected[variant]


def test_refinement_starts_from_the_boxes_before():
    """A later head with zero offsets repeats the boxes before it."""
    model = shaken(make_model("refine", dropout=0.0))
    for head in model.heads[1:]:
        nn.init.zeros_(head.box[-1].weight)
        nn.init.zeros_(head.box[-1].bias)
    outputs = model(images_of(1, 32, 64))
    for output in outputs[1:]:
        torch.testing.assert_close(output.boxes_xyxy, outputs[0].boxes_xyxy)


def test_two_stage_starts_from_the_base_proposals():
    model = make_model("two_stage")
    first, *later = model(images_of(1, 64, 64))
    assert torch.equal(first.points_xy[:3], torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0]]))
    torch.testing.assert_close(first.boxes_xyxy[0, 0], 4 + torch.tensor([-1.6, -1.6, 1.6, 1.6]))
    torch.testing.assert_close(first.boxes_xyxy[0, 64], 8 + torch.tensor([-3.2, -3.2, 3.2, 3.2]))
    for output in later:
        distance = (output.boxes_xyxy[0, :, None] - first.boxes_xyxy[0]).abs().amax(dim=2)
        assert (distance.amin(dim=1) < 1e-3).all()


@every_variant
def test_under_bfloat16_boxes_and_logits_are_float32(variant):
    model, images = shaken(make_model(variant), 0.02), images_of(2, 64, 64)
    sizes = torch.tensor([[64, 64], [33, 50]])
    for _ in range(2):  # in training, then in eval
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images, sizes)
        for output in outputs:
            for tensor in (output.class_logits, output.boxes_xyxy):
                assert tensor.dtype == torch.float32
                assert tensor.isfinite().all()
            boxes = output.boxes_xyxy[output.class_logits[..., 0] > UNUSABLE_LOGIT]
            assert (boxes != boxes.bfloat16()).any()
        if model.training:
            sum(o.class_logits.sum() + o.boxes_xyxy.sum() for o in outputs).backward()
        model.eval()


@every_variant
def test_eval_has_no_dropout_and_the_seed_fixes_the_model(variant):
    images = images_of(1, 32, 64)
    a, b = (make_model(variant, dropout=0.5).eval()(images)[0] for _ in range(2))
    assert torch.equal(a.class_logits, b.class_logits)
    assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
    model = make_model(variant, dropout=0.5)
    assert not torch.equal(model(images)[-1].class_logits, model(images)[-1].class_logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"two_stage": True}, "two_stage=True needs refine=True"),
        ({"dim": 20, "attention_heads": 8}, "dim must be a multiple"),
        ({"dim": 18, "attention_heads": 2}, "dim must be a multiple"),
        ({"attention_heads": 0}, "attention_heads=0"),
        ({"finest_stride": 2}, "finest_stride must be one of"),
        ({"levels": 2}, "levels must be at least 3"),
        ({"levels": 3, "finest_stride": 4}, "levels must be at least 4"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1"),
    ],
)
def test_what_cannot_work_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_the_parameters_of_the_paper():
    """Table 1: 40 M parameters with a ResNet-50, 23.5 M of them in the backbone."""
    with torch.device("meta"):
        model = DeformableDETR(make_backbone("resnet50"), 91)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(40, abs=0.5)
