"""The one-pass focal loss against torchvision; its gradient against finite differences.

Run: pytest tests/test_focal.py
"""

import math

import pytest
import torch

from analysis.speed import plain
from onenet.ops import focal
from onenet.ops.focal import focal_loss
from tests.conftest import seeded

SHAPE = (2, 15, 4)


def corrections(count: int, seed: int = 0):
    """Indices of `count` distinct entries."""
    flat = torch.randperm(math.prod(SHAPE), generator=seeded(seed))[:count]
    return torch.unravel_index(flat, SHAPE)


def loss_with(logits, at, alpha=0.25, gamma=2.0):
    """The loss with positives `at`."""
    ones = torch.ones(len(at[0]), dtype=logits.dtype)
    return focal_loss(logits, at, ones, -ones, alpha, gamma)


def in_memory_order(values: torch.Tensor, order: str) -> torch.Tensor:
    """The same values [B, P, K] in the memory layouts of the heads."""
    if order == "slots last":  # as a contiguous [B, K, H, W] gives
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if order == "with gaps":
        return torch.cat([values, values], dim=2)[..., : values.shape[2]]
    return values


@pytest.mark.parametrize("order", ["as it is", "slots last", "with gaps"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.0), (0.9, 3.0), (0.25, 0.5)])
def test_loss_and_gradient_equal_torchvision(alpha, gamma, chunk, order, monkeypatch):
    monkeypatch.setitem(focal.CHUNK, "cpu", chunk)
    logits = 5 * torch.randn(SHAPE, dtype=torch.float64, generator=seeded())
    at = corrections(9)
    one, other = (in_memory_order(logits.clone(), order).requires_grad_() for _ in range(2))
    ours, theirs = loss_with(one, at, alpha, gamma), plain.focal_loss(other, *at, alpha, gamma)
    torch.testing.assert_close(ours, theirs)
    (3 * ours).backward()
    (3 * theirs).backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_the_gradient_is_that_of_differences():
    logits = 3 * torch.randn(SHAPE, dtype=torch.float64, generator=seeded())
    at = corrections(20)
    positive = torch.randint(0, 2, (20,), generator=seeded()).double()
    negative = torch.randint(-1, 2, (20,), generator=seeded(1)).double()
    for gamma in (0.5, 1.0, 2.0, 2.5):
        assert torch.autograd.gradcheck(
            lambda x, g=gamma: focal_loss(x, at, positive, negative, 0.3, g),
            logits.requires_grad_(),
        )


def test_by_hand():
    # p = 0.5 everywhere: a positive, an ignored entry, negatives of weight 2 and 1.
    at = tuple(torch.tensor(x) for x in ([0, 0, 0], [0, 1, 2], [0, 0, 0]))
    positive, negative = torch.tensor([1.0, 0, 0]), torch.tensor([-1.0, -1, 1])
    loss = focal_loss(torch.zeros(1, 4, 1), at, positive, negative)
    assert loss.item() == pytest.approx((0.25 + 3 * 0.75) * 0.25 * math.log(2))


def test_no_corrections():
    nothing = torch.zeros(0, dtype=torch.int64)
    logits = torch.randn(SHAPE, generator=seeded()).requires_grad_()
    loss = loss_with(logits, (nothing, nothing, nothing))
    torch.testing.assert_close(loss, plain.focal_loss(logits, nothing, nothing, nothing))
    loss.backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("logit", [-1e4, -200.0, -17.0, 17.0, 200.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_saturated_logits_have_finite_gradients(logit, gamma):
    logits = torch.full(SHAPE, logit, requires_grad=True)
    loss = loss_with(logits, corrections(9), gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_summed_in_float32():
    half = torch.randn(SHAPE, generator=seeded()).bfloat16().requires_grad_()
    whole = half.detach().float().requires_grad_()
    at = corrections(9)
    for logits in (half, whole):
        loss_with(logits, at).backward()
    assert loss_with(half, at).dtype == torch.float32
    assert torch.equal(loss_with(half, at), loss_with(whole, at))
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), whole.grad, rtol=0.02, atol=0.005)


def test_the_logits_are_left_alone():
    logits = torch.randn(SHAPE, generator=seeded()).requires_grad_()
    before = logits.detach().clone()
    loss_with(logits, corrections(9)).backward()
    assert torch.equal(logits.detach(), before)
