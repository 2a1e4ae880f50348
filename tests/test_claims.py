"""The scorecard, from hand-written results in the run folders of the experiments.

Run: pytest tests/test_claims.py
"""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis import claims, tables
from analysis.core import claims as verdict_code
from analysis.core import fps, scorecard
from analysis.core.claims import VERDICTS, Judgement, judge, read_claims
from analysis.core.frame import RECORDS
from analysis.core.render import csv as csv_page
from analysis.core.render import markdown
from analysis.core.settings import NETWORKS, SETTINGS
from analysis.core.statistics import Interval, t_interval
from analysis.core.table import Results
from onenet.sweeps.experiments import expand, experiment_names, read_experiment
from onenet.system.files import REPOSITORY
from tests.test_fps import speed
from tests.test_tables import fill


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def fill_rows(root, experiment: str, *overrides: str, **rows) -> None:
    """`rows`: label -> metrics as functions of the seed."""
    for spec in expand([f"+experiment={experiment}", *overrides, f"runs_root={root}"]):
        if spec.label in rows:
            metrics = rows[spec.label](spec.config.seed)
            fill(spec, **{"AP": 50.0, "AP_nms": 50.0} | metrics)


class Verdicts(dict):
    """Claim id -> its judgement, computed on first access."""

    def __init__(self, results: Results):
        self.results = results

    def __missing__(self, id_: str) -> Judgement:
        (self[id_],) = judge(self.results, [id_])
        return self[id_]


def verdicts(root, *words: str) -> Verdicts:
    return Verdicts(Results([*words, f"runs_root={root}"]))


def test_the_claims_are_data():
    frame = read_claims()
    assert len(frame) == frame.index.nunique() == 28
    assert set(frame.source) == {"onenet"}
    assert set(frame.setting) <= set(SETTINGS)
    assert set(frame.unit) == {"AP", "%", "per object"}
    for column, names in (("kind", verdict_code.KINDS), ("experiment", experiment_names())):
        assert {name for text in frame[column] for name in text.split("; ")} <= set(names)


def test_every_row_that_a_claim_names_is_a_row_of_its_experiment():
    for _, claim in read_claims().iterrows():
        labels = {row.label for row in read_experiment(claim.experiment).rows}
        for text in filter(None, (claim["rows"], claim.paper_rows)):
            assert {label for part in text.split("; ") for label in part.split(" | ")} <= labels


@pytest.mark.parametrize(
    ("side", "interval", "verdict"),
    [
        (">", (0.1, 2), "reproduced"),
        (">", (0, 2), "too noisy"),
        (">", (0, 0), "contradicted"),
        (">", (-2, -0.1), "contradicted"),
        ("<", (-2, -0.1), "reproduced"),
        ("<", (0, 0), "contradicted"),
        ("<", (-1, 1), "too noisy"),
        (">=", (0, 0), "reproduced"),
        (">=", (-2, 0), "too noisy"),
        ("<=", (0, 0), "reproduced"),
        ("<=", (0.1, 1), "contradicted"),
        (">", (-np.inf, np.inf), "too noisy"),
    ],
)
def test_the_whole_interval_must_lie_on_the_side(side, interval, verdict):
    low, high = interval
    assert verdict_code.verdict(Interval(1.0, low, high, 3), side, 0.0) == verdict
    moved = Interval(8.0, low + 7, high + 7, 3)
    assert verdict_code.verdict(moved, side, 7.0) == verdict


def test_nothing_is_run_in_an_empty_folder_and_the_commands_are_named(root, capsys):
    assert claims.main(["--runs", str(root)]) == 0
    page = capsys.readouterr().out
    assert "28 claims: 28 not run." in page
    for words in (
        "table1",
        "table1 data.shapes.kind=parts",
        "table5 schedule=2 backbone=tiny",
        "table5 schedule=2 backbone=resnet18",
        "table5 size.short=128 schedule=0.5 backbone=tiny",
    ):
        assert f"\npython run.py -m +experiment={words} runs_root={root}\n" in page
    assert f"python analysis/benchmark.py fps --runs {root}\n" in page


