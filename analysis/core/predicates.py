"""The paper's claims as statements about runs: each one or more numbers a seed, and the side of a
bound on which they must lie. The ids are those of claims.csv.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.core import fps
from analysis.core.evidence import Evidence, by_seed, inside, nearest, share_by_seed
from analysis.core.intervals import paired
from analysis.core.rows import TableRow
from onenet.sweeps.experiments import NoRow

NOISE = 1.0  # AP: a gain up to this is none (the bound of the issue that asked for the claims)


@dataclass(frozen=True)
class Part:
    """`values`, one a seed (or a round of measuring), must lie on the side `>`, `<`, `>=` or `<=`
    of `bound`. The side is empty where there are no rows of which to say it."""

    what: str
    values: list[float]
    side: str
    bound: float = 0.0
    unit: str = "AP"
    rows: tuple[TableRow, ...] = field(default=(), repr=False)
    paper: float | None = None  # the paper's own value, where it prints what that takes
    setting: str = ""  # overrides under which it is looked at, beside the person's

    @property
    def statement(self) -> str:
        what = f"{self.what} ({self.setting})" if self.setting else self.what
        return f"{what} {self.side} {self.bound:g}" if self.side else what


def gain(row: TableRow, side: str, bound: float = 0.0) -> Part:
    values, paper = [*by_seed(row, "nms_gain").values()], row.paper.numbers.get("nms_gain")
    return Part(f"NMS gain of {row.label}", values, side, bound, rows=(row,), paper=paper)


def difference(
    one: TableRow,
    other: TableRow,
    side: str,
    bound: float = 0.0,
    metrics: tuple[str, str] = ("AP", "AP"),
    factor: float = 1.0,
) -> Part:
    """A metric of one row, less `factor` times one of another, seed by seed."""
    first = by_seed(one, metrics[0])
    second = {seed: factor * value for seed, value in by_seed(other, metrics[1]).items()}
    times = f"{factor:g} × " if factor != 1 else ""
    what = f"{metrics[0]} of {one.label} - {times}{metrics[1]} of {other.label}"
    unit = "a found object" if metrics[0].startswith("duplicates") else "AP"
    printed = [one.paper.numbers.get(metrics[0]), other.paper.numbers.get(metrics[1])]
    paper = None if None in printed else printed[0] - factor * printed[1]
    return Part(what, paired(first, second), side, bound, unit, (one, other), paper)


def share(row: TableRow, what: str, of: Callable, side: str, bound: float) -> Part:
    """In percent of the objects."""
    values = [100 * value for value in share_by_seed(row, of).values()]
    return Part(f"positives of {row.label} {what}", values, side, bound, "%", (row,))


def frames(one: TableRow, other: TableRow, side: str, bound: float = 0.0) -> Part:
    """Frames a second of one row, less those of another, in percent of the other, by rounds of
    measuring."""
    specs = [row.specs[0] for row in (one, other)]
    networks = [fps.network_of(spec.config, spec.evaluation) for spec in specs]
    speeds = fps.rounds_of(fps.read(Path(specs[0].config.runs_root)), networks)
    values = [100 * (a / b - 1) for a, b in zip(*speeds, strict=True)]
    printed = [row.paper.numbers.get("FPS") for row in (one, other)]
    paper = None if None in printed else 100 * (printed[0] / printed[1] - 1)
    what = f"FPS of {one.label} against {other.label}"
    return Part(what, values, side, bound, "%", (one, other), paper)


# --- Table 1 ---

KNOWS_PARTS = ("data.shapes.kind=parts",)  # the class shows in a part of the object
PREDEFINED, PREDEFINED_CLS = "predefined", "predefined + class"
PREDICTED, PREDICTED_CLS = "predicted", "predicted + class"


def _table1(runs: Evidence) -> dict[str, TableRow]:
    labels = (PREDEFINED, PREDEFINED_CLS, PREDICTED, PREDICTED_CLS)
    return {label: runs.row("table1", label) for label in labels}


def _no_nms_predicted(runs: Evidence) -> list[Part]:
    rows = _table1(runs)
    return _no_nms(rows[PREDICTED], rows[PREDICTED_CLS], "<=", 1 / 5)


def _nms_gain_predefined(runs: Evidence) -> list[Part]:
    return [_said(gain(_on_parts(runs)[0], ">"), runs, _parts(runs))]


def _no_nms_predefined(runs: Evidence) -> list[Part]:
    return [_said(part, runs, _parts(runs)) for part in _no_nms(*_on_parts(runs), "<", 1 / 2)]


def _on_parts(runs: Evidence) -> list[TableRow]:
    """Both pre-defined rows where there is a need to remove: on rigid shapes the centre is as good
    a sample as any, and NMS adds less than NOISE even without the class cost."""
    return [runs.row("table1", label, *_parts(runs)) for label in (PREDEFINED, PREDEFINED_CLS)]


def _parts(runs: Evidence) -> tuple[str, ...]:
    return KNOWS_PARTS if runs.data == "shapes" else ()


def _no_nms(without: TableRow, with_class: TableRow, side: str, factor: float) -> list[Part]:
    gains = ("AP50_nms_gain", "AP50_nms_gain")
    ratio = difference(with_class, without, side, 0.0, gains, factor)
    return [gain(with_class, "<=", NOISE), ratio]


def _best_row(runs: Evidence) -> list[Part]:
    best, *others = reversed(_table1(runs).values())
    return [difference(best, other, ">") for other in others]


def _worst_row(runs: Evidence) -> list[Part]:
    rows = _table1(runs)
    worst = rows.pop(PREDICTED)
    return [difference(worst, other, "<") for other in rows.values()]


def _beats_nms(runs: Evidence) -> list[Part]:
    rows, metrics = _table1(runs), ("AP", "AP_nms")
    others = (rows[PREDICTED], rows[PREDEFINED])
    return [difference(rows[PREDICTED_CLS], other, ">", metrics=metrics) for other in others]


def _duplicates(runs: Evidence) -> list[Part]:
    rows, metrics = _table1(runs), ("duplicates_per_object",) * 2
    pairs = ((PREDICTED_CLS, PREDICTED), (PREDEFINED_CLS, PREDEFINED))
    return [difference(rows[a], rows[b], "<", metrics=metrics) for a, b in pairs]


# --- Table 2 ---

SINGLE, SINGLE_FAST = "lr 5e-5, train 1, infer 1", "lr 1e-4, train 1, infer 1"
MULTI, MULTI_FAST = "lr 5e-5, train 3, infer 3", "lr 1e-4, train 3, infer 3"
MULTI_ONE = "lr 1e-4, train 3, infer 1"
NETWORKS = ("preset=paper", "data=shapes")  # the paper's, without its data


def _between(
    table: str, one: str, other: str, side: str, bound: float = 0.0
) -> Callable[[Evidence], list[Part]]:
    """A difference of two rows' AP."""

    def parts(runs: Evidence) -> list[Part]:
        return [difference(runs.row(table, one), runs.row(table, other), side, bound)]

    return parts


