"""Charts, figures and committed records from hand-written run files.

Run: pytest tests/test_figures.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import claims, figures, records, tables
from analysis.core.beyond import QUESTIONS
from analysis.core.frame import RECORDS
from analysis.core.plots import changes, charts, conflicts, duplicates, nms_threshold
from analysis.core.table import Results
from onenet.sweeps.experiments import RunSpec, expand
from onenet.system.files import read_json, write_json
from tests.test_tables import fill

STEPS = (300, 600, 900)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def run(spec: RunSpec, seed_shift: float = 0.0) -> None:
    """Writes a finished run with snapshots, log, curves and pictures."""
    folder, evaluation = spec.folder, spec.evaluation
    fill(spec, AP=50.0, AP_nms=55.0 + seed_shift)
    result = folder.result(evaluation)
    result["overrides"] = [*spec.overrides, "data.root=/home/me/COCO"]
    result["curves"] = {
        "nms": [[0.3, 54.0 + seed_shift, 70.0], [0.5, 55.0 + seed_shift, 71.0]],
        "duplicates": [[0.1, 30, 20], [0.5, 4, 8], [0.9, 0, 0]],
        "objects": 25,
    }
    write_json(folder.evaluation(evaluation) / "result.json", result)
    write_json(folder.result_file, result)
    folder.set_status(state="done", id=spec.id)
    lines = [{"step": step, "evaluation": "first64", "AP": step / 30, "nms_gain": 2.0 + seed_shift}
             for step in STEPS]  # fmt: skip
    lines += [{"step": s, "loss": 1 / 3, "objects": 40, "conflicts": s // 20, "seconds": {"a": 1.0}}
              for s in range(20, 420, 20)]  # fmt: skip
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    slot = np.array([[0, 1, 2, -1], [0, 5, 2, -1], [7, 5, 2, 3]])
    box = np.tile([10.0, 10, 30, 50], (4, 1))
    location = np.full((3, 4, 2), 20.0)
    location[2, 1] = np.nan
    np.savez(
        folder.assignments_file, steps=STEPS, slot=slot, place_xy=location, gt_xyxy=box,
        part_xyxy=box * 0.5, nearest=np.ones((3, 4), bool),
    )  # fmt: skip
    pictures = folder.path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (60, 40), "gray").save(pictures / "image_1.png")
    entry = {
        "file": "image_1.png", "panel": "panel_1.png", "ground_truth": [[1, 2, 30, 30, 0]],
        "positives": [[12, 12, 0]], "before_nms": [[1, 2, 30, 30, 0, 0.7]], "after_nms": [],
    }  # fmt: skip
    write_json(
        pictures / "pictures.json", {"categories": {"0": "a"}, "threshold": 0.4, "images": [entry]}
    )


def table1(root: Path, *overrides: str) -> list[RunSpec]:
    return expand(["+experiment=table1", *overrides, f"runs_root={root}"])


def test_the_points_of_a_run(root):
    spec = table1(root)[0]
    run(spec)
    assert nms_threshold(spec).to_dict() == {0.3: 4.0, 0.5: 5.0}
    assert duplicates(spec).to_dict() == {0.1: 1.5, 0.5: 0.5}  # no object is found at 0.9
    assert changes(spec).to_dict() == {600: 25.0, 900: 50.0}
    points = conflicts(spec)  # ten groups of two lines
    assert points[40] == pytest.approx(100 * (1 + 2) / 80)
    assert points[400] == pytest.approx(100 * (19 + 20) / 80)
    assert len(points) == 10


def test_a_series_is_the_mean_over_seeds_and_knows_their_number(root):
    for spec in table1(root, "seed=0,1"):
        run(spec, seed_shift=float(spec.config.seed))
    by_name = {chart["name"]: chart for chart in charts(Results([f"runs_root={root}"]))}
    assert set(by_name) == {*figures.CURVES}
    (panel,) = by_name["nms_threshold"]["panels"]
    assert panel["title"] == "rigid"
    assert [series["label"] for series in panel["series"]] == [*figures.COLORS]
    series = panel["series"][0]
    assert (series["x"], series["mean"], series["n"]) == ([0.3, 0.5], [4.5, 5.5], 2)
    assert series["std"] == pytest.approx([0.5**0.5] * 2)


def test_parts_are_a_panel_of_their_own(root):
    for overrides in ((), ("data.shapes.kind=parts",)):
        run(next(spec for spec in table1(root, "seed=1", *overrides) if spec.label == "predefined"))
    for chart in charts(Results([f"runs_root={root}"])):
        assert [panel["title"] for panel in chart["panels"]] == ["rigid", "parts"]
        assert [series["label"] for series in chart["panels"][1]["series"]] == ["predefined"]


def test_all_figures_are_drawn_as_vectors_and_pixels(root, tmp_path, capsys):
    for spec in table1(root, "seed=0"):
        run(spec)
    assert figures.main(["--runs", str(root)]) == 0
    assert f"Wrote 9 figures, as SVG and PNG, to {root / 'figures'}" in capsys.readouterr().out
    for name in {*figures.NAMES} - {*QUESTIONS}:  # these have a test of their own
        assert (root / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(root / "figures" / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors() or range(256)) > 8
    before = (root / "figures" / "changes.svg").read_bytes()
    out = tmp_path / "again"
    assert figures.main(["--runs", str(root), "--only", "changes", "--out", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"changes.svg", "changes.png"}
    assert (out / "changes.svg").read_bytes() == before


def test_what_cannot_be_drawn_is_named_with_its_command(root, capsys):
    assert figures.main(["--runs", str(root), "--out", str(root / "x")]) == 0
    output = capsys.readouterr().out
    assert (
        "figure5: no run has the data for it. To run them: python run.py -m +experiment=table1"
        in output
    )
    assert "Wrote 0 figures" in output
    assert figures.main(["--runs", str(root), "--", "heds=1"]) == 2


# --- records ---


def test_what_is_kept_gives_the_same_scorecard_without_paths_of_the_machine(root, tmp_path, capsys):
    for spec in table1(root):
        run(spec, seed_shift=float(spec.config.seed))
    out, sample = tmp_path / "kept", table1(root)[0]
    (sample.folder.predictions_file).write_bytes(b"x")
    assert records.main(["--runs", str(root), "--out", str(out), "--samples", sample.id]) == 0
    assert "Copied 12 of 12 runs" in capsys.readouterr().out
    assert records.main(["--runs", str(out), "--out", str(tmp_path / "again")]) == 0
    assert "Copied 12 of 12 runs" in capsys.readouterr().out
    assert [f.parent.name for f in out.glob("*/predictions.npz")] == [sample.folder.path.name]
    assert len(list(out.glob("*/pictures/image_1.png"))) == 1
    for file in out.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert "/home/me" not in file.read_text()
    result = read_json(out / sample.folder.path.name / "result.json")
    assert result["config"]["runs_root"] == "runs"
    assert result["overrides"][-1] == "data.root=COCO"
    line = json.loads(
        (out / sample.folder.path.name / "metrics.jsonl").read_text().splitlines()[-1]
    )
    assert line == {"step": 400, "loss": 0.33333, "objects": 40, "conflicts": 20}
    pages = []
    for folder in (root, out):
        assert claims.main(["--runs", str(folder), "--format", "csv"]) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert pages[0].count("reproduced") >= 2


DAMAGED = [  # file of a run, content, reader
    ("assignments.npz", b"PK\x03\x04 torn", claims),
    ("assignments.npz", b"", figures),
    ("metrics.jsonl", b"\xff\xfe\n3\n", figures),
    ("result.json", b"[1]", claims),
    ("result.json", b"{", records),
    ("status.json", b"[]", records),
]


@pytest.mark.parametrize(("name", "content", "reader"), DAMAGED)
def test_a_damaged_file_is_named_or_left_out(root, tmp_path, capsys, name, content, reader):
    specs = table1(root)
    for spec in specs:
        run(spec)
    file = specs[0].folder.path / name
    file.write_bytes(content)
    out = [] if reader is claims else ["--out", str(tmp_path / "out")]
    if reader.main(["--runs", str(root), *out]):
        assert str(file) in capsys.readouterr().err
        assert name.endswith(".npz")


def test_damaged_frames_a_second_are_named(root, capsys):
    for content in ('{"a": {}}', '{"a": 1}'):
        (root / "fps.json").write_text(content)
        assert claims.main(["--runs", str(root)]) == 2
        assert "fps.json" in capsys.readouterr().err


def test_records_are_not_made_in_their_own_place(root, capsys):
    run(table1(root)[0])
    before = (table1(root)[0].folder.path / "status.json").read_text()
    assert records.main(["--runs", str(root), "--out", str(root), "--results-only"]) == 2
    assert "--out" in capsys.readouterr().err
    assert (table1(root)[0].folder.path / "status.json").read_text() == before


def test_the_committed_figures_are_of_all_records(capsys):
    assert figures.main(["--runs", str(RECORDS), "--", "seed=0"]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_results_alone_give_the_same_tables(root, tmp_path, capsys):
    for spec in table1(root):
        run(spec)
    out = tmp_path / "kept"
    assert records.main(["--runs", str(root), "--out", str(out), "--results-only"]) == 0
    kinds = {file.name for file in out.rglob("*") if file.is_file()}
    assert kinds == {"result.json", "status.json"}
    assert figures.main(["--runs", str(out), "--only", "figure5"]) == 0
    assert "figure5: no run has the data for it. The runs" in capsys.readouterr().out
    pages = []
    for folder in (root, out):
        capsys.readouterr()
        assert tables.main(["--runs", str(folder), "--table", "1", "--format", "csv"]) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]


def test_unfinished_runs_and_wrong_names_are_not_kept(root, tmp_path, capsys):
    first, second = table1(root)[:2]
    run(first)
    run(second)
    second.folder.set_status(state="failed")
    assert records.main(["--runs", str(root), "--out", str(tmp_path / "kept")]) == 0
    assert "Copied 1 of 2 runs" in capsys.readouterr().out
    wrong = ["--runs", str(root), "--out", str(tmp_path / "other"), "--samples", second.id]
    assert records.main(wrong) == 2
    assert f"no finished run {second.id}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert records.main(["--runs", str(tmp_path / "nowhere")]) == 2
