"""The released code (PeizeSun/OneNet, commit cb860ad) gives the same costs, matches, losses and
gradients in three cases, and the same predictions of its four networks.

tests/golden/README.md describes the files. Two differences are known. When objects of two classes
match one slot, the released code keeps the last class, ours keeps both (`overwritten`).
The released code adds 1e-8 inside the logarithm of the focal cost.

Run: pytest tests/test_golden_released.py
"""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onenet.assigners import make_matcher
from onenet.boxes import grid_points
from onenet.costs import CostWeights, MatchingCost, all_pairs, focal_cost
from onenet.detectors.backbones import make_backbone
from onenet.detectors.necks import make_neck
from onenet.detectors.onenet import OneNet
from onenet.detectors.released import fold_biases, our_name
from onenet.losses import DetectionLoss, LossWeights
from onenet.structures import HeadOutput, Target

GOLDEN = Path(__file__).parent / "golden"
CASES = ("s0_plain", "s1_zero_gt_image", "s3_same_cell_same_class")
STRIDE = 4
# The released code weighs the pre-defined location by 5, at twice our distance.
VARIANTS = {
    "min_252": ("min_cost", CostWeights(cls=2, l1=5, giou=2)),
    "min_052": ("min_cost", CostWeights(cls=0, l1=5, giou=2)),
    "hun_252": ("hungarian", CostWeights(cls=2, l1=5, giou=2)),
    "hun_052": ("hungarian", CostWeights(cls=0, l1=5, giou=2)),
    "pre_min_cls": ("min_cost", CostWeights(cls=2, l1=0, giou=0, center=10)),
    "pre_min_nocls": ("min_cost", CostWeights(cls=0, l1=0, giou=0, center=10)),
    "pre_hun_cls": ("hungarian", CostWeights(cls=2, l1=0, giou=0, center=10)),
    "pre_hun_nocls": ("hungarian", CostWeights(cls=0, l1=0, giou=0, center=10)),
}
CLEAR = 1e-4  # slots are compared if an object's two cheapest costs differ by more


@cache
def load(case: str) -> tuple[dict[str, np.ndarray], HeadOutput, list[Target]]:
    """The file's arrays; its predictions and objects in our types."""
    with np.load(GOLDEN / f"{case}.npz") as file:
        arrays = dict(file)
    logits, boxes = (
        torch.from_numpy(arrays[name]).flatten(2).transpose(1, 2).contiguous()
        for name in ("pred_logits", "pred_boxes")
    )  # [B, P, K], [B, P, 4]
    points = torch.from_numpy(arrays["locations"]).flatten(1).t().contiguous()
    targets = [
        Target(
            torch.from_numpy(arrays[f"gt_labels_{image}"]),
            torch.from_numpy(arrays[f"gt_boxes_xyxy_{image}"]),
            tuple(size_hw.tolist()),
            image,
        )
        for image, size_hw in enumerate(arrays["image_sizes_hw"])
    ]
    return arrays, HeadOutput(logits, boxes, points), targets


def detection_loss(variant: str) -> DetectionLoss:
    assigner, weights = VARIANTS[variant]
    cost = MatchingCost(weights, l1_format="xyxy")
    matcher = make_matcher(assigner, "keep")
    return DetectionLoss(cost, matcher, LossWeights(cls=2, l1=5, giou=2), l1_format="xyxy")


def close(actual, expected, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected), rtol=rtol, atol=atol
    )


def overwritten(arrays: dict, variant: str, targets: list[Target]) -> list[tuple[int, int, int]]:
    """(image, slot, class) that are negative in the released code, because a later object of
    another class has the slot."""
    lost = []
    for image, target in enumerate(targets):
        last = {}
        for slot, label in zip(
            arrays[f"{variant}/src_{image}"].tolist(), target.gt_labels.tolist(), strict=True
        ):
            if last.get(slot, label) != label:
                lost.append((image, slot, last[slot]))
            last[slot] = label
    return lost


@pytest.mark.parametrize("case", CASES)
def test_grid_points(case):
    arrays, output, _ = load(case)
    close(grid_points(*arrays["locations"].shape[1:], STRIDE), output.points_xy)