def _speed(
    table: str, one: str, other: str, *sides: tuple[str, float]
) -> Callable[[Evidence], list[Part]]:
    """Of the paper's own networks at its sizes: frames a second take no training, and on 64 pixels
    they are those of the overhead."""

    def parts(runs: Evidence) -> list[Part]:
        rows = [runs.row(table, label, *NETWORKS) for label in (one, other)]
        return [_said(frames(*rows, *side), runs, NETWORKS[:1]) for side in sides]

    return parts


# --- Tables 3 and 4 ---


SIZES = ("(512, 853)", "(512, 640)")
EPOCHS = ("36 epochs", "72 epochs", "144 epochs", "216 epochs")


def _schedule_accuracy(runs: Evidence) -> list[Part]:
    quarter, half, whole, _ = (runs.row("table4", label) for label in EPOCHS)
    return [difference(half, quarter, ">"), difference(whole, half, ">")]


def _schedule_saturates(runs: Evidence) -> list[Part]:
    """Both steps are half a schedule long."""
    _, half, whole, longer = (runs.row("table4", label) for label in EPOCHS)
    late, early = (
        {s: a[s] - b[s] for s in a.keys() & b.keys()}
        for a, b in (
            (by_seed(longer, "AP"), by_seed(whole, "AP")),
            (by_seed(whole, "AP"), by_seed(half, "AP")),
        )
    )
    what = "AP gained from 144 to 216 epochs - from 72 to 144"
    before, at, after = (row.paper.numbers["AP"] for row in (half, whole, longer))
    paper = (after - at) - (at - before)
    return [Part(what, paired(late, early), "<", rows=(half, whole, longer), paper=paper)]


# --- Tables 5 and 6 ---

# From scratch a ResNet-18 has not learnt in the proxy's 2,400 steps what it can; the paper's starts
# from ImageNet. And Gaussians must cover several cells before peaks have anything to pick.
LONGER = ("schedule=2",)
LARGER = ("backbone=tiny", "size.short=128", "schedule=0.5")


def _backbones(runs: Evidence) -> list[tuple[str, str]]:
    """Rows of CenterNet and OneNet with equal backbones."""
    if runs.proxy:
        return [
            ("CenterNet, tiny", "OneNet, tiny"),
            ("CenterNet, ResNet-18, (512, 853)", "OneNet, ResNet-18, (512, 853)"),
        ]
    sizes = ("(512, 512)", "(512, 853)")
    return [
        (f"CenterNet, {name}, {sizes[0]}", f"OneNet, {name}, {sizes[1]}")
        for name in ("ResNet-18", "ResNet-50", "ResNet-101")
    ]


def _centernet_equal(runs: Evidence) -> list[Part]:
    parts = []
    for pair in _backbones(runs):
        center, one = (runs.row("table5", label, *_longer(runs)) for label in pair)
        parts += [difference(one, center, ">=", -3.0), difference(one, center, "<=", 3.0)]
    return [_said(part, runs, _longer(runs)) for part in parts]


def _longer(runs: Evidence) -> tuple[str, ...]:
    return LONGER if runs.proxy else ()


