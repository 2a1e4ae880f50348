"""Tables and rows in W&B, and the report and workspace view built from them.

pytest tests/test_dashboard.py

Uses real wandb and wandb-workspaces with a local server.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from analysis import dashboard
from analysis.tables import experiments
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request, note_rows
from onenet.sweeps.experiments import expand
from onenet.sweeps.launch import run_all
from onenet.sweeps.plan import Run, group
from onenet.system.files import REPOSITORY
from tests.launchers import launcher_of
from tests.test_tracking import KEY, make_run, places  # noqa: F401, an autouse fixture
from tests.wandb_offline import offline_runs
from tests.wandb_server import refusing_url, serving

SCRIPT = REPOSITORY / "analysis" / "dashboard.py"


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> dict:
    """The report for all tables, with one seed."""
    file = tmp_path_factory.mktemp("spec") / "report.json"
    assert dashboard.main(["--json", str(file), "--", "seed=0"]) == 0
    return json.loads(file.read_text())


def text_of(block: dict) -> str:
    return "".join(child.get("text", "") for child in block["children"])


def grids(spec: dict) -> list[dict]:
    return [b["metadata"] for b in spec["spec"]["blocks"] if b["type"] == "panel-grid"]


def panels(grid: dict, kind: str) -> list[dict]:
    configs = grid["panelBankSectionConfig"]["panels"]
    return [panel["config"] for panel in configs if panel["viewType"] == kind]


def filters(runset: dict) -> dict[str, list]:
    """The values of each filtered key, with groups flattened."""
    values = {}
    for item in runset["filters"]["filters"]:
        for leaf in item.get("filters", [item]):
            assert leaf["op"] == "IN"
            values.setdefault(leaf["key"]["name"], []).append(leaf["value"])
    return values


# --- runs ---


def planned(*words: str) -> list[Run]:
    return group(expand(list(words)))


def test_a_training_is_a_row_in_each_table_that_asks_for_it(tmp_path):
    words = ["cost=loc_cls", "location=predicted", "seed=0"]
    run, larger = planned("+experiment=table1,table3", *words)
    assert run.rows() == {"table1": "predicted + class", "table3": "(512, 853)"}
    assert larger.rows() == {"table3": "(512, 640)"}
    shared = planned("+experiment=table2", "seed=0", "heads=3", "lr_scale=2")
    # In W&B, the default evaluation's metrics have no prefix: the row is that evaluation's.
    assert [run.rows() for run in shared] == [{"table2": "lr 1e-4, train 3, infer 1"}]
    assert [run.rows() for run in planned("seed=0")] == [{}]
    request = shared[0].request(1).write(RunFolder(tmp_path))
    assert Request.read(request) == shared[0].request(1)


def test_rows_are_added_to_a_folder_in_the_order_in_which_they_were_asked_for(tmp_path):
    folder = make_run(tmp_path / "run")
    note_rows(folder, {"table2": "a"})
    note_rows(folder, {"table1": "b", "table2": "a"})
    assert [*folder.status()["rows"].items()] == [("table2", "a"), ("table1", "b")]
    with folder.lock():  # the training process writes status.json
        note_rows(folder, {"table3": "c"})
    assert "table3" not in folder.status()["rows"]
    before = (folder.path / "status.json").stat().st_mtime_ns
    note_rows(folder, {"table1": "b"})
    assert (folder.path / "status.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_real_run_logs_what_the_panels_show_and_learns_of_a_second_table(
    tmp_path, monkeypatch, spec
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    common = ["seed=0", "debug=tiny", "tracker=wandb", f"runs_root={tmp_path}"]

    (run,) = planned("+experiment=table1", "cost=loc_cls", "location=predicted", *common)
    run_all(Console(quiet=True), [run], launcher_of())
    assert run.state() == "done"
    (life,) = offline_runs(run.folder.path / "wandb")
    assert (life.id, life.group, life.job_type) == (run.specs[0].id, "table1", "predicted + class")
    assert life.tags == ["proxy", "loc_cls", "predicted", "seed 0", "table1"]
    assert life.config["rows"] == {"table1": "predicted + class"}

    logged = {key for row in life.history for key in row}
    (rows, images) = grids(spec)[:2]
    bars = {metric for panel in panels(rows, "Bar Chart") for metric in panel["metrics"]}
    assert bars <= life.summary.keys()
    assert bars <= run.folder.result()["metrics"].keys()
    lines = panels(rows, "Run History Line Plot")
    assert {m for p in lines for m in (p["xAxis"], *p["metrics"])} <= logged
    assert {key for p in panels(images, "Media Browser") for key in p["mediaKeys"]} <= logged

    again = planned("+experiment=table2", "lr_scale=1", "heads=1", *common)
    assert run_all(Console(quiet=True), again, launcher_of()) == {}
    rows = {"table1": "predicted + class", "table2": "lr 5e-5, train 1, infer 1"}
    assert run.folder.status()["rows"] == rows  # sent by analysis/sync.py: tests/test_sync.py


# --- report and view ---


def test_every_table_has_its_runs_by_row_and_one_seeds_images(spec):
    blocks = spec["spec"]["blocks"]
    headings = [text_of(b) for b in blocks if b["type"] == "heading"]
    panel_grids = grids(spec)
    assert len(panel_grids) == 2 * len(headings)
    tables = zip(experiments(None), headings, panel_grids[::2], panel_grids[1::2], strict=True)
    for e, heading, rows, images in tables:
        assert heading == f"Table {e.table}: {e.title}"
        ids = list(dict.fromkeys(cell.id for cell in expand([f"+experiment={e.name}", "seed=0"])))
        (all_seeds,), (one_seed,) = rows["runSets"], images["runSets"]
        assert filters(all_seeds) == {"group": [[e.name]], "tags": [[e.name]], "name": [ids]}
        tags = [[e.name], ["seed 0"]]
        assert filters(one_seed) == {"group": [[e.name]], "tags": tags, "name": [ids]}
        assert all_seeds["grouping"] == [{"section": "config", "name": f"rows.value.{e.name}"}]
        plots = panels(rows, "Bar Chart") + panels(rows, "Run History Line Plot")
        assert {plot["groupBy"] for plot in plots} == {f"rows.value.{e.name}"}
        assert {(plot["groupAgg"], plot["groupArea"]) for plot in plots} == {("mean", "stddev")}
        assert one_seed["grouping"] == []
        spots = [p["layout"] for p in images["panelBankSectionConfig"]["panels"]]
        assert [(spot["x"], spot["y"]) for spot in spots] == [(0, 0), (8, 0), (16, 0)]


def test_the_numbers_that_the_tables_tell_of_are_there(spec):
    first, table2 = grids(spec)[0], grids(spec)[2]
    shown = [panel["metrics"] for panel in panels(first, "Bar Chart")]
    expected = [["AP", "AP_nms"], ["nms_gain", "AP50_nms_gain"], ["duplicates_per_object"]]
    assert shown == expected
    three_heads = "h3-64x1.5-relative-val"  # rows of Table 2 with another evaluation
    expected += [[f"{three_heads}/AP", f"{three_heads}/AP_nms"]]
    assert [panel["metrics"] for panel in panels(table2, "Bar Chart")] == expected


def test_overrides_choose_the_runs(tmp_path):
    file, words = tmp_path / "report.json", ["seed=1,2", "data.shapes.kind=parts"]
    assert dashboard.main(["--table", "3", "--json", str(file), "--", *words]) == 0
    rows, images = grids(json.loads(file.read_text()))
    cells = expand(["+experiment=table3", *words])
    assert len(cells) == 4
    assert filters(rows["runSets"][0])["name"] == [[cell.id for cell in cells]]
    assert filters(images["runSets"][0])["tags"] == [["table3"], ["seed 1"]]
    assert "data.shapes.kind=parts" in file.read_text()


def test_a_workspace_shows_runs_by_table_and_row(tmp_path):
    file = tmp_path / "view.json"
    assert dashboard.main(["--workspace", "--table", "1", "3", "--json", str(file)]) == 0
    view = json.loads(file.read_text())
    section = view["spec"]["section"]
    (runset,) = section["runSets"]
    assert [key["name"] for key in runset["grouping"]] == ["group", "jobType"]
    assert filters(runset)["group"] == [["table1", "table3"]]
    bank = section["panelBankConfig"]["sections"]
    shown = [p["config"]["groupBy"] for p in bank[0]["panels"]]
    assert {*shown} == {"jobType"}
    assert len(bank[1]["panels"]) == 3


# --- W&B ---


def run_script(url: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--table", "1", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_BASE_URL": url, **environment},
        check=False,
    )


@pytest.mark.slow
def test_a_report_and_a_view_are_saved_and_nothing_lies_elsewhere(
    places,  # noqa: F811
    monkeypatch,
    capsys,
):
    with serving() as server:
        report = run_script(server.url, WANDB_API_KEY=KEY)
        assert (report.returncode, report.stderr) == (0, "")
        title = "What-removes-the-need-for-NMS"
        assert report.stdout == f"{server.url}/local/onenet/reports/{title}--VGFibGVz\n"
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert dashboard.main(["--workspace", "--table", "1", "--entity", "local"]) == 0
    first, second = server.views
    assert (first["type"], first["entityName"], first["projectName"]) == ("runs", "local", "onenet")
    (rows, _) = grids({"spec": json.loads(first["spec"])})
    project = {"entityName": "local", "name": "onenet", "id": "7"}
    assert rows["runSets"][0]["project"] == project
    assert filters(rows["runSets"][0])["group"] == [["table1"]]
    assert (second["type"], second["displayName"]) == ("project-view", "table1")
    name = second["name"].replace("nw-", "").replace("-v", "")  # of a random id, as W&B's package
    assert capsys.readouterr().out == f"{server.url}/local/onenet?nw={name}\n"
    assert [list(place.rglob("*")) for place in places.values()] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--entity", "nobody"], "W&B has no entity nobody. Yours is: local"),
        (["--project", "other"], "local has no project other, only: onenet."),
    ],
)
def test_what_w_and_b_does_not_have_is_an_error(monkeypatch, capsys, words, said):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert dashboard.main(["--table", "1", *words]) == 2
    assert not server.views
    assert said in capsys.readouterr().err


def test_without_a_key_the_error_says_what_to_do(monkeypatch, capsys):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        before = dict(os.environ)
        assert dashboard.main(["--table", "1"]) == 2
        assert not server.requests
    assert dict(os.environ) == before
    error = capsys.readouterr().err
    assert "wandb login" in error
    assert "--json FILE" in error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refuses", "hangs", "fails"])
def test_a_server_that_does_not_answer_is_an_error_within_seconds(monkeypatch, capsys, kind):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(dashboard, "ANSWER_SECONDS", 1)
    with serving("fails" if kind == "fails" else "hangs") as server:
        url = refusing_url() if kind == "refuses" else server.url
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.monotonic()
        assert dashboard.main(["--table", "1"]) == 2
    assert time.monotonic() - started < 15
    assert f"error: W&B at {url} rejected the request: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_lost_before_the_report_is_saved_is_an_error(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(dashboard, "SAVE_SECONDS", 1)
    with serving() as server:
        answer = server.graphql

        def lost(query: str, variables: dict) -> dict:
            if "models(" in query:  # the last before saving
                server.behaviour = "hangs"
            return answer(query, variables)

        server.graphql = lost
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        started = time.monotonic()
        assert dashboard.main(["--table", "1"]) == 2
    assert time.monotonic() - started < 15
    assert "rejected the request: " in capsys.readouterr().err


def test_without_wandb_workspaces_the_error_names_the_extra(tmp_path):
    (tmp_path / "wandb_workspaces.py").write_text("raise ImportError('not on this machine')")
    done = run_script("http://127.0.0.1:9", "--json", str(tmp_path / "x"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "pip install -e '.[dashboard]'" in done.stderr
    assert not (tmp_path / "x").exists()


def test_input_that_cannot_work_is_an_error(tmp_path, capsys):
    assert dashboard.main(["--table", "7"]) == 2
    assert dashboard.main(["--table", "1", "--json", str(tmp_path)]) == 2
    assert dashboard.main(["--table", "1", "--json", "x", "--", "cots=loc_cls"]) == 2
    errors = capsys.readouterr().err
    for word in ("no experiment for table 7", f"--json {tmp_path} cannot be written", "cots"):
        assert word in errors
    assert not Path("x").exists()
