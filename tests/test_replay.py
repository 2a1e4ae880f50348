"""Replays of saved predictions with other matchings, against brute force.

Run: pytest tests/test_replay.py
"""

import csv
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from analysis import replay
from analysis.replay import AS_TRAINED, COLUMNS, config_with
from onenet import build
from onenet.config.compose import compose, loader, to_dict
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.system.files import write_json
from tests.conftest import Pictures, make_annotations
from tests.test_snapshots import arrays, seen

PARTS, FEW = "data.shapes.kind=parts", "data.shapes.max_objects=4"
TRAINED = {
    "predicted": ["cost=loc_cls", FEW],
    "predefined": ["location=predefined", "cost=loc_only"],
    "hungarian": ["assigner=hungarian", PARTS, FEW],
    "drop": ["cost=cls_only", "assigner.conflict=drop", PARTS],
    "released": ["reference=released", "cost.weights.cls=3"],
    "deformable_detr": ["detector=deformable_detr"],
    "sparse_rcnn": ["detector=sparse_rcnn", PARTS],
}
QUERIES = ("deformable_detr", "sparse_rcnn")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A runs root with the snapshot of an untrained network for each matching."""
    runs_root = tmp_path_factory.mktemp("replay") / "runs"
    for number, (name, words) in enumerate(TRAINED.items()):
        finish(runs_root / f"{name}-{number:010x}", *words)
    return runs_root


def finish(path: Path, *words: str, source=None) -> Path:
    words = words if any("detector=" in word for word in words) else ("neck.channels=8", *words)
    path.mkdir(parents=True)
    folder, run, _ = seen(path, *words, source=source)
    folder.freeze(to_dict(run.config))
    return path


def folder_of(root: Path, name: str) -> Path:
    return next(root.glob(f"{name}-*"))


def printed(capsys, *arguments) -> str:
    """The command's output; it must succeed."""
    assert replay.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    """The command's error message; it must fail with a short one."""
    assert replay.main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr()
    assert message.out == ""
    assert message.err.startswith("error: ")
    assert len(message.err.splitlines()) <= 7
    return message.err


def replayed_rows(folder: Path, variants) -> list:
    return [*replay.replay(folder, overrides(variants)).itertuples()]


def overrides(variants) -> list[tuple]:
    return [tuple(loader().parse(words)) for words in variants]


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def images(folder: Path):
    """Per image: its objects' rows in assignments.npz, boxes, points, logits by class, height and
    width."""
    assignments, predictions = (
        arrays(folder / f"{name}.npz") for name in ("assignments", "predictions")
    )
    slot = label = logit = 0
    for number, image_id in enumerate(predictions["image_id"]):
        slots, classes = predictions["slots"][number], predictions["classes"][number]
        labels = predictions["labels"][label : label + classes].tolist()
        table = predictions["logits"][logit : logit + slots * classes].reshape(slots, classes)
        yield (
            np.flatnonzero(assignments["image_id"] == image_id),
            predictions["boxes_xyxy"][slot : slot + slots].astype(float),
            predictions["points_xy"][slot : slot + slots].astype(float),
            {each: table[:, column].astype(float) for column, each in enumerate(labels)},
            predictions["size_hw"][number].tolist(),
        )
        slot, label, logit = slot + slots, label + classes, logit + slots * classes


def scalar_cost(config, box, point, logit: float, gt, height: int, width: int) -> float:
    """The cost of one slot and one object, in scalars."""
    w, total = config.cost_weights(), 0.0
    p = 1 / (1 + math.exp(-logit))
    if w.cls and config.cost.cls_form == "cross_entropy":
        total -= w.cls * math.log(p)
    elif w.cls:
        a, g = config.cost.alpha, config.cost.gamma
        total -= w.cls * a * (1 - p) ** g * math.log(p)
        total += w.cls * (1 - a) * p**g * math.log(1 - p)
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, gt
    if config.cost.l1_format == "xyxy":
        differences = [(x1 - u1) / width, (y1 - v1) / height, (x2 - u2) / width, (y2 - v2) / height]
    else:
        differences = [(x1 + x2 - u1 - u2) / 2 / width, (y1 + y2 - v1 - v2) / 2 / height]
        differences += [(x2 - x1 - u2 + u1) / width, (y2 - y1 - v2 + v1) / height]
    total += w.l1 * sum(map(abs, differences))
    overlap = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    hull = (max(x2, u2) - min(x1, u1)) * (max(y2, v2) - min(y1, v1))
    total += w.iou * (1 - overlap / union) + w.giou * (2 - overlap / union - union / hull)
    if w.center:
        x, y = point
        total += w.center * (abs(x - (u1 + u2) / 2) / width + abs(y - (v1 + v2) / 2) / height)
    return total


