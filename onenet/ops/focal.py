"""The focal loss of dense predictions, with one pass over them per direction (section 4,
"Training").

B images, P prediction slots, K classes, Q corrections. Nearly all of the B·P·K entries are
negatives. All are summed as negatives, and the few others are corrected by index. So no dense
target is allocated, and the backward pass needs the logits only.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 1 << 16}  # entries per chunk, to fit in a core's cache
LARGE_CHUNK = 1 << 26  # the same for other devices


def focal_loss(
    logits: Tensor,
    index: tuple[Tensor, Tensor, Tensor],
    positive: Tensor,
    negative: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sums the focal loss of all entries as negatives, plus corrections: [B, P, K] -> scalar.

    Equals, with p = logits.sigmoid(),

        as_positive = alpha * (1 - p) ** gamma * F.softplus(-logits)
        as_negative = (1 - alpha) * p**gamma * F.softplus(logits)
        as_negative.sum() + (positive * as_positive[index] + negative * as_negative[index]).sum()

    `index`: image, slot and class of each correction, [Q] each. `positive`, `negative` [Q]: how
    many times to add the entry's loss as a positive and as a negative. So 1 and -1 turn the entry
    into a positive sample, 0 and -1 ignore it. Computes in float32, or in float64 if the logits are
    float64.
    """
    return _FocalLoss.apply(logits, *index, positive, negative, alpha, gamma)


def focal(logits: Tensor, gamma: float) -> Tensor:
    """-p^γ log(1 - p), where p is the probability of the wrong class: its logits [...] -> [...]."""
    prob, _, log_complement = _probabilities(logits)
    return prob.pow_(gamma).mul_(log_complement).neg_()


def focal_derivative(logits: Tensor, gamma: float) -> Tensor:
    """The derivative of `focal`: p^γ (γ (1 - p) · -log(1 - p) + p)."""
    prob, complement, log_complement = _probabilities(logits)
    derivative = log_complement.mul_(complement).mul_(-gamma).add_(prob)
    return derivative.mul_(prob.pow_(gamma))


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns p, 1 - p and log(1 - p), with half the instructions of `softplus`.

    1 - p and its logarithm are exact up to rounding. p has an absolute error of 10^-7, which does
    not matter for a small p, because what it multiplies is smaller still.
    """
    negated = -logits
    complement = negated.sigmoid().clamp_(min=torch.finfo(logits.dtype).tiny)
    log_complement = torch.minimum(complement.log(), negated)  # `negated` if 1 - p < `tiny`
    return 1 - complement, complement, log_complement


class _FocalLoss(Function):
    @staticmethod
    def forward(ctx, logits, image, slot, label, positive, negative, alpha, gamma):
        logits = logits.detach()
        if not logits.permute(_memory_order(logits)).is_contiguous():
            logits = logits.contiguous()
        ctx.save_for_backward(logits, image, slot, label, positive, negative)
        ctx.alpha, ctx.gamma = alpha, gamma
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for chunk in _chunks(logits):
            total += focal(_to_float(chunk), gamma).sum()
        entries = _to_float(logits[image, slot, label])
        corrections = alpha * positive * focal(-entries, gamma)
        corrections += (1 - alpha) * negative * focal(entries, gamma)
        return ((1 - alpha) * total + corrections.sum()).to(entries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        logits, image, slot, label, positive, negative = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        gradient = torch.empty_like(logits)
        factor = (1 - alpha) * grad_output
        for chunk, out in zip(_chunks(logits), _chunks(gradient), strict=True):
            torch.mul(focal_derivative(_to_float(chunk), gamma), factor, out=out)
        entries = _to_float(logits[image, slot, label])
        corrections = (1 - alpha) * negative * focal_derivative(entries, gamma)
        corrections -= alpha * positive * focal_derivative(-entries, gamma)
        corrections = (corrections * grad_output).to(gradient.dtype)
        gradient.index_put_((image, slot, label), corrections, accumulate=True)
        return gradient, *[None] * 7


def _memory_order(tensor: Tensor) -> list[int]:
    """The dimensions in decreasing order of their strides."""
    return sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))


def _chunks(dense: Tensor) -> tuple[Tensor, ...]:
    """Views of CHUNK consecutive entries, in memory order."""
    flat = dense.permute(_memory_order(dense)).view(-1)
    return flat.split(CHUNK.get(dense.device.type, LARGE_CHUNK))


def _to_float(values: Tensor) -> Tensor:
    """Converts to float32, except from float64."""
    return values if values.dtype == torch.float64 else values.float()