def test_differences_are_taken_seed_by_seed(root):
    """Rows vary by 10 AP between seeds, their differences by 0.1."""
    rows = {
        "predicted": lambda s: {"AP": 20 + 10 * s, "AP_nms": 40 + 10 * s + 0.1 * s},
        "predefined": lambda s: {"AP": 25 + 10 * s, "AP_nms": 35 + 10 * s},
        "predefined + class": lambda s: {"AP": 30 + 10 * s, "AP_nms": 30.5 + 10 * s},
        "predicted + class": lambda s: {"AP": 45 + 10 * s + 0.1 * s, "AP_nms": 45 + 10 * s},
    }
    fill_rows(root, "table1", **rows)
    judgements = verdicts(root)
    for claim in ("nms_gain_predicted", "best_row", "worst_row", "beats_nms"):
        assert judgements[claim].verdict == "reproduced", claim
    part = judgements["nms_gain_predicted"].decisive
    assert [*part.values] == pytest.approx([20, 20.1, 20.2])
    assert part.interval == t_interval([*part.values])
    best = [[*part.values] for part in judgements["best_row"].conditions]
    assert best == [pytest.approx([25, 25.1, 25.2]), pytest.approx([15, 15.1, 15.2]),
                    pytest.approx([20, 20.1, 20.2])]  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "gain50", "verdict"),
    [(0.5, 1.0, "reproduced"), (1.5, 1.0, "contradicted"), (0.5, 3.0, "contradicted")],
)
def test_without_need_for_nms_both_gains_must_be_small(root, gain, gain50, verdict):
    fill_rows(
        root, "table1",
        **{
            "predicted": lambda s: {"AP_nms": 60.0, "AP50_nms_gain": 10 + 0.1 * s},
            "predicted + class": lambda s: {"AP_nms": 50 + gain, "AP50_nms_gain": gain50},
        },
    )  # fmt: skip
    assert verdicts(root)["no_nms_predicted"].verdict == verdict


def test_the_predefined_rows_are_looked_at_where_they_need_nms(root):
    rows = {
        "predefined": lambda s: {"AP_nms": 54.0 + s / 9, "AP50_nms_gain": 5.0},
        "predefined + class": lambda s: {"AP_nms": 50.2 + s / 9, "AP50_nms_gain": 1.0 + s / 9},
    }
    fill_rows(root, "table1", **rows)
    assert verdicts(root)["no_nms_predefined"].verdict == "not run"
    assert verdicts(root, "data.shapes.kind=rigid")["no_nms_predefined"].verdict == "reproduced"
    fill_rows(root, "table1", "data.shapes.kind=parts", **rows)
    judgements = verdicts(root)
    for claim in ("nms_gain_predefined", "no_nms_predefined"):
        assert judgements[claim].verdict == "reproduced"
        assert "(data.shapes.kind=parts)" in judgements[claim].conditions[0].statement


def test_a_claim_of_several_parts_is_as_weak_as_its_weakest(root):
    aps = {"36 epochs": 20.0, "72 epochs": 40.0, "144 epochs": 45.0, "216 epochs": 46.0}
    rows = {label: lambda s, ap=ap: {"AP": ap + 0.1 * s} for label, ap in aps.items()}
    fill_rows(root, "table4", **rows)
    judgements = verdicts(root)
    assert judgements["schedule_accuracy"].verdict == "reproduced"
    assert judgements["schedule_saturates"].decisive.interval.mean == pytest.approx(1 - 5)
    assert judgements["schedule_saturates"].verdict == "reproduced"
    fill_rows(root, "table4", **{"144 epochs": lambda s: {"AP": 41 + 5 * (s - 1)}})
    assert verdicts(root)["schedule_accuracy"].verdict == "too noisy"
    fill_rows(root, "table4", **{"144 epochs": lambda s: {"AP": 30.0 + 0.1 * s}})
    noisy = verdicts(root)["schedule_accuracy"]
    assert noisy.verdict == "contradicted"
    assert noisy.decisive.quantity.startswith("AP of 144 epochs")