def _said(part: Part, runs: Evidence, more: tuple[str, ...]) -> Part:
    return replace(part, setting=" ".join(runs.given_way(more)))


def _centernet_needs_peaks(runs: Evidence) -> list[Part]:
    """OneNet has none to lose: it picks none."""
    if runs.proxy:
        labels, more = ("CenterNet, tiny", "CenterNet, tiny, no peaks"), LARGER
    else:
        name = "CenterNet, ResNet-18, (512, 853)"
        labels, more = (name, f"{name}, no peaks"), ()
    peaks, none = (runs.row("table5", label, *more) for label in labels)
    return [_said(difference(none, peaks, "<"), runs, more)]


def _backbone_scales(runs: Evidence) -> list[Part]:
    names = [one for _, one in _backbones(runs)]
    rows = [runs.row("table5", name, *_longer(runs)) for name in names]
    parts = [difference(b, a, ">") for a, b in zip(rows, rows[1:], strict=False)]
    return [_said(part, runs, _longer(runs)) for part in parts]


def _sparse(detector: str) -> Callable[[Evidence], list[Part]]:
    def parts(runs: Evidence) -> list[Part]:
        without = runs.row("table6", f"{detector}, location")
        with_class = runs.row("table6", f"{detector}, location + class")
        better = difference(with_class, without, ">")
        return [gain(without, ">"), gain(with_class, "<=", NOISE), better]

    return parts


# --- positive samples, assigners ---


def knows_parts(row: TableRow) -> bool:
    """Is it of images in which a part shows the class?"""
    data = row.specs[0].config.data
    return data.name == "shapes" and data.shapes.kind == "parts"


def _positives_centre(runs: Evidence) -> list[Part]:
    row = runs.row("table1", PREDEFINED)
    return [share(row, "at the grid point nearest the centre", nearest, ">", 95.0)]


def _positives_discriminative(runs: Evidence) -> list[Part]:
    """Both costs with a class term against the one of which the paper says it ignores the part."""
    if runs.data != "shapes":
        raise NoRow(f"Only the built-in images know the part, not data={runs.data}.")
    test, parts = inside("part_xyxy"), []
    without = runs.row("table1", PREDEFINED, *KNOWS_PARTS)
    shares = share_by_seed(without, test) if knows_parts(without) else {}
    for label in (PREDEFINED_CLS, PREDICTED_CLS):
        row = runs.row("table1", label, *KNOWS_PARTS)
        values = [100 * value for value in paired(share_by_seed(row, test), shares)]
        what = f"positives inside the part, {label} - {PREDEFINED}"
        parts.append(Part(what, values, ">", 0.0, "%", (row, without)))
    return parts


def _positives_inside(runs: Evidence) -> list[Part]:
    rows = _table1(runs)
    inside_box, what = inside("gt_xyxy"), "inside the box"
    return [
        share(rows[label], what, inside_box, ">", 95.0) for label in (PREDEFINED_CLS, PREDICTED_CLS)
    ]


PREDICATES: dict[str, Callable[[Evidence], list[Part]]] = {
    "nms_gain_predicted": lambda runs: [gain(runs.row("table1", PREDICTED), ">")],
    "nms_gain_predefined": _nms_gain_predefined,
    "no_nms_predicted": _no_nms_predicted,
    "no_nms_predefined": _no_nms_predefined,
    "best_row": _best_row,
    "worst_row": _worst_row,
    "beats_nms": _beats_nms,
    "duplicates": _duplicates,
    "lr_hurts_single": _between("table2", SINGLE_FAST, SINGLE, "<"),
    "multi_low_lr": _between("table2", MULTI, SINGLE, "<=", 0.3),
    "multi_high_lr": _between("table2", MULTI_FAST, SINGLE, ">"),
    "single_inference": _between("table2", MULTI_ONE, MULTI_FAST, ">=", -0.3),
    "single_inference_gain": _between("table2", MULTI_ONE, SINGLE, ">"),
    "single_inference_speed": _speed("table2", MULTI_ONE, SINGLE, (">=", -3.0), ("<=", 3.0)),
    "multi_inference_slow": _speed("table2", MULTI_FAST, MULTI_ONE, ("<", 0.0)),
    "size_accuracy": _between("table3", *SIZES, ">"),
    "size_speed": _speed("table3", *SIZES, ("<", 0.0)),
    "schedule_accuracy": _schedule_accuracy,
    "schedule_saturates": _schedule_saturates,
    "centernet_equal": _centernet_equal,
    "centernet_needs_peaks": _centernet_needs_peaks,
    "backbone_scales": _backbone_scales,
    "sparse_ddetr": _sparse("Deformable DETR"),
    "sparse_rcnn": _sparse("Sparse R-CNN"),
    "positives_centre": _positives_centre,
    "positives_discriminative": _positives_discriminative,
    "positives_inside": _positives_inside,
    # No worse by more than NOISE: three seeds differ by more than a test for "equal" can bear.
    "hungarian_not_needed": _between("assigners", "minimum cost", "Hungarian", ">=", -NOISE),
}
