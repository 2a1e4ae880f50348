"""Assigners against Algorithm 1, brute force and hand-worked examples, with ties and conflicts.

Run: pytest tests/test_assigners.py
"""

import random
from itertools import permutations

import pytest
import torch

from onenet.assigners import hungarian, min_cost, resolve_conflicts
from onenet.costs import CostWeights, MatchingCost
from onenet.ops.groups import not_first_of_group
from onenet.structures import HeadOutput
from tests.conftest import assign, make_target, random_boxes, seeded


def pairs(matches) -> list[tuple[int, int]]:
    """(slot, object) of each match."""
    return list(zip(matches.pred_idx.tolist(), matches.gt_idx.tolist(), strict=True))


# --- brute force ---


def cheapest(cost: list[list[float]], gt: int, free: list[int]) -> int:
    return min(free, key=lambda slot: (cost[slot][gt], slot))


def brute_keep(cost, slots, objects):
    return [(cheapest(cost, gt, range(slots)), gt) for gt in range(objects)]


def brute_drop(cost, slots, objects):
    choices = brute_keep(cost, slots, objects)
    return [
        (slot, gt)
        for slot, gt in choices
        if (cost[slot][gt], gt) == min((cost[slot][g], g) for s, g in choices if s == slot)
    ]


def brute_next_best(cost, slots, objects):
    order = sorted(range(objects), key=lambda gt: (min(row[gt] for row in cost), gt))
    free, matches = list(range(slots)), []
    for gt in order[:slots]:
        slot = cheapest(cost, gt, free)
        free.remove(slot)
        matches.append((slot, gt))
    return sorted(matches, key=lambda pair: pair[1])


def brute_conflicts(cost, slots, objects):
    """Objects that lose: all but one per slot."""
    return objects - len({slot for slot, _ in brute_keep(cost, slots, objects)})


def brute_least_total(cost, slots, objects):
    if objects <= slots:
        ways = permutations(range(slots), objects)
        return min(sum(cost[slot][gt] for gt, slot in enumerate(way)) for way in ways)
    ways = permutations(range(objects), slots)
    return min(sum(cost[slot][gt] for slot, gt in enumerate(way)) for way in ways)


BRUTE = {"keep": brute_keep, "drop": brute_drop, "next_best": brute_next_best}


def small_costs(most_slots: int, most_objects: int, count: int):
    """Integers 0..3: most have ties and conflicts."""
    rng = random.Random(0)
    for _ in range(count):
        slots, objects = rng.randint(1, most_slots), rng.randint(0, most_objects)
        yield [[float(rng.randint(0, 3)) for _ in range(objects)] for _ in range(slots)]


# --- Algorithm 1 ---


def test_min_cost_equals_the_papers_algorithm_1():
    height, width, classes, objects = 3, 4, 5, 6
    generator = seeded()
    class_pred = torch.rand(height, width, classes, generator=generator)
    box_pred = random_boxes(height * width, (1, 1), generator).view(height, width, 4)
    gt_label = torch.randint(classes, (objects,), generator=generator)
    gt_box = random_boxes(objects, (1, 1), generator)

    output_class = class_pred.view(-1, classes)
    output_box = box_pred.view(-1, 4)
    cost_class = -torch.log(output_class[:, gt_label])
    cost_loc = torch.cdist(output_box, gt_box, p=1)
    cost_mat = cost_class + cost_loc
    _, src_ind = torch.min(cost_mat, dim=0)
    tgt_ind = torch.arange(objects)

    matches = assign(min_cost, cost_mat)
    assert torch.equal(matches.pred_idx, src_ind)
    assert torch.equal(matches.gt_idx, tgt_ind)

    logits = torch.logit(output_class)[None]
    output = HeadOutput(logits, output_box[None], torch.zeros(len(output_box), 2))
    target = make_target(gt_label.tolist(), gt_box, size_hw=(1, 1))
    weights = CostWeights(cls=1, l1=1, iou=0, giou=0)
    cost = MatchingCost(weights, cls_form="cross_entropy", l1_format="xyxy")
    torch.testing.assert_close(cost(output, 0, target), cost_mat)
    (matches,) = min_cost(cost, output, [target])
    assert torch.equal(matches.pred_idx, src_ind)


# --- conflicts ---


@pytest.mark.parametrize("conflict", BRUTE)
def test_min_cost_equals_brute_force_with_ties_and_more_objects_than_slots(conflict):
    total = 0
    for rows in small_costs(most_slots=6, most_objects=9, count=400):
        slots, objects = len(rows), len(rows[0])
        matches = assign(min_cost, torch.tensor(rows).reshape(slots, objects), conflict=conflict)
        assert pairs(matches) == BRUTE[conflict](rows, slots, objects), rows
        assert matches.conflicts.item() == brute_conflicts(rows, slots, objects), rows
        assert matches.pred_idx.dtype == matches.gt_idx.dtype == torch.int64
        total += matches.conflicts.item()
    assert total > 100  # conflicts do occur


