"""Runs as one table of data, from the records and from hand-written and damaged folders.

Run: pytest tests/test_frame.py
"""

import ast
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import bootstrap, claims, figures, load, records, replay, report, tables
from analysis.core.frame import CHOICES, METRICS, RECORDS
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.runs.result import write_result
from onenet.system.files import REPOSITORY, read_json, write_json
from tests.test_figures import run, table1

OLD = REPOSITORY / "tests" / "golden" / "run_ae34722"
NAME = "loc_only-predicted-h2-tiny-rigid-s0-0800872d41"


@pytest.fixture
def root(tmp_path) -> Path:
    """Two finished runs of Table 1."""
    root = tmp_path / "runs"
    for spec in table1(root, "seed=0,1", "location=predicted", "cost=loc_cls"):
        run(spec, seed_shift=float(spec.config.seed))
    return root


def test_each_record_is_a_row_with_its_choices_and_metrics():
    frame = load(RECORDS)
    folders = [path.parent for path in RECORDS.glob("*/result.json")]
    assert [*frame.folder] == sorted(map(str, folders))
    assert {"id", "state", "seed", "kind", "schedule", *CHOICES, *METRICS} <= {*frame.columns}
    for _, row in frame.iterrows():
        result = read_json(Path(row.folder) / "result.json")
        assert row.id == result["id"]
        for name, value in result["choices"].items():
            assert row[name] == value or (value is None and pd.isna(row[name]))
        for name, value in result["metrics"].items():
            assert row[name] == (pytest.approx(math.nan, nan_ok=True) if value is None else value)


def test_the_question_of_the_readme():
    text = (REPOSITORY / "analysis" / "README.md").read_text()
    block = re.search(r"```python\n(from analysis import load.*?)```", text, re.DOTALL)[1]
    text, expression = (ast.unparse(e) for e in ast.parse(block).body if "question" in ast.dump(e))
    names = {"d": load(RECORDS)}
    exec(text, names)
    answer = eval(expression, names)
    values = [
        result["metrics"]["AP"]
        for file in RECORDS.glob("loc_cls-*-h3-*/result.json")
        if (result := read_json(file))["config"]["schedule"] == 1
    ]
    assert answer["mean"][3] == pytest.approx(np.mean(values))
    assert answer["std"][3] == pytest.approx(np.std(values, ddof=1))


