"""The paper's claims as conditions on runs: one number per seed, which must lie on one side of a
bound. The ids are those of claims.csv.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.core import fps
from analysis.core.evidence import Evidence, by_seed, fraction_by_seed, inside, nearest
from analysis.core.intervals import paired
from analysis.core.rows import TableRow
from onenet.sweeps.experiments import NoRow

NOISE = 1.0  # AP: a gain up to this counts as none


@dataclass(frozen=True)
class Condition:
    """`values`, one per seed (or per round of timing), must lie on the side `>`, `<`, `>=` or `<=`
    of `bound`. The side is empty if the rows to compare do not exist."""

    quantity: str
    values: list[float]
    side: str
    bound: float = 0.0
    unit: str = "AP"
    rows: tuple[TableRow, ...] = field(default=(), repr=False)
    paper: float | None = None  # the paper's own value; None if the paper does not print it
    setting: str = ""  # the overrides that this condition adds to the user's

    @property
    def statement(self) -> str:
        text = f"{self.quantity} ({self.setting})" if self.setting else self.quantity
        return f"{text} {self.side} {self.bound:g}" if self.side else text


Predicate = Callable[[Evidence], list[Condition]]


def gain(row: TableRow, side: str, bound: float = 0.0) -> Condition:
    values, paper = [*by_seed(row, "nms_gain").values()], row.paper.numbers.get("nms_gain")
    return Condition(f"NMS gain of {row.label}", values, side, bound, rows=(row,), paper=paper)


def difference(
    one: TableRow,
    other: TableRow,
    side: str,
    bound: float = 0.0,
    metrics: tuple[str, str] = ("AP", "AP"),
    factor: float = 1.0,
) -> Condition:
    """A metric of `one` minus `factor` times a metric of `other`, paired by seed."""
    first = by_seed(one, metrics[0])
    second = {seed: factor * value for seed, value in by_seed(other, metrics[1]).items()}
    times = f"{factor:g} × " if factor != 1 else ""
    quantity = f"{metrics[0]} of {one.label} - {times}{metrics[1]} of {other.label}"
    unit = "per object" if metrics[0].startswith("duplicates") else "AP"
    printed = [one.paper.numbers.get(metrics[0]), other.paper.numbers.get(metrics[1])]
    paper = None if None in printed else printed[0] - factor * printed[1]
    return Condition(quantity, paired(first, second), side, bound, unit, (one, other), paper)


def positive_fraction(
    row: TableRow, where: str, test: Callable, side: str, bound: float
) -> Condition:
    """The percentage of objects whose positive sample passes `test`."""
    values = [100 * value for value in fraction_by_seed(row, test).values()]
    return Condition(f"positives of {row.label} {where}", values, side, bound, "%", (row,))


def fps_difference(one: TableRow, other: TableRow, side: str, bound: float = 0.0) -> Condition:
    """How much faster `one` is than `other`, in percent, for each round of timing."""
    specs = [row.specs[0] for row in (one, other)]
    networks = [fps.network_of(spec.config, spec.evaluation) for spec in specs]
    speeds = fps.rounds_of(fps.read(Path(specs[0].config.runs_root)), networks)
    values = [100 * (a / b - 1) for a, b in zip(*speeds, strict=True)]
    printed = [row.paper.numbers.get("FPS") for row in (one, other)]
    paper = None if None in printed else 100 * (printed[0] / printed[1] - 1)
    quantity = f"FPS of {one.label} against {other.label}"
    return Condition(quantity, values, side, bound, "%", (one, other), paper)


def _under(runs: Evidence, extra: tuple[str, ...], *conditions: Condition) -> list[Condition]:
    """The conditions, with the extra overrides that apply as their setting."""
    setting = " ".join(runs.drop_overridden(extra))
    return [replace(condition, setting=setting) for condition in conditions]


# --- Table 1 ---

PARTS = ("data.shapes.kind=parts",)  # the class shows in a part of the object
PREDEFINED, PREDEFINED_CLS = "predefined", "predefined + class"
PREDICTED, PREDICTED_CLS = "predicted", "predicted + class"


def _table1(runs: Evidence) -> dict[str, TableRow]:
    labels = (PREDEFINED, PREDEFINED_CLS, PREDICTED, PREDICTED_CLS)
    return {label: runs.row("table1", label) for label in labels}


def _no_nms_predicted(runs: Evidence) -> list[Condition]:
    rows = _table1(runs)
    return _no_nms(rows[PREDICTED], rows[PREDICTED_CLS], "<=", 1 / 5)


def _nms_gain_predefined(runs: Evidence) -> list[Condition]:
    return _under(runs, _parts(runs), gain(_predefined_rows(runs)[0], ">"))


def _no_nms_predefined(runs: Evidence) -> list[Condition]:
    return _under(runs, _parts(runs), *_no_nms(*_predefined_rows(runs), "<", 1 / 2))


def _predefined_rows(runs: Evidence) -> list[TableRow]:
    """Both pre-defined rows, on data where the one without the class cost needs NMS. On rigid
    shapes the centre is as good a sample as any, and NMS adds less than NOISE to either row."""
    return [runs.row("table1", label, *_parts(runs)) for label in (PREDEFINED, PREDEFINED_CLS)]


def _parts(runs: Evidence) -> tuple[str, ...]:
    return PARTS if runs.data == "shapes" else ()


def _no_nms(loc_only: TableRow, loc_cls: TableRow, side: str, factor: float) -> list[Condition]:
    gains = ("AP50_nms_gain", "AP50_nms_gain")
    ratio = difference(loc_cls, loc_only, side, 0.0, gains, factor)
    return [gain(loc_cls, "<=", NOISE), ratio]


def _against(
    label: str, others: tuple[str, ...], side: str, metrics: tuple[str, str] = ("AP", "AP")
) -> Predicate:
    """Compares one row of Table 1 to others."""

    def conditions(runs: Evidence) -> list[Condition]:
        rows = _table1(runs)
        return [difference(rows[label], rows[other], side, metrics=metrics) for other in others]

    return conditions


def _duplicates(runs: Evidence) -> list[Condition]:
    rows, metrics = _table1(runs), ("duplicates_per_object",) * 2
    pairs = ((PREDICTED_CLS, PREDICTED), (PREDEFINED_CLS, PREDEFINED))
    return [difference(rows[a], rows[b], "<", metrics=metrics) for a, b in pairs]


# --- Table 2 ---

SINGLE, SINGLE_FAST = "lr 5e-5, train 1, infer 1", "lr 1e-4, train 1, infer 1"
MULTI, MULTI_FAST = "lr 5e-5, train 3, infer 3", "lr 1e-4, train 3, infer 3"
MULTI_ONE = "lr 1e-4, train 3, infer 1"
NETWORKS = ("preset=paper", "data=shapes")  # the paper's networks, on the built-in data


def _between(table: str, one: str, other: str, side: str, bound: float = 0.0) -> Predicate:
    """Compares the AP of two rows."""
    return lambda runs: [difference(runs.row(table, one), runs.row(table, other), side, bound)]


def _speed(table: str, one: str, other: str, *sides: tuple[str, float]) -> Predicate:
    """Compares the FPS of two rows, with the paper's own networks and image sizes: timing needs no
    training, and at 64 pixels it would only show the overhead."""

    def conditions(runs: Evidence) -> list[Condition]:
        rows = [runs.row(table, label, *NETWORKS) for label in (one, other)]
        return _under(runs, NETWORKS[:1], *(fps_difference(*rows, *side) for side in sides))

    return conditions


# --- Tables 3 and 4 ---

SIZES = ("(512, 853)", "(512, 640)")
EPOCHS = ("36 epochs", "72 epochs", "144 epochs", "216 epochs")


def _schedule_accuracy(runs: Evidence) -> list[Condition]:
    quarter, half, whole, _ = (runs.row("table4", label) for label in EPOCHS)
    return [difference(half, quarter, ">"), difference(whole, half, ">")]


def _schedule_saturates(runs: Evidence) -> list[Condition]:
    """Compares two gains over 72 epochs each: from 144 to 216, and from 72 to 144."""
    _, *rows = (runs.row("table4", label) for label in EPOCHS)
    half, whole, longer = (by_seed(row, "AP") for row in rows)
    late_gain = {seed: longer[seed] - whole[seed] for seed in longer.keys() & whole.keys()}
    early = {seed: whole[seed] - half[seed] for seed in whole.keys() & half.keys()}
    quantity = "AP gained from 144 to 216 epochs - from 72 to 144"
    at_72, at_144, at_216 = (row.paper.numbers["AP"] for row in rows)
    paper = (at_216 - at_144) - (at_144 - at_72)
    return [Condition(quantity, paired(late_gain, early), "<", rows=tuple(rows), paper=paper)]


# --- Tables 5 and 6 ---

# 2,400 steps of the proxy are too few for a ResNet-18 trained from scratch; the paper's starts from
# ImageNet. And a Gaussian must cover several cells before picking peaks makes a difference.
LONGER = ("schedule=2",)
LARGER = ("backbone=tiny", "size.short=128", "schedule=0.5")


def _longer(runs: Evidence) -> tuple[str, ...]:
    return LONGER if runs.proxy else ()


def _backbones(runs: Evidence) -> list[tuple[str, str]]:
    """Pairs of labels: CenterNet and OneNet with the same backbone."""
    if runs.proxy:
        names = ("tiny", "ResNet-18, (512, 853)")
        return [(f"CenterNet, {name}", f"OneNet, {name}") for name in names]
    names = ("ResNet-18", "ResNet-50", "ResNet-101")
    return [(f"CenterNet, {name}, (512, 512)", f"OneNet, {name}, (512, 853)") for name in names]


def _centernet_equal(runs: Evidence) -> list[Condition]:
    conditions = []
    for pair in _backbones(runs):
        center, one = (runs.row("table5", label, *_longer(runs)) for label in pair)
        conditions += [difference(one, center, ">=", -3.0), difference(one, center, "<=", 3.0)]
    return _under(runs, _longer(runs), *conditions)


def _centernet_needs_peaks(runs: Evidence) -> list[Condition]:
    """CenterNet only: OneNet picks no peaks, so it cannot lose them."""
    label, extra = "CenterNet, ResNet-18, (512, 853)", ()
    if runs.proxy:
        label, extra = "CenterNet, tiny", LARGER
    peaks, no_peaks = (runs.row("table5", name, *extra) for name in (label, f"{label}, no peaks"))
    return _under(runs, extra, difference(no_peaks, peaks, "<"))


def _backbone_scales(runs: Evidence) -> list[Condition]:
    rows = [runs.row("table5", name, *_longer(runs)) for _, name in _backbones(runs)]
    pairs = zip(rows, rows[1:], strict=False)
    return _under(runs, _longer(runs), *(difference(b, a, ">") for a, b in pairs))


def _sparse(detector: str) -> Predicate:
    def conditions(runs: Evidence) -> list[Condition]:
        loc_only = runs.row("table6", f"{detector}, location")
        loc_cls = runs.row("table6", f"{detector}, location + class")
        better = difference(loc_cls, loc_only, ">")
        return [gain(loc_only, ">"), gain(loc_cls, "<=", NOISE), better]

    return conditions


# --- positive samples, assigners ---


def has_parts(row: TableRow) -> bool:
    """Whether the row's images show the class in a part of the object."""
    data = row.specs[0].config.data
    return data.name == "shapes" and data.shapes.kind == "parts"


