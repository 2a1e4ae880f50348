"""Measures matching and focal loss against plain versions: time at batch 8, memory at batch 1."""

from dataclasses import replace

import torch

from analysis.speed import plain
from analysis.speed.scenes import MAP_HW, WORST, fresh, scene
from analysis.speed.timing import Curve, Timing, least_seconds, peak_bytes
from onenet.assigners import hungarian, make_matcher
from onenet.costs import MatchingCost
from onenet.ops.focal import focal_loss
from onenet.structures import HeadOutput, Target
from onenet.system.memory import keep_freed_memory

BATCH, MIB, MS = 8, 2**20, 1000
GOALS = {7: 10.0, 20: 10.0, 100: 9.0}  # objects per image -> speed-up aimed at


def match(output: HeadOutput, targets: list[Target]):
    return make_matcher("min_cost", "keep")(MatchingCost(), output, targets)


def matching_rows() -> list[Timing]:
    rows = []
    for objects, goal in GOALS.items():
        output, targets = scene(BATCH, objects)
        _check_same_matches(output, targets)
        candidates = [
            lambda o=output, t=targets: plain.match(o, t),
            lambda o=output, t=targets: match(o, t),
            lambda o=output, t=targets: plain.match(o, t, gather_first=True),
        ]
        all_classes, ours, gathered = (MS * s for s in least_seconds(*candidates))
        where = f"map 128×214, 80 classes, batch {BATCH}"
        key = f"match_n{objects}"
        rows.append(Timing(key, f"{objects} objects, {where}", all_classes, ours, "ms", goal))
        rows.append(
            Timing(f"{key}_gathered", "the plain version gathers first", gathered, ours, "ms")
        )
    output, targets = scene(BATCH, 20, scattered=True)
    seconds = least_seconds(lambda: plain.match(output, targets), lambda: match(output, targets))
    what = f"20 objects, predicted boxes of random sizes, {where}"
    rows.append(Timing("match_n20_scattered", what, *(MS * s for s in seconds), "ms"))
    return [*rows, _matching_memory()]


def worst_rows() -> list[Timing]:
    """Predictions that leave a search little to skip, against a plain version that picks the
    objects' columns first. Both keep freed memory."""
    keep_freed_memory()
    rows, fresh_rows = [], []
    for objects in (20, 100):
        output, targets = scene(BATCH, objects)
        for distribution in WORST:
            changed = distribution(output, targets)
            gathered, ours, all_classes = (
                MS * seconds
                for seconds in least_seconds(
                    lambda o=changed, t=targets: plain.match(o, t, gather_first=True),
                    lambda o=changed, t=targets: match(o, t),
                    lambda o=changed, t=targets: plain.match(o, t),
                    rounds=3,
                )
            )
            name = distribution.__name__.replace("_", " ")
            what = f"{objects} objects, {name}"
            key = f"worst_{distribution.__name__}_n{objects}"
            rows.append(
                Timing(key, f"{what}; its plain gathers columns first", gathered, ours, "ms")
            )
            if distribution is fresh:
                fresh_rows.append(Timing("match_fresh", what, all_classes, ours, "ms", 5.0))
    lowest = min(rows, key=lambda row: row.ratio)
    worst = replace(lowest, key="match_worst", what=f"the lowest of these: {lowest.what}", goal=0.9)
    return [*rows, worst, min(fresh_rows, key=lambda row: row.ratio)]


def hungarian_rows() -> list[Timing]:
    """Hungarian matching of 100 objects, against scipy on all slots of every image."""
    output, targets = scene(BATCH, 100)
    cost = MatchingCost()
    pair = (
        lambda: plain.hungarian(cost, output, targets),
        lambda: hungarian(cost, output, targets),
    )
    for slots, matches in zip(*(work() for work in pair), strict=True):
        assert slots.tolist() == matches.pred_idx.tolist()
    seconds = least_seconds(*pair, rounds=3)
    what = f"assigner=hungarian, 100 objects, batch {BATCH}; its plain: scipy on all slots"
    return [Timing("hungarian", what, *(MS * s for s in seconds), "ms", 8.0)]


def _matching_memory() -> Timing:
    output, targets = scene(1, 100)
    peaks = [peak_bytes(lambda f=f: f(output, targets)) / MIB for f in (plain.match, match)]
    what = "100 objects, one image, peak of allocated memory"
    return Timing("match_n100_memory", what, *peaks, "MiB", 5.0)


def _check_same_matches(output: HeadOutput, targets: list[Target]) -> None:
    """Checks that our slots cost the same as the plain version's. The slots may differ in near
    ties, as the plain focal cost adds 1e-8 inside the logarithms."""
    matches = match(output, targets)
    for image, (target, slots) in enumerate(
        zip(targets, plain.match(output, targets), strict=True)
    ):
        cost = MatchingCost()(output, image, target)
        objects = torch.arange(len(slots))
        ours, theirs = cost[matches[image].pred_idx, objects], cost[slots, objects]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def focal_rows() -> list[Timing]:
    seconds = least_seconds(*_focal_pair(BATCH))
    peaks = [peak_bytes(work) / MIB for work in _focal_pair(1)]
    size = "[27392, 80] logits, forward and backward"
    return [
        Timing("focal", f"{size}, batch {BATCH}", *(MS * s for s in seconds), "ms", 4.0),
        Timing("focal_memory", f"{size}, one image, peak of allocations", *peaks, "MiB", 3.0),
    ]


def _focal_pair(images: int, map_hw: tuple[int, int] = MAP_HW, classes: int = 80):
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
    maps = ((32, 53), (64, 107), (128, 214), (256, 427))
    objects = [(n, _matching_pair(scene(1, n))) for n in (1, 3, 10, 30, 100)]
    classes = [(k, _matching_pair(scene(1, 7, classes=k))) for k in (3, 20, 80, 320)]
    slots = [(h * w, _matching_pair(scene(1, 7, (h, w)))) for h, w in maps]
    return [
        _curve("matching", "objects", objects),
        _curve("matching", "classes", classes),
        _curve("matching", "slots (pixels / 16)", slots),
        _curve("focal loss", "classes", [(k, _focal_pair(1, MAP_HW, k)) for k in (3, 20, 80)]),
        _curve(
            "focal loss",
            "slots (pixels / 16)",
            [(h * w, _focal_pair(1, (h, w))) for h, w in maps],
        ),
    ]


def _matching_pair(arguments: tuple[HeadOutput, list[Target]]):
    """Returns the plain matching and ours, on the same predictions and targets."""
    return (lambda: plain.match(*arguments)), (lambda: match(*arguments))


def _curve(what: str, against: str, points: list) -> Curve:
    times = [(value, *least_seconds(*pair, rounds=3)) for value, pair in points]
    return Curve(what, against, times)