def test_the_notebook_runs_on_the_records(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(REPOSITORY / "analysis")
    notebook = json.loads((REPOSITORY / "analysis" / "explore.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # they would go out of date
            exec("".join(cell["source"]), names)
    assert (names["gains"]["count"] >= 3).all()
    assert names["means"].shape == (8, 4)
    interval = names["interval"]
    assert f"{interval.mean:.1f} AP ({interval.low:.1f} to" in capsys.readouterr().out
    assert interval.n >= 3
    assert names["last"].groupby("kind").in_part.mean().between(0, 1).all()


def test_all_evaluations_are_rows_and_roots_can_be_several(root):
    every = load(RECORDS, evaluations="all")
    assert len(every) == len([*RECORDS.glob("*/evaluations/*/result.json")])
    assert not every.duplicated(["folder", "evaluation"]).any()
    assert len(load([root, "analysis/results/records"])) == 2 + len(load(RECORDS))
    with pytest.raises(UserError, match="not a folder"):
        load(root / "nowhere")
    with pytest.raises(UserError, match="default or all"):
        load(root, evaluations="some")


def test_unfinished_runs_have_choices_but_no_metrics(root):
    old = RunFolder(root / NAME)
    shutil.copytree(OLD, old.path)
    for file in (*old.path.glob("evaluations/*/result.json"), old.result_file):
        file.unlink()
    old.set_status(state="failed", id="0800872d41")
    frame = load(root).set_index("id")
    assert len(frame) == 3
    row = frame.loc["0800872d41"]
    assert (row.state, row.cost, row.heads, row.kind) == ("failed", "loc_only", 2, "rigid")
    assert math.isnan(row.AP)
    assert {*frame.state} == {"done", "failed"}


def test_an_empty_root_has_the_columns(tmp_path):
    frame = load(tmp_path)
    assert frame.empty
    assert frame.query("cost == 'loc_cls' and schedule == 1").groupby("heads").AP.mean().empty
    assert {"step", "evaluation"} <= {*load.curves(tmp_path).columns}
    assert {"slot", "in_box", "giou"} <= {*load.samples(tmp_path).columns}


def test_curves_and_samples_are_those_of_the_files():
    spec = next(RECORDS.glob("loc_cls-predicted-h1-tiny-parts-s0-*"))
    lines = [json.loads(line) for line in (spec / "metrics.jsonl").read_text().splitlines()]
    frame = load.curves(RECORDS).query("folder == @spec.__fspath__()")
    assert [*frame.step] == [line["step"] for line in lines]
    assert [*frame.AP.dropna()] == [line["AP"] for line in lines if "AP" in line]
    with np.load(spec / "assignments.npz") as arrays:
        frame = load.samples(RECORDS).query("folder == @spec.__fspath__()")
        last = frame[frame.step == frame.step.max()]
        assert len(frame) == arrays["slot"].size
        assert (last.slot.to_numpy() == arrays["slot"][-1]).all()
        assert (last[["x", "y"]].to_numpy() == arrays["place_xy"][-1]).all()
        assert (last.giou.to_numpy() == arrays["terms"][-1, :, 3]).all()
        x, y = arrays["place_xy"][-1].T
        low_x, low_y, high_x, high_y = arrays["part_xyxy"].T
        inside = (low_x <= x) & (x <= high_x) & (low_y <= y) & (y <= high_y)
        assert (last.in_part.to_numpy() == inside).all()


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_the_frame_is_saved(root, tmp_path, capsys, suffix, monkeypatch):
    file = tmp_path / f"frame.{suffix}"
    arguments = ["--runs", str(root), "--frame", str(file)]
    if suffix == "parquet":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "fastparquet", None)
        assert tables.main(arguments) == 2
        assert "pip install -e '.[parquet]'" in capsys.readouterr().err
        return
    assert tables.main(arguments) == 0
    assert f"Wrote 2 runs of {root} to {file}" in capsys.readouterr().out
    frame = pd.read_csv(file) if suffix == "csv" else pd.read_json(file)
    assert [*frame.AP_nms] == [*load(root).AP_nms]
    assert tables.main([*arguments[:2], "--frame", str(tmp_path / "x.txt")]) == 2


def test_the_analysis_is_cheap_to_import_and_needs_no_torch(tmp_path):
    code = (
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\nimport analysis\n"
        "assert 'pandas' not in sys.modules\n"
        f"assert len(analysis.load({str(RECORDS)!r})) > 100\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


# --- folders that are not what a run writes ---

DAMAGE = {
    "a list as result": ("result.json", b"[1]"),
    "torn result": ("result.json", b'{"id": "0'),
    "result with a wrong id": ("result.json", b'{"id": 7, "metrics": {}}'),
    "result without metrics": (
        "result.json",
        b'{"id": "x", "config": {}, "metrics": [], "env": 3}',
    ),
    "a list as status": ("status.json", b"[]"),
    "status with a wrong id": ("status.json", b'{"state": 3, "id": []}'),
    "torn status": ("status.json", b"\xff{"),
    "broken config": ("config.yaml", b"heads: [1, :"),
    "config of something else": ("config.yaml", b"- 1\n- 2\n"),
    "torn line": ("metrics.jsonl", b'{"step": 1}\n{"step": 2, "los\n3\n{"step": 4}\n'),
    "torn snapshots": ("assignments.npz", b"PK\x03\x04 torn"),
}
COMMANDS = {
    "tables": (tables, ["--table", "1", "--format", "csv"]),
    "claims": (claims, ["--only", "nms_gain_predicted", "positives_inside"]),
    "figures": (figures, ["--only", "changes", "conflicts", "ap_training"]),
    "report": (report, []),
    "records": (records, []),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_the_other_runs_go_on(root, tmp_path, capsys, damage, command):
    name, content = DAMAGE[damage]
    spec = table1(root, "seed=0", "location=predicted", "cost=loc_cls")[0]
    file = spec.folder.path / name
    file.write_bytes(content)
    module, arguments = COMMANDS[command]
    words = ["--", "seed=0,1"] + (["location=predicted"] if command == "tables" else [])
    if command == "report" and damage != "torn snapshots":
        pytest.skip("the slowest command: once is enough")
    out = [] if command in ("tables", "claims") else ["--out", str(tmp_path / "out")]
    status = module.main(["--runs", str(root), *out, *arguments,
                          *(words if command != "records" else [])])  # fmt: skip
    captured = capsys.readouterr()
    assert status == 0, captured.err
    lines = [line for line in captured.err.splitlines() if str(spec.folder.path) in line]
    reads = {"metrics.jsonl": ("figures", "report", "records"),
             "assignments.npz": ("claims", "figures", "report")}  # fmt: skip
    if command in reads.get(name, COMMANDS):
        assert lines
        assert all(str(file) in line for line in lines)
    if command == "tables":
        (line,) = (line for line in captured.out.splitlines() if "predicted + class,AP," in line)
        assert line.split(",")[6] == ("2" if name in reads else "1")


@pytest.mark.parametrize("evaluations", ["default", "all"])
def test_a_changed_number_is_noticed_by_the_digest(root, capsys, evaluations):
    specs = table1(root, "seed=0,1", "location=predicted", "cost=loc_cls")
    files = sorted(root.rglob("result.json"))
    for file in files:
        write_result(file, read_json(file))
    count = len(load(root, evaluations).AP.dropna())
    in_folder = specs[1].folder.path
    changed = next(f for f in files if in_folder in f.parents and (
        "evaluations" in f.parts) == (evaluations == "all"))  # fmt: skip
    values = read_json(changed)
    values["metrics"]["AP"] += 1
    write_json(changed, values)
    assert len(load(root, evaluations).AP.dropna()) == count - 1
    assert f"{changed} is damaged: " in capsys.readouterr().err


def test_an_edited_config_of_a_finished_run_is_noticed(root, capsys):
    old = root / NAME
    shutil.copytree(OLD, old)
    assert len(load(root)) == 3
    values = yaml.safe_load((old / "config.yaml").read_text())
    (old / "config.yaml").write_text(yaml.safe_dump(values | {"lr": 0.5}))
    assert len(load(root)) == 2
    assert f"{old / 'config.yaml'} has been edited" in capsys.readouterr().err
    for command in (bootstrap, replay):
        assert command.main([NAME, "--runs", str(root)]) == 2
        assert "has been edited" in capsys.readouterr().err


def test_a_damaged_run_does_not_hide_the_others_from_commands_that_name_runs(root, capsys):
    first, second = table1(root, "seed=0,1", "location=predicted", "cost=loc_cls")
    (second.folder.path / "status.json").write_text('{"id": ["x"]}')
    for command in (bootstrap, replay):
        assert command.main([first.id, "--runs", str(root)]) == 2  # it has no such arrays
        error = capsys.readouterr().err
        (line,) = (line for line in error.splitlines() if line.startswith("error: "))
        assert first.id in line
        assert second.id not in line


def test_images_without_their_arrays_are_named(root, capsys):
    spec = table1(root, "seed=0", "location=predicted", "cost=loc_cls")[0]
    result = read_json(spec.folder.result_file)
    evaluation = {name: getattr(spec.evaluation, name) for name in
                  ("infer_heads", "short", "ratio", "area", "split", "peaks")}  # fmt: skip
    write_json(spec.folder.result_file, result | {"evaluation": evaluation})
    file = spec.folder.evaluation(spec.evaluation) / "per_image.npz"
    np.savez(file, objects=np.ones((3, 2)))
    assert bootstrap.main([spec.id, "--runs", str(root)]) == 2
    assert f"{file} is damaged: it has no nms_hits" in capsys.readouterr().err


def test_any_sweep_is_a_table(root, capsys):
    words = ["cost=loc_cls", "location=predicted,predefined", "seed=0,1"]
    assert tables.main(["--runs", str(root), "--sweep", "--", *words]) == 0
    page = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()
             if line.startswith("|")]  # fmt: skip
    names = ["run", "lr", "n", "AP", "AP(+NMS)", "gain", "gain AP50", "dup/obj"]
    assert lines[0] == names
    done, missing = lines[2:]
    assert done == ["location=predicted", "0.002", "2", "50.0 ± 0.0", "55.5 ± 0.7", "+5.5 ± 0.7",
                    "+1.0 ± 0.0", "1.00 ± 0.00"]  # fmt: skip
    assert missing[:4] == ["location=predefined", "0.002", "0/2", "-"]
    assert "Missing: 2 of 4 results." in page
    assert f"python run.py cost=loc_cls location=predefined seed=0 runs_root={root}\n" in page
    experiment = ["+experiment=table1", "seed=0"]
    assert tables.main(["--runs", str(root), "--sweep", "--", *experiment]) == 0
    assert "| predicted + class  | 0.002 |   1 |" in capsys.readouterr().out
    assert tables.main(["--runs", str(root), "--sweep", "--format", "csv", "--", *words]) == 0
    frame = capsys.readouterr().out.splitlines()
    assert len(frame) == 5