def costs(config, boxes, points, logits, gt, labels, size) -> np.ndarray:
    """[P, N]"""
    return np.array(
        [
            [
                scalar_cost(config, box, point, logits[label][slot], truth, *size)
                for truth, label in zip(gt, labels, strict=True)
            ]
            for slot, (box, point) in enumerate(zip(boxes, points, strict=True))
        ]
    ).reshape(len(boxes), len(gt))


def least_total(cost: np.ndarray) -> float:
    """The optimum by brute force; each object needs only its N cheapest slots."""
    count = cost.shape[1]
    near = np.argsort(cost, axis=0)[:count].T
    ways = (way for way in itertools.product(*near) if len({*way}) == count)
    return min(sum(cost[slot, gt] for gt, slot in enumerate(way)) for way in ways)


@pytest.mark.parametrize("name", TRAINED)
def test_as_trained_is_what_was_recorded(root, name):
    folder = folder_of(root, name)
    assignments = arrays(folder / "assignments.npz")
    (row,) = replayed_rows(folder, [])
    rows = np.concatenate([rows for rows, *_ in images(folder)])
    assert (row.run, row.variant, row.objects) == (folder.name, AS_TRAINED, len(rows))
    np.testing.assert_array_equal(row.slot, assignments["slot"][-1, rows])
    assert row.changed == 0
    has = rows[row.slot >= 0]
    if name in QUERIES:
        assert math.isnan(row.nearest)
    else:
        assert row.nearest == pytest.approx(100 * assignments["nearest"][-1, has].mean())
    place, gt, part = (assignments[key] for key in ("place_xy", "gt_xyxy", "part_xyxy"))
    for share, box in ((row.inside_box, gt), (row.inside_part, part)):
        inside = (place[-1, has] >= box[has, :2]) & (place[-1, has] <= box[has, 2:])
        assert share == pytest.approx(100 * inside.all(axis=1).mean())
    iou = 1 - assignments["terms"][-1, has, 2]
    assert row.iou == pytest.approx(iou.mean(), abs=1e-6)
    pairs = zip(has, row.slot[row.slot >= 0], strict=True)
    logit = {
        row: (own, logits)
        for rows, _, _, logits, _ in images(folder)
        for own, row in enumerate(rows)
    }
    scores = [1 / (1 + np.exp(-logit[at][1][assignments["label"][at]][slot])) for at, slot in pairs]
    assert row.score == pytest.approx(np.mean(scores), rel=1e-5)


VARIANTS = [
    ("cost=loc_only",),
    ("cost=algorithm1",),
    ("cost=box_assignment", "assigner=min_cost"),
    ("cost.weights.cls=30", "cost.weights.iou=1", "cost.l1_format=xyxy"),
    ("cost.alpha=0.5", "cost.gamma=1", "assigner=min_cost"),
    ("location=predefined",),
    ("location=predefined", "cost.weights.center=40", "assigner=hungarian"),
    ("assigner=hungarian", "cost.weights.cls=30"),
]


