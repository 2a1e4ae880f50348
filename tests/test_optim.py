"""The learning rate at each step, and the optimiser.

Run: pytest tests/test_optim.py
"""

import pytest
import torch

from onenet.config.compose import compose
from onenet.errors import UserError
from onenet.training.optim import Schedule, make_optimizer

PAPER = Schedule(lr=5e-5, steps=270_000)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (1, 1),
        (209_999, 1),
        (210_000, 1),
        (210_001, 0.1),
        (250_000, 0.1),
        (250_001, 0.01),
        (270_000, 0.01),
    ],
)
def test_the_papers_rate_drops_after_210k_and_250k_of_270k_steps(step, factor):
    assert PAPER.at(step) == pytest.approx(5e-5 * factor, rel=1e-9)


def test_the_milestones_of_the_config_are_the_papers():
    milestones = compose([]).optim.milestones
    configured = Schedule(1.0, 270_000, milestones=milestones)
    rates = [configured.at(step) for step in (210_000, 210_001, 250_000, 250_001)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_the_milestones_are_shares_of_the_steps():
    short = Schedule(1.0, steps=27)
    drops = [step for step in range(2, 28) if short.at(step) < 0.5 * short.at(step - 1)]
    assert drops == [22, 26]


def test_warmup_rises_linearly_from_a_hundredth_to_the_rate():
    schedule = Schedule(2.0, steps=270_000, warmup=1000)
    assert schedule.at(1) == pytest.approx(0.02)
    assert schedule.at(501) == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert schedule.at(1000) < 2
    assert schedule.at(1001) == 2
    steps = [schedule.at(step + 1) - schedule.at(step) for step in range(1, 1001)]
    assert steps == pytest.approx([2 * 0.99 / 1000] * 1000)


def test_without_warmup_the_first_step_has_the_full_rate():
    assert Schedule(2.0, steps=10).at(1) == 2
    assert Schedule(2.0, steps=10, decay="linear_tail").at(1) == 2


def test_the_linear_tail_is_constant_and_then_falls_to_nothing():
    schedule = Schedule(4.0, steps=1000, decay="linear_tail", tail=0.3)
    rates = [schedule.at(step) for step in range(1, 1001)]
    assert rates[:701] == pytest.approx([4] * 701)
    falls = [a - b for a, b in zip(rates[700:], rates[701:], strict=False)]
    assert falls == pytest.approx([4 / 300] * 299)
    assert rates[-1] == pytest.approx(4 / 300)  # the next step would have rate 0


def test_a_tail_of_all_steps_falls_from_the_start():
    schedule = Schedule(1.0, steps=4, decay="linear_tail", tail=1.0)
    assert [schedule.at(step) for step in (1, 2, 3, 4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_named_parameters_learn_at_a_share_of_the_rate():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("slow", "fast", "off")})
    model["off"].requires_grad_(False)
    optimizer = make_optimizer(model, 1.0, 0.0, {"slow": 0.1})
    factors = {
        id(parameter): group["lr_factor"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert {name: factors.get(id(p)) for name, p in model.named_parameters()} == {
        "slow.weight": 0.1, "slow.bias": 0.1, "fast.weight": 1.0, "fast.bias": 1.0,
        "off.weight": None, "off.bias": None,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no parameter has backbone in its name"):
        make_optimizer(model, 1.0, 0.0, {"backbone": 0.1})


def test_a_rate_may_be_of_a_module_that_this_variant_lacks():
    model = torch.nn.ModuleDict({"queries": torch.nn.Linear(2, 2)})
    model["queries"].register_module("reference", None)
    (group,) = make_optimizer(model, 1.0, 0.0, {"queries.reference": 0.1}).param_groups
    assert (group["lr_factor"], len(group["params"])) == (1.0, 2)
    with pytest.raises(UserError, match=r"no parameter has reference in its name"):
        make_optimizer(torch.nn.Linear(2, 2), 1.0, 0.0, {"reference": 0.1})


def test_all_parameters_decay():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = make_optimizer(model, lr=0.5, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.5 * 0.1))