def _positives_centre(runs: Evidence) -> list[Condition]:
    row = runs.row("table1", PREDEFINED)
    return [positive_fraction(row, "at the grid point nearest the centre", nearest, ">", 95.0)]


def _positives_discriminative(runs: Evidence) -> list[Condition]:
    """Compares both costs with a class term to the pre-defined cost without one, which by the
    paper ignores the discriminative part."""
    if runs.data != "shapes":
        raise NoRow(f"Only data=shapes marks the discriminative part, not data={runs.data}.")
    test, conditions = inside("part_xyxy"), []
    base = runs.row("table1", PREDEFINED, *PARTS)
    base_fractions = fraction_by_seed(base, test) if has_parts(base) else {}
    for label in (PREDEFINED_CLS, PREDICTED_CLS):
        row = runs.row("table1", label, *PARTS)
        values = [100 * value for value in paired(fraction_by_seed(row, test), base_fractions)]
        quantity = f"positives inside the part, {label} - {PREDEFINED}"
        conditions.append(Condition(quantity, values, ">", 0.0, "%", (row, base)))
    return conditions


def _positives_inside(runs: Evidence) -> list[Condition]:
    rows, test = _table1(runs), inside("gt_xyxy")
    labels = (PREDEFINED_CLS, PREDICTED_CLS)
    return [positive_fraction(rows[label], "inside the box", test, ">", 95.0) for label in labels]


PREDICATES: dict[str, Predicate] = {
    "nms_gain_predicted": lambda runs: [gain(runs.row("table1", PREDICTED), ">")],
    "nms_gain_predefined": _nms_gain_predefined,
    "no_nms_predicted": _no_nms_predicted,
    "no_nms_predefined": _no_nms_predefined,
    "best_row": _against(PREDICTED_CLS, (PREDICTED, PREDEFINED_CLS, PREDEFINED), ">"),
    "worst_row": _against(PREDICTED, (PREDEFINED, PREDEFINED_CLS, PREDICTED_CLS), "<"),
    "beats_nms": _against(PREDICTED_CLS, (PREDICTED, PREDEFINED), ">", ("AP", "AP_nms")),
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
    # Not worse by more than NOISE: three seeds scatter too much for a test of equality.
    "hungarian_not_needed": _between("assigners", "minimum cost", "Hungarian", ">=", -NOISE),
}