def test_equal_backbones_are_within_three_points_both_ways(root):
    for near, verdict in ((2.0, "reproduced"), (-4.0, "contradicted"), (4.0, "contradicted")):
        rows = {
            "CenterNet, tiny": lambda s: {"AP": 60.0 + 0.1 * s},
            "OneNet, tiny": lambda s, near=near: {"AP": 60.0 + near},
            "CenterNet, ResNet-18, (512, 853)": lambda s: {"AP": 70.0},
            "OneNet, ResNet-18, (512, 853)": lambda s: {"AP": 70.0 + 0.1 * s},
        }
        fill_rows(root, "table5", "schedule=2", **rows)
        assert verdicts(root)["centernet_equal"].verdict == verdict


def test_speeds_are_compared_round_by_round(root):
    specs = expand(["+experiment=table2", *NETWORKS, f"runs_root={root}"])
    networks = {c.label: fps.network_of(c.config, c.evaluation) for c in specs}
    single, one = networks["lr 5e-5, train 1, infer 1"], networks["lr 1e-4, train 3, infer 1"]
    three = networks["lr 1e-4, train 3, infer 3"]
    rounds = {single: (100.0, 50.0, 80.0), one: (101.0, 50.5, 80.4), three: (60.0, 31.0, 48.5)}
    fps.write(root, [speed(n, frames=max(r), rounds=r) for n, r in rounds.items()])
    judgements = verdicts(root)
    assert judgements["single_inference_speed"].verdict == "reproduced"
    values = judgements["single_inference_speed"].conditions[0].values
    assert [*values] == pytest.approx([1.0, 1.0, 0.5])
    assert judgements["multi_inference_slow"].verdict == "reproduced"
    fps.write(root, [speed(three, frames=9.0, rounds=(9.0,) * 3, measured=7.0)])  # at another time
    judgement = verdicts(root)["multi_inference_slow"]
    assert judgement.verdict == "not run"
    assert scorecard.missing_commands([judgement]) == [
        f"python analysis/benchmark.py fps --runs {root}"
    ]


def write_snapshots(spec, nearest: float, inside: float, parts: bool = True) -> None:
    """100 objects in boxes 0..10; `nearest` and `inside` are fractions of their samples."""
    place = np.where(np.arange(100)[:, None] < round(100 * inside), 5.0, 20.0).repeat(2, axis=1)
    box = np.tile(np.array([0.0, 0, 10, 10]), (100, 1))
    spec.folder.path.mkdir(parents=True, exist_ok=True)
    np.savez(
        spec.folder.assignments_file, steps=[1], slot=np.zeros((1, 100), int), place_xy=place[None],
        nearest=np.arange(100)[None] < round(100 * nearest), gt_xyxy=box,
        part_xyxy=box if parts else np.full_like(box, np.nan),
    )  # fmt: skip


def test_shares_of_positive_samples_come_from_the_last_look(root):
    kinds = (), ("data.shapes.kind=parts",)
    for kind in kinds:
        for spec in expand(["+experiment=table1", *kind, f"runs_root={root}"]):
            fill(spec, AP=50.0, AP_nms=50.0)
            with_class = spec.config.cost.name == "loc_cls"
            write_snapshots(spec, 0.5 if with_class else 0.99, 0.97 if with_class else 0.6)
    judgements = verdicts(root)
    assert judgements["positives_centre"].verdict == "reproduced"
    assert [*judgements["positives_centre"].conditions[0].values] == pytest.approx([99.0] * 3)
    assert judgements["positives_inside"].verdict == "reproduced"
    assert judgements["positives_discriminative"].verdict == "reproduced"
    values = judgements["positives_discriminative"].conditions[0].values
    assert [*values] == pytest.approx([37.0] * 3)


