"""Measures matching and focal loss against plain versions: time at batch 8, memory at batch 1."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from analysis.speed import plain
from analysis.speed.scenes import MAP_HW, WORST, fresh, scene
from analysis.speed.timing import Curve, Timing, compare, compare_memory, least_seconds
from onenet.assigners import hungarian, make_matcher
from onenet.costs import MatchingCost
from onenet.ops.focal import focal_loss
from onenet.structures import HeadOutput, Target
from onenet.system.memory import keep_freed_memory

BATCH = 8
GOALS = {7: 10.0, 20: 10.0, 100: 9.0}  # objects per image -> speed-up aimed at
WHERE = f"map 128×214, 80 classes, batch {BATCH}"
Pair = tuple[Callable[[], object], Callable[[], object]]  # the plain version, and ours


def match(output: HeadOutput, targets: list[Target]):
    return make_matcher("min_cost", "keep")(MatchingCost(), output, targets)


def _pair(output: HeadOutput, targets: list[Target]) -> Pair:
    """Returns the plain matching and ours, on the same predictions and targets."""
    return partial(plain.match, output, targets), partial(match, output, targets)


def _times(output: HeadOutput, targets: list[Target], rounds: int = 5) -> list[float]:
    """Returns the milliseconds of the plain matching, of the plain one that gathers the objects'
    columns first, and of ours."""
    all_classes, ours = _pair(output, targets)
    gathered = partial(plain.match, output, targets, gather_first=True)
    return [1000 * each for each in least_seconds(all_classes, gathered, ours, rounds=rounds)]


def matching_rows() -> list[Timing]:
    rows = []
    for objects, goal in GOALS.items():
        output, targets = scene(BATCH, objects)
        _check_same_matches(output, targets)
        all_classes, gathered, ours = _times(output, targets)
        key, what = f"match_n{objects}", "the plain version gathers first"
        rows.append(Timing(key, f"{objects} objects, {WHERE}", all_classes, ours, "ms", goal))
        rows.append(Timing(f"{key}_gathered", what, gathered, ours, "ms"))
    what = f"20 objects, predicted boxes of random sizes, {WHERE}"
    rows.append(compare("match_n20_scattered", what, *_pair(*scene(BATCH, 20, scattered=True))))
    what = "100 objects, one image, peak of allocated memory"
    rows.append(compare_memory("match_n100_memory", what, *_pair(*scene(1, 100)), 5.0))
    return rows


def worst_rows() -> list[Timing]:
    """Predictions that leave a search little to skip, against a plain version that picks the
    objects' columns first. Both keep freed memory."""
    keep_freed_memory()
    rows, fresh_rows = [], []
    for objects in (20, 100):
        output, targets = scene(BATCH, objects)
        for distribution in WORST:
            changed = distribution(output, targets)
            all_classes, gathered, ours = _times(changed, targets, rounds=3)
            name = distribution.__name__
            what = f"{objects} objects, {name.replace('_', ' ')}"
            key, how = f"worst_{name}_n{objects}", "its plain gathers columns first"
            rows.append(Timing(key, f"{what}; {how}", gathered, ours, "ms"))
            if distribution is fresh:
                fresh_rows.append(Timing("match_fresh", what, all_classes, ours, "ms", 5.0))
    lowest = min(rows, key=lambda row: row.ratio)
    worst = replace(lowest, key="match_worst", what=f"the lowest of these: {lowest.what}", goal=0.9)
    return [*rows, worst, min(fresh_rows, key=lambda row: row.ratio)]


def hungarian_rows() -> list[Timing]:
    """Hungarian matching of 100 objects, against scipy on all slots of every image."""
    arguments = MatchingCost(), *scene(BATCH, 100)
    pair = partial(plain.hungarian, *arguments), partial(hungarian, *arguments)
    for slots, matches in zip(*(work() for work in pair), strict=True):
        assert slots.tolist() == matches.pred_idx.tolist()
    what = f"assigner=hungarian, 100 objects, batch {BATCH}; its plain: scipy on all slots"
    return [compare("hungarian", what, *pair, goal=8.0, rounds=3)]


def _check_same_matches(output: HeadOutput, targets: list[Target]) -> None:
    """Checks that our slots cost the same as the plain version's. The slots may differ in near
    ties, as the plain focal cost adds 1e-8 inside the logarithms."""
    expected, matches = (work() for work in _pair(output, targets))
    for image, (target, slots) in enumerate(zip(targets, expected, strict=True)):
        cost = MatchingCost()(output, image, target)
        objects = torch.arange(len(slots))
        ours, theirs = cost[matches[image].pred_idx, objects], cost[slots, objects]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def focal_rows() -> list[Timing]:
    size = "[27392, 80] logits, forward and backward"
    memory = f"{size}, one image, peak of allocations"
    return [
        compare("focal", f"{size}, batch {BATCH}", *_focal_pair(BATCH), goal=4.0),
        compare_memory("focal_memory", memory, *_focal_pair(1), goal=3.0),
    ]


def _focal_pair(images: int, map_hw: tuple[int, int] = MAP_HW, classes: int = 80) -> Pair:
    """Returns the plain focal loss and ours, each with its backward pass, on the same positives."""
    output, targets = scene(images, 7, map_hw, classes)
    logits = output.class_logits.requires_grad_()
    slot = torch.cat([match.pred_idx for match in match(output, targets)])
    label = torch.cat([target.gt_labels for target in targets])
    image = torch.arange(images).repeat_interleave(7)
    one = torch.ones(len(slot))

    def plain_loss() -> None:
        logits.grad = None
        plain.focal_loss(logits, image, slot, label).backward()

    def our_loss() -> None:
        logits.grad = None
        focal_loss(logits, (image, slot, label), one, -one).backward()

    plain_loss()
    expected = logits.grad
    our_loss()
    torch.testing.assert_close(logits.grad, expected)
    return plain_loss, our_loss


def growth() -> list[Curve]:
    """Times matching and focal loss of one image as its size, objects or classes grow."""
    maps, pixels = ((32, 53), (64, 107), (128, 214), (256, 427)), "slots (pixels / 16)"
    curves = (
        ("matching", "objects", {n: _pair(*scene(1, n)) for n in (1, 3, 10, 30, 100)}),
        ("matching", "classes", {k: _pair(*scene(1, 7, MAP_HW, k)) for k in (3, 20, 80, 320)}),
        ("matching", pixels, {h * w: _pair(*scene(1, 7, (h, w))) for h, w in maps}),
        ("focal loss", "classes", {k: _focal_pair(1, MAP_HW, k) for k in (3, 20, 80)}),
        ("focal loss", pixels, {h * w: _focal_pair(1, (h, w)) for h, w in maps}),
    )
    return [
        Curve(what, x, [(value, *least_seconds(*pair, rounds=3)) for value, pair in pairs.items()])
        for what, x, pairs in curves
    ]