def test_two_objects_ask_for_one_slot():
    # Objects 0 and 1 prefer slot 1, object 1 at less cost; object 2 prefers slot 0.
    cost = torch.tensor([[5.0, 4, 0], [2, 1, 9], [3, 7, 9]])
    assert pairs(assign(min_cost, cost, conflict="keep")) == [(1, 0), (1, 1), (0, 2)]
    assert pairs(assign(min_cost, cost, conflict="drop")) == [(1, 1), (0, 2)]
    assert pairs(assign(min_cost, cost, conflict="next_best")) == [(2, 0), (1, 1), (0, 2)]
    assert assign(min_cost, cost).conflicts.item() == 1


def test_the_loser_of_a_slot_may_push_out_a_third_object():
    # Object 1 chooses first; object 0 then takes slot 1, which object 2 prefers.
    cost = torch.tensor([[1.0, 0, 9], [2, 9, 3], [9, 9, 4]])
    assert pairs(assign(min_cost, cost, conflict="next_best")) == [(1, 0), (0, 1), (2, 2)]


def test_equal_costs_go_to_the_lower_slot_and_then_to_the_lower_object():
    cost = torch.zeros(3, 2)
    assert pairs(assign(min_cost, cost, conflict="keep")) == [(0, 0), (0, 1)]
    assert pairs(assign(min_cost, cost, conflict="drop")) == [(0, 0)]
    assert pairs(assign(min_cost, cost, conflict="next_best")) == [(0, 0), (1, 1)]


def test_equal_costs_go_to_the_lower_index_in_large_problems_too():
    cost = torch.ones(5000, 40)
    cost[[77, 300, 4999]] = 0.0
    assert pairs(assign(min_cost, cost, conflict="drop")) == [(77, 0)]
    assert assign(min_cost, cost).pred_idx.tolist() == [77] * 40
    next_best = assign(min_cost, cost, conflict="next_best").pred_idx.tolist()
    others = [slot for slot in range(5000) if slot not in (77, 300, 4999)]
    assert next_best == [77, 300, 4999, *others[:37]]


def test_next_best_leaves_out_the_most_expensive_objects_where_slots_run_out():
    cost = torch.tensor([[3.0, 1, 2, 5], [4, 6, 2, 5]])
    assert pairs(assign(min_cost, cost, conflict="next_best")) == [(0, 1), (1, 2)]


def test_near_copies_of_an_object():
    base = torch.rand(30, 1, generator=seeded())
    cost = base + 1e-7 * torch.arange(5)  # five objects with the same preferences
    best = base.flatten().argsort().tolist()
    assert assign(min_cost, cost, conflict="keep").pred_idx.tolist() == best[:1] * 5
    assert pairs(assign(min_cost, cost, conflict="drop")) == [(best[0], 0)]
    assert assign(min_cost, cost, conflict="next_best").pred_idx.tolist() == best[:5]
    assert sorted(assign(hungarian, cost).pred_idx.tolist()) == sorted(best[:5])
    assert assign(min_cost, cost).conflicts.item() == 4


@pytest.mark.parametrize("conflict", BRUTE)
def test_the_cost_is_left_alone(conflict):
    cost = torch.rand(6, 9, generator=seeded())
    before = cost.clone()
    lowest, slot = cost.min(dim=0)
    loser = not_first_of_group(slot, lowest)
    assert loser.any()
    resolve_conflicts(lowest, slot, loser, conflict, lambda: cost)
    assert torch.equal(cost, before)


# --- Hungarian ---


def test_hungarian_has_the_least_total_cost_of_all_permutations():
    for rows in small_costs(most_slots=6, most_objects=6, count=150):
        slots, objects = len(rows), len(rows[0])
        matches = assign(hungarian, torch.tensor(rows).reshape(slots, objects))
        assignment = pairs(matches)
        assert len(assignment) == min(slots, objects)
        assert (
            len({slot for slot, _ in assignment})
            == len({gt for _, gt in assignment})
            == len(assignment)
        )
        assert matches.gt_idx.tolist() == sorted(matches.gt_idx.tolist())
        total = sum(rows[slot][gt] for slot, gt in assignment)
        assert total == brute_least_total(rows, slots, objects), rows
        assert matches.conflicts.item() == brute_conflicts(rows, slots, objects)


def test_hungarian_gives_way_where_min_cost_does_not():
    cost = torch.tensor([[0.0, 1], [9, 3]])
    assert pairs(assign(hungarian, cost)) == [(0, 0), (1, 1)]
    assert pairs(assign(min_cost, cost)) == [(0, 0), (0, 1)]
    assert assign(hungarian, cost).conflicts.item() == 1