def test_the_csv_has_the_columns_that_checks_read(root, capsys, tmp_path):
    fill_rows(root, "table1", predicted=lambda s: {"AP": 50.0, "AP_nms": 57 + s / 4})
    assert claims.main(["--runs", str(root), "--format", "csv"]) == 0
    lines = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert lines[0] == ["id", "quotation", "effect", "low", "high", "n", "verdict"]
    assert len(lines) == 29
    first = lines[1]
    expected = t_interval([7.0, 7.25, 7.5])
    assert (first[0], first[5], first[6]) == ("nms_gain_predicted", "3", "reproduced")
    assert [float(v) for v in first[2:5]] == pytest.approx(
        [expected.mean, expected.low, expected.high], abs=1e-5
    )
    assert lines[-1][2:] == ["", "", "", "0", "not run"]
    formats = ["markdown", "latex", "csv", "html"]
    arguments = ["--runs", str(root), "--out", str(tmp_path / "out"), "--format", *formats]
    assert claims.main(arguments) == 0
    assert "28 claims: 1 reproduced, 27 not run." in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        f"claims.{suffix}" for suffix in ("md", "tex", "csv", "html")
    }


def test_an_explanation_is_of_one_verdict_on_the_committed_records(root, monkeypatch, tmp_path):
    file = tmp_path / "explanations.yaml"
    file.write_text(
        "nms_gain_predicted:\n  reproduced:\n    text: |\n      because\n      of {gain:.1f} AP\n"
        "    numbers:\n      gain: {rows: predicted, metric: nms_gain}\n"
        "worst_row:\n  too noisy: {text: of that}\n"
    )
    monkeypatch.setattr(verdict_code, "EXPLANATIONS", file)
    judgements = verdicts(RECORDS)
    gain = judgements["nms_gain_predicted"].decisive.interval.mean
    assert judgements["nms_gain_predicted"].explanation == f"because of {gain:.1f} AP"
    assert judgements["worst_row"].explanation == ""
    fill_rows(root, "table1", predicted=lambda s: {"AP_nms": 60.0 + s / 9})
    judgements = verdicts(root)
    assert judgements["nms_gain_predicted"].verdict == "reproduced"
    assert judgements["nms_gain_predicted"].explanation == ""


def test_all_explanations_are_of_claims_and_verdicts():
    explanations = yaml.safe_load(verdict_code.EXPLANATIONS.read_text())
    assert set(explanations) <= set(read_claims().index)
    assert all(set(verdicts) <= set(VERDICTS) for verdicts in explanations.values())


def test_no_number_of_an_explanation_is_written_by_hand():
    """All are computed from the records, except for the paper's own."""
    the_papers = r"144 epochs|5e-5|1e-4|AP50|ResNet-18|schedule=2|float32"
    explanations = yaml.safe_load(verdict_code.EXPLANATIONS.read_text())
    texts = [own["text"] for verdicts in explanations.values() for own in verdicts.values()]
    for text in texts:
        assert not re.search(r"\d", re.sub(the_papers, "", re.sub(r"\{.*?\}", "", text))), text


def test_data_without_parts_says_nothing_about_them(root):
    for words in ((), ("data.shapes.kind=parts",)):
        for spec in expand(["+experiment=table1", *words, f"runs_root={root}"]):
            fill(spec, AP=50.0, AP_nms=50.0)
            write_snapshots(spec, 1.0, 0.9, parts=False)
    assert verdicts(root)["positives_discriminative"].verdict == "not run"
    assert verdicts(root)["positives_inside"].verdict == "contradicted"
    rigid = verdicts(root, "data.shapes.kind=rigid")
    assert rigid["positives_discriminative"].verdict == "not run"


def test_the_records_are_never_named_as_a_place_to_train(monkeypatch, capsys):
    assert claims.main(["--runs", str(RECORDS), "--", "seed=7,8,9"]) == 0
    page = capsys.readouterr().out
    assert "\npython run.py -m +experiment=table1 seed=7,8,9\n" in page
    assert tables.main(["--runs", str(RECORDS), "--", "seed=7"]) == 0
    assert f"runs_root={RECORDS}" not in page + capsys.readouterr().out


