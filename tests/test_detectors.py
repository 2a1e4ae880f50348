"""All detectors: any number of objects, any size, gradients, overfitting one image.

Run: pytest tests/test_detectors.py (also -m slow: one image learnt by heart)
"""

import pytest
import torch

from onenet import build
from onenet.config.compose import compose
from onenet.detectors import DETECTORS
from onenet.ops.fusion import for_inference
from onenet.postprocess import top_k
from onenet.runs.evaluations import default_evaluation
from onenet.structures import unpadded_sizes
from tests.conftest import random_target, seeded
from tests.test_loop import Run

CLASSES = 4
VARIANTS = [
    *([f"detector={name}"] for name in DETECTORS),
    ["detector=deformable_detr", "model.refine=true"],
    ["detector=deformable_detr", "model.refine=true", "model.two_stage=true"],
]
OBJECTS = {"several": (5, 3), "none": (0, 0), "one": (1, 0)}
SIZES = {"whole": [(64, 96), (64, 96)], "odd": [(64, 77), (51, 96)]}


def make(words: list[str]):
    """The configuration, the detector and its loss. The weights are perturbed, since no
    gradient flows behind zeros."""
    config = compose([*words, "seed=3"])
    model = build.detector(config, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=seeded())
    return config, model, build.loss(config, model)


def scene(objects: tuple[int, ...], sizes: list[tuple[int, int]]):
    """Normalized images [B, 3, 64, 96], 0 where padded, and their targets."""
    generator = seeded(1)
    images = torch.zeros(len(sizes), 3, 64, 96)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    pairs = zip(objects, sizes, strict=True)
    targets = [random_target(n, CLASSES, size_hw, generator) for n, size_hw in pairs]
    return images, targets


@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("words", VARIANTS, ids=lambda words: "-".join(words)[9:])
def test_a_step_and_an_answer(words, sizes, objects):
    config, model, loss = make(words)
    images, targets = scene(OBJECTS[objects], SIZES[sizes])
    sizes_hw = unpadded_sizes(targets, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes_hw)
    build.optimizer(config, model)  # its lr_factors name parameters that exist
    total, parts = loss(outputs, targets)
    assert set(parts) == {*loss.names, "objects", "conflicts"}
    torch.testing.assert_close(total, sum(parts[name] for name in loss.names))
    assert parts["objects"] == len(outputs) * sum(OBJECTS[objects])
    total.backward()
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == {name for name, _ in model.named_parameters()}
    assert all(norm.isfinite() for norm in norms.values())
    if objects == "several":
        without = {name.partition(".")[0] for name, norm in norms.items() if norm == 0}
        # Sparse R-CNN's first boxes cover the image: no fine level is pooled.
        assert without <= {"pyramid"}

    with torch.inference_mode():
        (output,) = model.eval()(images, sizes_hw)
    peaks = default_evaluation(config).peaks
    for detections, size_hw in zip(
        top_k(output, SIZES[sizes], 100, peaks), SIZES[sizes], strict=True
    ):
        limits = torch.tensor(size_hw).flip(0).repeat(2)
        assert detections.boxes_xyxy.shape == (len(detections.scores), 4)
        assert len(detections.scores) <= 100
        assert ((detections.boxes_xyxy >= 0) & (detections.boxes_xyxy <= limits)).all()
        assert (detections.scores.diff() <= 0).all()
        assert (detections.labels < CLASSES).all()


@pytest.mark.parametrize("words", VARIANTS, ids=lambda words: "-".join(words)[9:])
@torch.inference_mode()
def test_a_batch_is_its_images(words):
    _, model, _ = make(words)
    images, targets = scene((1, 1), SIZES["odd"])
    sizes_hw = unpadded_sizes(targets, "cpu")
    (both,) = model.eval()(images, sizes_hw)
    for image in range(2):
        (alone,) = model(images[image, None], sizes_hw[image, None])
        for name in ("class_logits", "boxes_xyxy"):
            expected, actual = getattr(alone, name)[0], getattr(both, name)[image]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("words", VARIANTS, ids=lambda words: "-".join(words)[9:])
@torch.inference_mode()
def test_fused_for_inference_it_answers_alike(words):
    _, model, _ = make(words)
    images, targets = scene((1, 1), SIZES["odd"])
    sizes_hw = unpadded_sizes(targets, "cpu")
    faster = for_inference(model)
    (expected,), (actual,) = model.eval()(images, sizes_hw), faster(images, sizes_hw)
    for name in ("class_logits", "boxes_xyxy"):
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), rtol=1e-3, atol=1e-2
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["detector=centernet"],
        ["detector=deformable_detr", "steps=600", "lr=1e-3"],
        ["detector=sparse_rcnn", "steps=400"],
    ],
    ids=lambda words: words[0][9:],
)
def test_one_image_is_learnt_by_heart(words):
    run = Run("debug=overfit", *words).train()
    assert run.score()["AP"] > 90