@pytest.mark.parametrize("name", ["predicted", "hungarian"])
def test_each_variant_chooses_as_brute_force_does(root, name):
    folder = folder_of(root, name)
    assignments, values = arrays(folder / "assignments.npz"), RunFolder(folder).config()
    replayed = replayed_rows(folder, VARIANTS)
    assert [row.variant for row in replayed[1:]] == [" ".join(words) for words in VARIANTS]
    for words, row in zip(VARIANTS, replayed[1:], strict=True):
        config = config_with(values, *overrides([words]))
        start, conflicts, rows_of_all = 0, 0, []
        for rows, boxes, points, logits, size in images(folder):
            slot = row.slot[start : start + len(rows)]
            cost = costs(
                config,
                boxes,
                points,
                logits,
                assignments["gt_xyxy"][rows],
                assignments["label"][rows],
                size,
            )
            own = cost[slot, range(len(rows))]
            if config.assigner.name == "hungarian":
                assert own.sum() == pytest.approx(least_total(cost), abs=1e-4)
            else:
                np.testing.assert_allclose(own, cost.min(axis=0), atol=1e-5)
            conflicts += len(rows) - len({*cost.argmin(axis=0)})
            start, rows_of_all = start + len(rows), [*rows_of_all, *rows]
        assert row.conflicts == pytest.approx(100 * conflicts / start)
        moved = row.slot != assignments["slot"][-1, rows_of_all]
        assert row.changed == pytest.approx(100 * moved.mean())
    assert max(row.changed for row in replayed) > 20


def test_what_becomes_of_two_objects_that_want_one_slot(tmp_path):
    twins = [(1, (8, 8, 40, 30)), (1, (8, 8, 40, 30)), (0, (40, 34, 60, 60))]
    source = Pictures(make_annotations([(64, 64)], [twins]))
    folder = finish(tmp_path / "twins", source=source)
    keep, next_best, drop = replayed_rows(
        folder, [("assigner.conflict=next_best",), ("assigner.conflict=drop",)]
    )
    assert keep.slot[0] == keep.slot[1] == next_best.slot[0] == drop.slot[0]
    assert next_best.slot[1] not in (-1, keep.slot[0])
    assert drop.slot[1] == -1
    for row in (keep, next_best, drop):
        assert row.conflicts == pytest.approx(100 / 3)
        assert math.isnan(row.inside_part)  # the parts are unknown
    assert (keep.changed, next_best.changed) == (0, pytest.approx(100 / 3))
    assert drop.changed == pytest.approx(100 / 3)
    two, three = drop.iou * 2, keep.iou * 3
    assert 0 <= three - two <= 1  # the mean is over objects with a slot


@pytest.mark.parametrize(
    "objects", [[[], []], [[], [(1, (4, 4, 20, 20)), (0, (2, 2, 9, 9), True)]]]
)
@pytest.mark.parametrize("words", [["cost=loc_cls"], ["detector=sparse_rcnn"]])
def test_images_without_objects(tmp_path, objects, words):
    source = Pictures(make_annotations([(40, 56), (64, 64)], objects))
    folder = finish(tmp_path / "few", *words, source=source)
    for row in replayed_rows(folder, [("cost=loc_only",), ("assigner=hungarian",)]):
        if objects[1]:
            assert (row.objects, row.conflicts) == (1, 0)
        else:
            assert row.objects == 0
            assert all(math.isnan(getattr(row, name)) for name in [*COLUMNS][:-1])


def test_lists_make_rows_and_runs_make_blocks(root, capsys):
    words = ["cost.weights.cls=0,2,8", "assigner=min_cost,hungarian"]
    runs = ["--runs", root, "predicted-0000000000", "hungarian-0000000002"]
    page = printed(capsys, *runs, "--", *words)
    blocks = [part.splitlines() for part in page.split("\n\n") if part.startswith("|")]
    assert [block[0].split("|")[1].strip() for block in blocks] == runs[2:]
    variants = [
        f"cost.weights.cls={c} assigner={a}" for c in (0, 2, 8) for a in ("min_cost", "hungarian")
    ]
    for block in blocks:
        assert [line.split("|")[1].strip() for line in block[2:]] == [AS_TRAINED, *variants]
    (_, row) = replayed_rows(root / runs[2], [("cost.weights.cls=8", "assigner=min_cost")])
    cells = [cell.strip() for cell in blocks[0][7].split("|")[2:-1]]
    assert cells[:2] == [f"{row.changed:.1f}", f"{row.nearest:.1f}"]
    assert cells[4:] == [
        f"{row.conflicts:.1f}",
        f"{row.iou:.3f}",
        f"{row.score:.3f}",
        f"{row.objects}",
    ]
    assert "differs from the snapshot" not in page


