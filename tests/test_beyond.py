"""The answers beyond the paper, from hand-written run files, against scipy.

Run: pytest tests/test_beyond.py
"""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis import figures, publish
from analysis.core import beyond, errors
from analysis.core.plots import Drawing
from analysis.core.table import Results
from onenet.sweeps.experiments import RunSpec, expand
from onenet.system.files import write_json
from tests.test_figures import run, table1
from tests.test_tables import fill

NUMBERS = r"([+-]?[\d.]+) \(95 % interval ([+-]?[\d.]+) to ([+-]?[\d.]+), (\d) seeds\)"


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def specs(root: Path, name: str, *words: str) -> list[RunSpec]:
    return expand([f"+experiment={name}", *words, f"runs_root={root}"])


def answers(results: Results) -> list[Drawing]:
    return [*figures.draw(results, beyond.QUESTIONS)]


def answer(root: Path, name: str) -> Drawing:
    [one] = figures.draw(Results([f"runs_root={root}"]), [name])
    return one


def assert_intervals(sentence: str, *samples: list[float]) -> None:
    """The numbers of the sentence are the means of the samples, with Student's intervals."""
    told = re.findall(NUMBERS, sentence)
    assert len(told) == len(samples)
    for (mean, low, high, n), sample in zip(told, samples, strict=True):
        expected = stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))
        assert int(n) == len(sample)
        assert [float(mean), float(low), float(high)] == pytest.approx(
            [np.mean(sample), *expected], abs=0.051
        )


def test_how_much_class_is_enough(root):
    gains = {0: 12.0, 0.25: 5.0, 0.5: 1.0, 1: 0.3, 2: 0.1, 4: 0.0, 8: 0.0}
    for spec in specs(root, "decoupling", "seed=0,1,2"):
        weights, seed = spec.config.cost.weights, spec.config.seed
        if seed and spec.config.loss.weights.cls == 1:
            continue  # one seed: it has no interval, and is in no sentence
        fill(spec, AP=60.0, nms_gain=gains[weights.cls] + 0.2 * seed)
    one = answer(root, "decoupling")
    zero = [12.0, 12.2, 12.4]
    assert_intervals(one.sentence, zero, zero, [0.3, 0.5, 0.7])
    assert (
        "AP with a class weight of the loss of 4; a weight of 1 in the cost leaves" in one.sentence
    )
    assert len(one.table) == 21


def test_what_nms_costs_where_objects_overlap(root):
    for spec in specs(root, "crowded"):
        seed = spec.config.seed
        fill(spec, AP=50.0, AP_nms=40.0 + seed, AP_nms_06=47.0 - seed, AP_nms_07=50.5 + seed)
    one = answer(root, "crowded")
    assert_intervals(one.sentence, [-10, -9, -8], [-3, -4, -5], [0.5, 1.5, 2.5])


def test_one_to_one_against_a_shared_slot_is_paired_by_seed(root):
    for spec in specs(root, "conflicts", "seed=0,1,2"):
        assigner, seed = spec.config.assigner, spec.config.seed
        kind = spec.config.data.shapes.kind
        if assigner.name == "hungarian" and seed == 2 and kind == "rigid":
            continue  # its pair does not count
        one_to_one = 5.0 * (1 + seed) if assigner.name == "hungarian" else 0.0
        fill(spec, AP=40.0 + 10 * seed + one_to_one)
    one = answer(root, "shared_slots")
    rigid, crowded = [5, 10], [5, 10, 15]
    assert_intervals(one.sentence, *[rigid] * 3, *[crowded] * 3)
    assert "on rigid shapes with a centre weight of 1.25, by " in one.sentence
    assert one.table.loc["crowded, centre 10", "keep"] == "50.0 ± 10.0"


def test_the_score_gap_of_each_row_and_the_errors_of_table_1(root, capsys):
    rows = table1(root)
    for spec in rows:
        gap = 0.4 if "cost=loc_cls" in spec.overrides else -0.1
        tide = dict.fromkeys(("dAP_dupe", "dAP_dupe_nms"), 3.0)
        fill(spec, AP=60.0, nms_gain=1.0, score_gap=gap, **tide)
    sentence = answer(root, "score_gap").sentence
    assert re.findall(r"-?0\.\d\d(?= \()", sentence) == ["-0.10", "0.40", "-0.10", "0.40"]
    page = errors.page(Results([f"runs_root={root}"]).table("table1"))
    assert [*page.tables[0].dupe] == ["3.0 → 3.0"] * 4
    assert capsys.readouterr().err == ""  # per_image.npz may be absent, as in the records
    file = rows[0].folder.evaluation(rows[0].evaluation) / "per_image.npz"
    file.write_bytes(b"PK")
    result = {"metrics": {"AP": 60.0}, "evaluation": asdict(rows[0].evaluation)}
    write_json(rows[0].folder.result_file, result)
    errors.page(Results([f"runs_root={root}"]).table("table1"))
    assert str(file) in capsys.readouterr().err


def test_without_runs_or_with_other_data_there_are_no_answers(root, tmp_path):
    assert answers(Results([f"runs_root={root}"])) == []
    for spec in table1(root):
        fill(spec, AP=60.0, nms_gain=1.0)  # an earlier version's, without score gap
    assert answers(Results([f"runs_root={root}"])) == []
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}2017.json").write_text("{}")
    other = ["data=coco", f"data.root={tmp_path}", f"runs_root={root}"]
    assert answers(Results(other)) == []


def test_runs_of_another_kind_answer_no_question_about_crowded_shapes(root):
    parts = "data.shapes.kind=parts"
    for spec in table1(root, parts):
        fill(spec, AP=60.0, AP_nms=61.0, AP_nms_06=61.0, AP_nms_07=61.0, score_gap=0.4)
    results = Results([parts, f"runs_root={root}"])
    assert [each.name for each in answers(results)] == ["score_gap"]


def test_figures_and_text_are_written(root, tmp_path):
    assert len(figures.NAMES) == len({*figures.NAMES})
    for spec in specs(root, "crowded"):
        run(spec)
    assert figures.main(["--runs", str(root), "--only", "crowded", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "crowded.svg").is_file()
    text = publish.beyond_text(Results([f"runs_root={root}"]))
    assert "### Objects that overlap" in text
    assert "![Objects that overlap](figures/crowded.svg)" in text
