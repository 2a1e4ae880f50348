"""The optimiser and the learning rate as a function of progress (section 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW

from onenet.errors import UserError


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


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, lr_factors: Mapping[str, float] | None = None
) -> AdamW:
    """AdamW with weight decay on all parameters, as in the released code; one kernel for all.

    `lr_factors`: parameters with such a word in their names learn at so many times the rate; each
    group's `lr_factor` says it. Raises UserError where no parameter has it.
    """
    groups = {factor: [] for factor in (1.0, *(lr_factors or {}).values())}
    unused = {*(lr_factors or {})}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        words = [word for word in lr_factors or {} if word in name]
        unused -= {*words}
        groups[lr_factors[words[0]] if words else 1.0].append(parameter)
    if unused:
        raise UserError(
            f"optim.lr_factors={dict(lr_factors)}: no parameter has {' or '.join(sorted(unused))} "
            "in its name: leave it out."
        )
    return AdamW(
        [{"params": g, "lr_factor": factor} for factor, g in groups.items() if g],
        lr=lr,
        weight_decay=weight_decay,
        fused=True,
    )