def test_csv_is_unrounded_and_out_says_where(root, tmp_path, capsys):
    out = tmp_path / "here"
    arguments = ["0000000001", "--runs", root, "--format", "markdown", "csv", "--out", out]
    assert printed(capsys, *arguments, "--", "cost=loc_cls") == (
        f"Wrote replay.md, replay.csv to {out}.\n"
    )
    rows = replayed_rows(root / "predefined-0000000001", [("cost=loc_cls",)])
    for line, row in zip(lines((out / "replay.csv").read_text()), rows, strict=True):
        assert (line["run"], line["variant"]) == (row.run, row.variant)
        for name in COLUMNS:
            assert float(line[name]) == getattr(row, name)
    assert "| cost=loc_cls" in (out / "replay.md").read_text()
    queries = lines(printed(capsys, *["0000000005", "--runs", root, "--format", "csv"]))
    assert queries[0]["nearest"] == ""
    assert "|         - |" in printed(capsys, "0000000005", "--runs", root)


def test_a_run_is_named_by_id_name_or_folder(root, capsys):
    for words in (["--runs", root, "0000000000"], ["--runs", root, "predicted-0000000000"]):
        assert len(lines(printed(capsys, *words, "--format", "csv"))) == 1
    inside = root / "predicted-0000000000"
    assert len(lines(printed(capsys, inside, "--format", "csv"))) == 1
    both = printed(capsys, inside, "--runs", root, "0000000000", "--format", "csv")
    assert len(lines(both)) == 1


def test_all_runs_of_a_root_but_those_that_cannot_be_replayed(root, tmp_path, capsys):
    for name in ("predicted", "sparse_rcnn"):
        source = folder_of(root, name)
        (tmp_path / source.name).symlink_to(source)
    finish(tmp_path / "centernet-00000000aa", "detector=centernet", "neck.channels=8")
    RunFolder(tmp_path / "begun-00000000bb").freeze({})
    assert (
        replay.main(["--runs", str(tmp_path), "--format", "csv", "--", "location=predefined"]) == 0
    )
    output = capsys.readouterr()
    assert {line["run"] for line in lines(output.out)} == {"predicted-0000000000"}
    messages = output.err.splitlines()
    assert messages[0].startswith(
        "skipped: centernet-00000000aa: centernet trains without matching"
    )
    assert messages[1].startswith(
        "skipped: sparse_rcnn-0000000006: location=predefined has no meaning"
    )
    assert "Available options in 'cost'" in refused_last(capsys, tmp_path, "cost=none")