def test_one_seed_has_no_interval(root):
    fill_rows(root, "table1", "seed=0", predicted=lambda s: {"AP_nms": 60.0})
    judgement = verdicts(root, "seed=0")["nms_gain_predicted"]
    assert judgement.verdict == "too noisy"
    lines = list(csv.reader(io.StringIO(csv_page(scorecard.data([judgement])))))
    assert lines[1][2:] == ["10.0", "", "", "1", "too noisy"]


@pytest.mark.parametrize(
    ("word", "claim", "why"),
    [
        ("cost=loc_cls", "nms_gain_predicted", "table1 has no row 'predicted' under cost=loc_cls"),
        ("size.ratio=1.34", "size_accuracy", "No row of experiment table3 has size.ratio=1.34"),
        ("steps=1200", "schedule_saturates", "'144 epochs' and '216 epochs' are the same runs"),
        ("detector=onenet", "sparse_rcnn", "No row of experiment table6 has detector=onenet"),
    ],
)
def test_claims_about_rows_that_are_left_out_are_not_run(root, word, claim, why):
    judgement = verdicts(root, word)[claim]
    assert judgement.verdict == "not run"
    assert why in judgement.explanation
    assert why in markdown(scorecard.page([judgement]))
    assert scorecard.numbers(judgement.decisive) == ["-", "-", "0"]


def test_runs_without_snapshots_are_named(root):
    for spec in expand(["+experiment=table1", f"runs_root={root}"]):
        fill(spec, AP=50.0, AP_nms=50.0)
    why = verdicts(root)["positives_centre"].explanation
    assert why.startswith("3 of its runs took no snapshots of positive samples")
    assert "eval.looks" in why
    assert verdicts(root)["nms_gain_predicted"].explanation == ""


def test_several_rows_are_refused(root, capsys):
    assert claims.main(["--runs", str(root), "--", "schedule=1,2"]) == 2
    assert "error: " in capsys.readouterr().err
    assert claims.main(["--runs", str(root), "--", "+experiment=table1"]) == 2
    assert "+experiment=table1" in capsys.readouterr().err


@pytest.mark.slow
def test_it_needs_no_torch_and_works_from_anywhere(tmp_path):
    code = (
        "import sys; sys.argv = ['claims.py', '--format', 'csv']\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from analysis import claims, figures\n"
        "assert claims.main(['--format', 'csv']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("id,quotation")
    assert list(tmp_path.iterdir()) == []


def test_beside_each_number_stands_the_papers_own(root):
    judgements = verdicts(root)

    def papers(claim: str) -> list[float]:
        return [part.paper for part in judgements[claim].conditions]

    assert papers("best_row") == pytest.approx([33.6, 3.2, 14.2])
    assert papers("no_nms_predefined") == pytest.approx([-0.1, np.nan], nan_ok=True)
    assert papers("multi_inference_slow") == pytest.approx([100 * (12 / 67 - 1)])
    assert papers("schedule_saturates") == pytest.approx([-0.8])
    assert papers("positives_inside") == pytest.approx([np.nan, np.nan], nan_ok=True)
    assert scorecard.printed(judgements["multi_inference_slow"].conditions[0]).endswith(" %")


def test_settings_are_told_as_they_were(root):
    usual = verdicts(root)["backbone_scales"].conditions[0]
    assert usual.statement.endswith("(schedule=2) > 0")
    explicit = verdicts(root, "schedule=1")["backbone_scales"].conditions[0]
    assert "schedule" not in explicit.statement


def test_other_data_is_never_asked_for_parts(tmp_path, root):
    files = [f"data.{split}.annotations={split}.json" for split in ("train", "val")]
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text("{}")
    words = ["data=coco", f"data.root={tmp_path}", *files]
    judgement = verdicts(root, *words)["positives_discriminative"]
    assert judgement.verdict == "not run"
    assert "data=coco" in judgement.explanation
    assert not any("kind=parts" in command for command in scorecard.missing_commands([judgement]))
