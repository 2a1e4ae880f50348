"""The focal loss of dense predictions in one pass forward and one backward (section 4, "Training").

B images, P prediction slots, K classes, Q corrections. Nearly all of B·P·K entries are negatives:
they are summed as such, and the few that are not are corrected by index. No target of that size is
made, and the gradient is computed from the logits alone: nothing else is kept for it.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 1 << 16}  # entries at a time: what stays in a core's cache
LARGE_CHUNK = 1 << 26  # on other devices


def focal_loss(
    logits: Tensor,
    at: tuple[Tensor, Tensor, Tensor],
    positive: Tensor,
    negative: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sum of the focal loss, all entries taken as negatives, then corrected: [B, P, K] -> scalar.

    Equals, with p = logits.sigmoid(),

        as_positive = alpha * (1 - p) ** gamma * F.softplus(-logits)
        as_negative = (1 - alpha) * p**gamma * F.softplus(logits)
        as_negative.sum() + (positive * as_positive[at] + negative * as_negative[at]).sum()

    `at`: image, slot and class [Q] each of the corrections; `positive` and `negative` [Q]: how
    often the entry's loss as a positive and as a negative is added. So 1 and -1 make it a positive
    sample, 0 and -1 leave it out. In float32, or float64 if the logits are.
    """
    return _FocalLoss.apply(logits, *at, positive, negative, alpha, gamma)


def focal(logits: Tensor, gamma: float) -> Tensor:
    """-p^γ log(1 - p), with p the probability of the wrong answer: its logits [...] -> [...]."""
    prob, _, log_right = _probabilities(logits)
    return prob.pow_(gamma).mul_(log_right).neg_()


def focal_slope(logits: Tensor, gamma: float) -> Tensor:
    """The derivative of `focal`: p^γ (γ (1 - p) · -log(1 - p) + p)."""
    prob, right, log_right = _probabilities(logits)
    slope = log_right.mul_(right).mul_(-gamma).add_(prob)
    return slope.mul_(prob.pow_(gamma))


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, 1 - p and log(1 - p), by half the instructions of `softplus`.

    1 - p and its logarithm are exact to rounding; p only to one part in 10^7 of 1, which does not
    count where it is small: what it weighs is smaller still.
    """
    opposite = -logits
    right = opposite.sigmoid().clamp_(min=torch.finfo(logits.dtype).tiny)
    log_right = torch.minimum(right.log(), opposite)  # the latter where 1 - p is below `tiny`
    return 1 - right, right, log_right


class _FocalLoss(Function):
    @staticmethod
    def forward(ctx, logits, image, slot, label, positive, negative, alpha, gamma):
        logits = logits.detach()
        if not logits.permute(_by_stride(logits)).is_contiguous():
            logits = logits.contiguous()
        ctx.save_for_backward(logits, image, slot, label, positive, negative)
        ctx.alpha, ctx.gamma = alpha, gamma
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for chunk in _chunks(logits):
            total += focal(_wide(chunk), gamma).sum()
        some = _wide(logits[image, slot, label])
        corrections = alpha * positive * focal(-some, gamma)
        corrections += (1 - alpha) * negative * focal(some, gamma)
        return ((1 - alpha) * total + corrections.sum()).to(some.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope_of_loss):
        logits, image, slot, label, positive, negative = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        gradient = torch.empty_like(logits)
        factor = (1 - alpha) * slope_of_loss
        for chunk, slopes in zip(_chunks(logits), _chunks(gradient), strict=True):
            torch.mul(focal_slope(_wide(chunk), gamma), factor, out=slopes)
        some = _wide(logits[image, slot, label])
        corrections = (1 - alpha) * negative * focal_slope(some, gamma)
        corrections -= alpha * positive * focal_slope(-some, gamma)
        corrections = (corrections * slope_of_loss).to(gradient.dtype)
        gradient.index_put_((image, slot, label), corrections, accumulate=True)
        return gradient, *[None] * 7


def _by_stride(tensor: Tensor) -> list[int]:
    """The dimensions as they lie in memory."""
    return sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))


def _chunks(dense: Tensor) -> tuple[Tensor, ...]:
    """The entries as they lie in memory, in views [CHUNK]."""
    flat = dense.permute(_by_stride(dense)).view(-1)
    return flat.split(CHUNK.get(dense.device.type, LARGE_CHUNK))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
