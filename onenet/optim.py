"""The optimiser and the learning rate as a function of progress (section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW


@dataclass(frozen=True)
class Schedule:
    """The learning rate at each step of `steps`, given the base rate `lr`.

    `warmup`: steps of linear rise from a hundredth of the rate. `decay`: `multistep` divides by 10
    at each of `milestones`, fractions of the steps in 0..1 (section 5: 210k and 250k of 270k);
    `linear_tail` stays constant and falls linearly to 0 over the last `tail`, a fraction in (0, 1].
    """

    lr: float
    steps: int
    warmup: int = 0
    decay: str = "multistep"
    milestones: Sequence[float] = (7 / 9, 25 / 27)
    tail: float = 0.3

    def at(self, step: int) -> float:
        """The rate of step number `step` in 1..steps."""
        done = (step - 1) / self.steps
        if self.decay == "multistep":
            factor = 0.1 ** sum(done >= milestone for milestone in self.milestones)
        else:
            factor = min(1.0, (1 - done) / self.tail)
        if step <= self.warmup:
            factor *= 0.01 + 0.99 * (step - 1) / self.warmup
        return self.lr * factor


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW with weight decay on all parameters, as in the released code; one kernel for all."""
    return AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