def refused_last(capsys, root: Path, *words: str) -> str:
    """The last line of the error when no run can be replayed."""
    assert replay.main(["--runs", str(root), "--", *words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err.splitlines()[-1]


def test_the_config_of_result_json_serves_too(root, tmp_path):
    source, folder = folder_of(root, "released"), tmp_path / "record"
    folder.mkdir()
    for name in ("assignments.npz", "predictions.npz"):
        (folder / name).symlink_to(source / name)
    write_json(folder / "result.json", {"config": RunFolder(source).config()})
    recorded, other = replayed_rows(folder, [("cost=loc_only",)])
    assert recorded.changed == 0
    assert other.changed > 0


def matching(config) -> tuple:
    return build.matching_cost(config), config.assigner


DETR, PAPER = "detector=deformable_detr", ["preset=paper", "data=coco", "data.root=gone"]


@pytest.mark.parametrize(
    ("own", "variant", "same_as"),
    [
        (["cost.gamma=3"], ["cost.weights.l1=1"], ["cost.gamma=3", "cost.weights.l1=1"]),
        (["cost.weights.cls=7"], ["cost=loc_only"], ["cost=loc_only"]),
        (["cost=loc_only"], ["cost=loc_cls", "cost.gamma=1.5"], ["cost.gamma=1.5"]),
        (["reference=released"], ["cost=loc_only"], ["reference=released", "cost=loc_only"]),
        (["detector=sparse_rcnn"], ["cost=loc_only"], ["detector=sparse_rcnn", "cost=loc_only"]),
        ([DETR], [], [DETR]),
        ([DETR], ["assigner=min_cost"], [DETR, "assigner=min_cost"]),
        (["assigner.conflict=drop"], ["assigner=min_cost"], []),
        (["location=predefined"], ["location=predicted"], []),
        ([*PAPER, "reference=released"], [], ["reference=released"]),
    ],
)
def test_a_variant_stands_on_the_runs_own_matching(own, variant, same_as):
    values = to_dict(compose(own))
    assert matching(config_with(values, *overrides([variant]))) == matching(compose(same_as))
    assert matching(config_with(values, [])) == matching(compose(own))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["steps=7"], "steps: a replay can only change the matching"),
        (["data.limit=2", "cost=loc_only"], "data.limit: a replay"),
        (["cost.weight.cls=1"], "predicted-0000000000: Could not override 'cost.weight.cls'"),
        (["+cost.extra=1"], "keys can be changed, not added"),
        (["cost=loc_onl"], "predicted-0000000000: Could not find 'cost/loc_onl'"),
        (["cost.weights.cls=-1"], "cost.weights.cls=-1"),
        (["assigner.conflict=none"], "assigner.conflict=none: choose one of keep"),
        (["cost=loc_only", "cost.weights.l1=0", "cost.weights.giou=0"], "no term for location"),
        (["cost.weights.cls=1e39"], "predicted-0000000000: "),
        (["cost.weights.cls=interval(0,1)"], "needs a list of values"),
        (["cost"], "missing EQUAL"),
    ],
)
def test_words_that_cannot_be_replayed_are_named(root, capsys, words, said):
    assert said in refused(capsys, "0000000000", "--runs", root, "--", *words)


@pytest.mark.parametrize("name", QUERIES)
def test_queries_have_no_predefined_location(root, capsys, name):
    message = refused(capsys, folder_of(root, name), "--", "location=predefined")
    assert (
        f"{folder_of(root, name).name}: location=predefined has no meaning for detector=" in message
    )


def test_runs_that_cannot_be_replayed_are_named(root, tmp_path, capsys):
    assert "no run 00000 in" in refused(capsys, "00000", "--runs", root)
    assert "predicted-0000000000" in refused(capsys, "predict", "--runs", root)
    assert "-- cost=loc_only?" in refused(capsys, "cost=loc_only", "--runs", root)
    assert "missing is not a folder" in refused(capsys, "--runs", tmp_path / "missing")
    assert "missing is not a folder" in refused(capsys, "some", "--runs", tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "no complete config.yaml or" in refused(capsys, tmp_path / "empty")
    begun = RunFolder(tmp_path / "begun")
    begun.freeze(to_dict(compose([])))
    assert "begun: there is no assignments.npz" in refused(capsys, begun.path)
    folder = finish(tmp_path / "centernet-1", "detector=centernet", "neck.channels=8")
    message = refused(capsys, folder, "--", "cost=loc_only")
    assert "centernet-1: centernet trains without matching. Leave it out." in message


def test_a_place_that_cannot_be_written_is_named(root, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["0000000000", "--runs", root, "--out", tmp_path / "file"]
    assert "cannot be written" in refused(capsys, *words)


def test_a_first_row_that_is_not_what_was_recorded_is_spoken_of(root, tmp_path, capsys):
    source = folder_of(root, "predicted")
    folder = tmp_path / "other-1"
    folder.mkdir()
    for name in ("config.yaml", "predictions.npz"):
        (folder / name).symlink_to(source / name)
    assignments = arrays(source / "assignments.npz")
    assignments["slot"] = assignments["slot"] + 1
    np.savez_compressed(folder / "assignments.npz", **assignments)
    page = printed(capsys, folder)
    assert "other-1: the first row differs from the snapshot" in page
    assert "100.0" in page


def test_the_function_names_the_run_too(root):
    with pytest.raises(UserError, match=r"predicted-0000000000: Could not find 'cost/x'"):
        replay.replay(root / "predicted-0000000000", overrides([("cost=x",)]))
