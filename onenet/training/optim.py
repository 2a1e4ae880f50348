"""The optimiser and the learning rate schedule (section 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW

from onenet.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The learning rate at each of `steps` steps, given the base rate `lr`.

    `warmup`: number of steps of a linear rise from a hundredth of the rate. `decay`: `multistep`
    divides by 10 at each of `milestones`, fractions of the steps in 0..1 (section 5: 210k and 250k
    of 270k); `linear_tail` is constant, then falls linearly to 0 over the last `tail`, a fraction
    in (0, 1].
    """

    lr: float
    steps: int
    warmup: int = 0
    decay: str = "multistep"
    milestones: Sequence[float] = (7 / 9, 25 / 27)
    tail: float = 0.3

    def at(self, step: int) -> float:
        """Returns the rate of step number `step` in 1..steps."""
        progress = (step - 1) / self.steps
        if self.decay == "multistep":
            factor = 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        else:
            factor = min(1.0, (1 - progress) / self.tail)
        if step <= self.warmup:
            factor *= 0.01 + 0.99 * (step - 1) / self.warmup
        return self.lr * factor


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, lr_factors: Mapping[str, float] | None = None
) -> AdamW:
    """Returns AdamW with weight decay on all parameters, as in the released code; fused kernel.

    `lr_factors`: factor on the learning rate of parameters whose names contain the key, stored as
    `lr_factor` of their group. Raises UserError if a key matches no parameter, unless it names a
    module that is None in this variant of the model.
    """
    groups = {factor: [] for factor in (1.0, *(lr_factors or {}).values())}
    unmatched = {*(lr_factors or {})} - _absent_modules(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        keys = [key for key in lr_factors or {} if key in name]
        unmatched -= {*keys}
        groups[lr_factors[keys[0]] if keys else 1.0].append(parameter)
    if unmatched:
        raise UserError(
            f"optim.lr_factors={dict(lr_factors)}: no parameter has "
            f"{' or '.join(sorted(unmatched))} in its name. Correct or remove that key."
        )
    return AdamW(
        [{"params": g, "lr_factor": factor} for factor, g in groups.items() if g],
        lr=lr,
        weight_decay=weight_decay,
        fused=True,
    )


def _absent_modules(model: nn.Module) -> set[str]:
    """Returns the names of modules that are registered as None."""
    return {
        f"{parent_name}.{name}".lstrip(".")
        for parent_name, parent in model.named_modules()
        for name, module in parent._modules.items()
        if module is None
    }