@pytest.mark.parametrize("case", CASES)
def test_cost_terms(case):
    arrays, output, targets = load(case)
    cost = MatchingCost(CostWeights(1, 1, 1, 1, 1), l1_format="xyxy")
    for image, target in enumerate(targets):
        terms = {name: term for name, _, term in cost.terms(all_pairs(output, image, target))}
        released = {
            "cls": "cost_class",
            "l1": "cost_l1",
            "giou": "cost_giou",
            "center": "cost_center",
        }
        ours = {
            "cls": terms["cls"],
            "l1": terms["l1"],
            "giou": terms["giou"] - 1,  # theirs is -GIoU
            "center": 2 * terms["center"],
        }
        for name, theirs in released.items():
            if len(target.gt_labels):
                close(ours[name], arrays[f"{theirs}_{image}"], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_assignments(case, variant):
    """Each object has the slot and the cost of the released code."""
    arrays, output, targets = load(case)
    loss, compared = detection_loss(variant), 0
    for image, (target, match) in enumerate(zip(targets, loss.match(output, targets), strict=True)):
        assert match.gt_idx.tolist() == list(range(len(target.gt_labels)))
        theirs = torch.from_numpy(arrays[f"{variant}/src_{image}"])
        if not len(theirs):
            continue
        # 1 - GIoU and -GIoU differ by a constant, which does not move the minimum.
        cost = loss.matching_cost(output, image, target) - loss.matching_cost.weights.giou
        close(cost, arrays[f"{variant}/C_{image}"], atol=1e-4)
        if variant.startswith("hun") or "_hun_" in variant:
            close(cost[match.pred_idx, match.gt_idx].sum(), cost[theirs, match.gt_idx].sum())
        clear = torch.from_numpy(arrays[f"{variant}/margin_{image}"]) > CLEAR
        assert match.pred_idx[clear].tolist() == theirs[clear].tolist()
        compared += int(clear.sum())
    assert compared > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_losses(case, variant):
    arrays, output, targets = load(case)
    loss = detection_loss(variant)
    total, parts = loss([output], targets)
    logits = [output.class_logits[at] for at in overwritten(arrays, variant, targets)]
    # These are negative there, not positive: -(positive - negative loss) of each.
    change = (
        -2 * sum(focal_cost(logit) for logit in logits) / sum(len(t.gt_labels) for t in targets)
    )
    close((parts["loss_cls"] + change) / 2, arrays[f"{variant}/loss_ce"])
    close(parts["loss_l1"] / 5, arrays[f"{variant}/loss_bbox"])
    close(parts["loss_giou"] / 2, arrays[f"{variant}/loss_giou"])
    close(total + change, arrays[f"{variant}/total"])


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    arrays, output, targets = load(case)
    logits = output.class_logits.clone().requires_grad_()
    boxes = output.boxes_xyxy.clone().requires_grad_()
    total, _ = detection_loss("min_252")([HeadOutput(logits, boxes, output.points_xy)], targets)
    total.backward()
    for at in overwritten(arrays, "min_252", targets):
        logits.grad[at] = torch.from_numpy(arrays["min_252/grad_logits"]).flatten(2)[
            at[0], at[2], at[1]
        ]
    for ours, theirs in ((logits, "grad_logits"), (boxes, "grad_boxes")):
        released = torch.from_numpy(arrays[f"min_252/{theirs}"]).flatten(2).transpose(1, 2)
        close(ours.grad, released, rtol=1e-4, atol=1e-7)


# --- networks ---


def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a parameter, seeded by its name in the released code."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    name = key.rsplit(".", 1)[-1]
    if name == "num_batches_tracked":
        return np.array(0, dtype=np.int64)
    x = random.standard_normal(shape)
    if name == "running_var":
        return 1 + 0.2 * np.abs(x)
    if name in ("running_mean", "bias"):
        start = {"head.cls_score.bias": -2.0, "head.ltrb_pred.bias": 8.0}
        return 0.1 * x + start.get(key, 0.0)
    if len(shape) == 1:  # norm weights
        return 1 + 0.1 * x
    scale = np.sqrt(2 / np.prod(shape[1:]))
    scale *= 0.2 if "dcn_offset" in key else 1
    scale *= 0.5 if "conv3" in key or ("conv2" in key and "res" in key) else 1
    return scale * x


def released_state(name: str) -> dict[str, Tensor]:
    """The released network's state dict, with its names."""
    shapes = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    values = {key: np.asarray(value(key, tuple(shape))) for key, shape in shapes.items()}
    types = {True: torch.int64, False: torch.float32}
    return {k: torch.from_numpy(v).to(types[v.dtype == np.int64]) for k, v in values.items()}


def answer_of(name: str, model: nn.Module) -> None:
    """Checks the model's predictions of the test images against the released network's."""
    images = np.random.RandomState(5).standard_normal((1, 3, 96, 128)).astype(np.float32)
    (output,) = model(torch.from_numpy(images))
    with np.load(GOLDEN / f"{name}.npz") as answer:
        logits, boxes = (
            torch.from_numpy(answer[key]).flatten(1).t() for key in ("logits", "boxes")
        )
    close(output.class_logits[0, :, ::10], logits, rtol=1e-4, atol=1e-4)
    close(output.boxes_xyxy[0], boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("deformable", [True, False], ids=["dcn", "nodcn"])
@pytest.mark.parametrize("depth", [18, 50])
@torch.inference_mode()
def test_networks(depth, deformable):
    name = f"network_r{depth}_{'dcn' if deformable else 'nodcn'}"
    backbone = make_backbone(f"resnet{depth}")
    channels = backbone.feature_info.channels()
    neck = make_neck("deconv_dcn" if deformable else "deconv", channels, 64)
    model = OneNet(backbone, 80, neck=neck, box_unit=1.0).eval()
    state = {our_name(key): tensor for key, tensor in released_state(name).items()}
    fold_biases(state)
    model.load_state_dict(state)
    answer_of(name, model)
