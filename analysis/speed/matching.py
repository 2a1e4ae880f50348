"""Measures matching and focal loss against plain versions: time at batch 8, memory at batch 1."""

from collections.abc import Callable
from functools import partial

import torch

from analysis.speed import plain
from analysis.speed.scenes import MAP_HW, WORST, fresh, scene
from analysis.speed.timing import Curve, Timing, compare, compare_memory, least_seconds, row
from onenet.assigners import hungarian, make_matcher
from onenet.costs import MatchingCost
from onenet.ops.focal import focal_loss
from onenet.structures import HeadOutput, Target
from onenet.system.memory import keep_freed_memory

BATCH = 8
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
    for objects in (7, 20, 100):
        output, targets = scene(BATCH, objects)
        _check_same_matches(output, targets)
        all_classes, gathered, ours = _times(output, targets)
        key = f"match_n{objects}"
        rows.append(row(key, all_classes, ours))
        rows.append(row(f"{key}_gathered", gathered, ours, text="match_gathered"))
    scattered = scene(BATCH, 20, scattered=True)
    rows.append(compare("match_n20_scattered", *_pair(*scattered)))
    rows.append(compare_memory("match_n100_memory", *_pair(*scene(1, 100))))
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
            values = {"objects": objects, "name": name.replace("_", " ")}
            key = f"worst_{name}_n{objects}"
            rows.append(row(key, gathered, ours, text="worst", **values))
            if distribution is fresh:
                fresh_rows.append(row("match_fresh", all_classes, ours, **values))
    lowest, lowest_fresh = (min(each, key=lambda row: row.ratio) for each in (rows, fresh_rows))
    worst = row("match_worst", lowest.plain, lowest.ours, lowest=lowest.what)
    return [*rows, worst, lowest_fresh]


def hungarian_rows() -> list[Timing]:
    """Hungarian matching of 100 objects, against scipy on all slots of every image."""
    arguments = MatchingCost(), *scene(BATCH, 100)
    pair = partial(plain.hungarian, *arguments), partial(hungarian, *arguments)
    for slots, matches in zip(*(work() for work in pair), strict=True):
        assert slots.tolist() == matches.pred_idx.tolist()
    return [compare("hungarian", *pair, rounds=3)]


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
    return [
        compare("focal", *_focal_pair(BATCH)),
        compare_memory("focal_memory", *_focal_pair(1)),
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
