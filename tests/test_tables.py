"""The tables, from handwritten results in the folders of the experiments.

pytest tests/test_tables.py
"""

import csv
import io
import math
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import tables
from analysis.core.table import read_paper
from onenet.config.compose import to_dict, use_folder
from onenet.sweeps.experiments import RunSpec, expand, experiment_names, read_experiment
from onenet.system.files import REPOSITORY, write_json

BEST = "predicted + class"  # the paper: AP 35.7, AP(+NMS) 35.5
PARTS = "data.shapes.kind=parts"


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def specs(root: Path, table: int, *overrides: str) -> list[RunSpec]:
    return expand([f"+experiment=table{table}", *overrides, f"runs_root={root}"])


def fill(
    spec: RunSpec,
    recipe: int = 1,
    env: dict | None = None,
    notes: dict | None = None,
    config: dict | None = None,
    **metrics,
):
    """Writes a job's result for this run; every other number is 1."""
    names = ("AP50", "AP75", "APs", "APm", "APl", "AP50_nms_gain", "duplicates_per_object")
    metrics = dict.fromkeys(names, 1.0) | {"train_seconds": 60.0, "params": 7} | metrics
    if "AP_nms" in metrics:
        metrics["nms_gain"] = metrics["AP_nms"] - metrics["AP"]
    result = {
        "id": spec.id,
        "recipe": recipe,
        "config": config or to_dict(spec.config),
        "metrics": metrics,
        "metrics_notes": notes or {},
        "env": {"pycocotools": "2.0.11", "hotcoco": "1.3.0"} | (env or {}),
    }
    write_json(spec.folder.evaluation(spec.evaluation) / "result.json", result)


def printed(capsys, root: Path, *arguments: str) -> str:
    """The command's output; it must succeed."""
    assert tables.main(["--runs", str(root), *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    """The command's error message; it must fail with a short one."""
    assert tables.main(list(arguments)) == 2
    message = capsys.readouterr()
    assert message.out == ""
    assert message.err.startswith("error: ")
    assert len(message.err.splitlines()) <= 7
    return message.err


def tidy(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of the CSV by (row, metric)."""
    return {(line["row"], line["metric"]): line for line in csv.DictReader(io.StringIO(text))}


def lines_of(text: str, block: int) -> list[list[str]]:
    """The cells of a grid on a Markdown page; the first two lines are the head."""
    blocks = [part for part in text.split("\n\n") if part.startswith("|")]
    return [[c.strip() for c in line.split("|")[1:-1]] for line in blocks[block].splitlines()]


def grid(text: str) -> dict[str, list[str]]:
    """The other cells of the main grid by row label."""
    return {line[0]: line[1:] for line in lines_of(text, block=0)}


def commands(text: str) -> list[str]:
    return text.partition("```sh\n")[2].partition("\n```")[0].splitlines()


def test_mean_and_deviation_over_seeds_and_the_gap_to_the_paper(root, capsys):
    all_specs = specs(root, 1, "cost=loc_cls")
    best = [spec for spec in all_specs if spec.label == BEST]
    numbers = [(30.0, 30.5), (31.0, 31.5), (35.0, 35.0)]
    for spec, (ap, ap_nms) in zip(best, numbers, strict=True):
        fill(spec, AP=ap, AP_nms=ap_nms, APl=ap + 10)
    one = next(spec for spec in all_specs if spec.label != BEST)
    fill(one, AP=20.0, AP_nms=29.96)

    page = printed(capsys, root, "--table", "1", "--format", "markdown", "--", "cost=loc_cls")
    row = grid(page)[BEST]
    assert row[:4] == [f"{one.config.lr:g}", "3", "35.7", "32.0 ± 2.6"]  # (4 + 1 + 9) / 2 = 2.65²
    assert row[4:8] == ["-3.7", "35.5 (-0.2)", "32.3 ± 2.4 (+0.3 ± 0.3)", "-3.2"]
    assert grid(page)["predefined + class"][1:5] == ["1/3", "32.5", "20.0", "-12.5"]
    assert "scored by hotcoco 1.3.0; recipe 1" in page
    assert f"COCO's bounds × ({one.config.size.short}/512)²" in page

    lines = tidy(printed(capsys, root, "--table", "1", "--format", "csv", "--", "cost=loc_cls"))
    ap = lines[BEST, "AP"]
    assert (ap["table"], ap["paper"], ap["n"]) == ("1", "35.7", "3")
    assert ap["ids"].split() == [spec.id for spec in best]
    assert float(ap["ours_mean"]) == 32
    assert float(ap["ours_std"]) == pytest.approx(math.sqrt(7), abs=1e-6)
    assert float(ap["gap"]) == pytest.approx(-3.7)
    gain = lines[BEST, "nms_gain"]
    assert float(gain["paper"]) == -0.2
    assert float(gain["ours_mean"]) == pytest.approx(1 / 3, abs=1e-6)
    assert float(gain["ours_std"]) == pytest.approx(math.sqrt(1 / 12), abs=1e-6)
    assert float(lines[BEST, "APl"]["gap"]) == pytest.approx(42 - 48.6)
    assert lines["predefined + class", "AP"]["ours_std"] == ""  # undefined for one seed
    assert lines["predefined + class", "AP"]["n"] == "1"


def test_the_paper_and_ours_stand_below_each_other_for_all_of_cocos_numbers(root, capsys):
    only = ("location=predicted", "cost=loc_cls", "seed=0")
    (spec,) = specs(root, 1, *only)
    fill(spec, AP=30.0, AP_nms=30.0, AP50=50.04, APs=None, notes={"APs": "there are no small ones"})
    page = printed(capsys, root, "--table", "1", "--", *only)
    paper, ours, gap = lines_of(page, block=1)[2:]
    assert paper == [BEST, "paper", "35.7", "54.3", "38.4", "17.9", "39.3", "48.6", "67"]
    assert ours == ["", "ours, n = 1", "30.0", "50.0", "1.0", "-", "1.0", "1.0", ""]
    assert gap == ["", "gap", "-5.7", "-4.3", "-37.4", "-", "-38.3", "-47.6", ""]
    assert "- APs: there are no small ones" in page
    assert "Missing" not in page


def test_numbers_that_are_undefined_in_some_seeds_say_over_how_many_they_are(root, capsys):
    only = ("location=predicted", "cost=loc_cls", "seed=0,1")
    first, second = specs(root, 1, *only)
    fill(first, AP=0.0, AP_nms=0.0, duplicates_per_object=None)
    fill(second, AP=1.0, AP_nms=0.96, duplicates_per_object=0.5)
    row = grid(printed(capsys, root, "--table", "1", "--", *only))[BEST]
    assert row[-1] == "0.50 (n = 1)"
    assert row[6] == "0.5 ± 0.7 (+0.0 ± 0.0)"  # a gain of -0.02 is not "-0.0"


def test_a_run_with_other_settings_does_not_slip_in(root, capsys):
    others = specs(root, 1, "seed=0", "steps=7") + specs(root, 1, "seed=0", PARTS)
    for spec in others + specs(root, 1, "seed=3"):
        fill(spec, AP=50.0, AP_nms=50.0)
    assert grid(printed(capsys, root, "--table", "1", "--", "seed=0"))[BEST][1] == "0/1"
    page = printed(capsys, root, "--table", "1", "--", "seed=0", PARTS)
    assert grid(page)[BEST][1:4] == ["1", "35.7", "50.0"]
    assert "shapes (parts)" in page


def test_a_folder_that_holds_another_runs_result_is_refused(root, capsys):
    first, second = specs(root, 1, "seed=0", "location=predicted")
    fill(first, AP=1.0)
    first.folder.path.rename(second.folder.path)
    message = refused(capsys, "--runs", str(root), "--table", "1", "--", "seed=0")
    assert first.id in message
    assert second.id in message


def test_overrides_that_list_values_make_a_row_of_each(root, capsys):
    words = ("cost=loc_cls", "location=predicted", "seed=0,1", "batch=4,8")
    for spec in specs(root, 1, *words):
        fill(spec, AP=float(spec.config.batch), AP_nms=0.0)
    rows = grid(printed(capsys, root, "--table", "1", "--", *words))
    four, eight = rows[f"{BEST}, batch=4"], rows[f"{BEST}, batch=8"]
    assert four[0].endswith("steps of 4")
    assert four[2:5] == ["2", "35.7", "4.0 ± 0.0"]
    assert eight[2:5] == ["2", "35.7", "8.0 ± 0.0"]


def test_missing_cells_print_the_commands_that_fill_them(root, capsys):
    all_specs = specs(root, 2)
    page = printed(capsys, root, "--table", "2")
    whole, *single, more = commands(page)
    assert whole.startswith("python run.py -m +experiment=table2 runs_root=")
    assert len(single) == 12
    assert "and 3 more: python run.py -m +experiment=table2" in more
    assert "Missing: 15 of 15 results." in page
    root.rmdir()
    assert tables.main(["--table", "2", "--", f"runs_root={root}"]) == 0
    assert "does not exist yet" in capsys.readouterr().out
    for line, spec in zip(single[::5], all_specs[::5], strict=True):
        (line_spec,) = expand(shlex.split(line)[2:])
        assert (line_spec.id, line_spec.evaluation) == (spec.id, spec.evaluation)
        assert line_spec.folder == spec.folder


def test_commands_survive_the_shell_and_hydra(tmp_path, capsys):
    root = tmp_path / "it's, here"
    root.mkdir()
    words = ("cost=loc_cls", "location=predicted", "seed=0", "optim.milestones=[0.5,0.6]")
    page = printed(capsys, root, "--table", "1", "--", *words)
    whole, single = (shlex.split(line, comments=True) for line in commands(page))
    (whole_spec,) = expand(whole[3:])
    (single_spec,) = expand(single[2:])
    assert single_spec.folder == whole_spec.folder
    assert single_spec.folder.path.parent == root
    assert single_spec.config.optim.milestones == [0.5, 0.6]


def test_a_command_says_why_its_run_is_not_there(root, capsys):
    only = ("location=predicted", "cost=loc_cls")
    failed, stopped, fresh = specs(root, 1, *only)
    failed.folder.set_status(state="failed", exception="ValueError: the loss is\nnot finite")
    stopped.folder.set_status(state="preempted")
    lines = commands(printed(capsys, root, "--table", "1", "--", *only))[1:]
    assert lines[0].endswith("  # failed: ValueError: the loss is not finite")
    assert lines[1].endswith("  # partial")
    assert "#" not in lines[2]
    assert f"seed={fresh.config.seed}" in lines[2]


def test_rows_that_share_a_training_keep_their_evaluations_apart(root, capsys):
    three, one = (c for c in specs(root, 2, "seed=0", "lr_scale=2") if c.config.heads == 3)
    assert three.id == one.id
    lr = f"{one.config.lr:g}"
    fill(three, AP=40.0)
    row = grid(printed(capsys, root, "--table", "2", "--", "seed=0", "lr_scale=2"))
    assert row["lr 1e-4, train 3, infer 3"][:4] == [lr, "1", "36.5", "40.0"]
    assert row["lr 1e-4, train 3, infer 1"][:4] == [lr, "0/1", "36.3", "-"]
    fill(one, AP=39.0)
    row = grid(printed(capsys, root, "--table", "2", "--", "seed=0", "lr_scale=2"))
    assert row["lr 1e-4, train 3, infer 1"][3] == "39.0"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"recipe": 2}, ["recipes", "1: 1 (", "2: 1 ("]),
        ({"env": {"hotcoco": "1.2"}}, ["evaluators", "hotcoco 1.3.0: 1 (", "1.2: 1 ("]),
    ],
)
def test_what_cannot_be_averaged_is_refused(root, capsys, other, words):
    first, second = specs(root, 1, "seed=0", "location=predicted")
    fill(first, AP=1.0)
    fill(second, AP=1.0, **other)
    message = refused(capsys, "--runs", str(root), "--table", "1", "--", "seed=0")
    assert all(word in message for word in [*words, first.id, second.id, "python run.py -m"])


def test_two_evaluations_of_one_training_are_compared_too(root, capsys):
    three, one = (c for c in specs(root, 2, "seed=0", "lr_scale=2") if c.config.heads == 3)
    fill(three, AP=1.0)
    fill(one, AP=1.0, env={"hotcoco": "1.2"})
    words = ("--runs", str(root), "--table", "2", "--", "seed=0", "lr_scale=2")
    assert "evaluators" in refused(capsys, *words)


def test_a_table_says_which_evaluators_its_numbers_come_from(root, capsys):
    words = ("seed=0", "location=predicted")
    first, _ = specs(root, 1, *words, "eval.backend=pycocotools")
    _, second = specs(root, 1, *words)
    old = to_dict(first.config)
    del old["eval"]["backend"]  # older records lack the key
    for config in (to_dict(first.config), old):
        fill(first, AP=1.0, config=config)
        page = printed(capsys, root, "--table", "1", "--", *words)
        assert "scored by pycocotools 2.0.11; recipe 1" in page
    fill(second, AP=1.0)
    page = printed(capsys, root, "--table", "1", "--", *words)
    assert "scored by hotcoco 1.3.0 and pycocotools 2.0.11; recipe 1" in page


def test_a_table_of_two_data_sets_is_refused(root, capsys):
    words = ("--runs", str(root), "--table", "1", "--", "seed=0", "data.shapes.kind=rigid,parts")
    assert "data.shapes.kind is rigid and parts" in refused(capsys, *words)


def test_all_formats_are_written_where_the_line_says(root, tmp_path, capsys):
    for spec in specs(root, 1, "seed=0", "location=predicted"):
        fill(spec, AP=30.0, AP_nms=29.0)
    out = tmp_path / "made" / "here"
    formats = ("--format", "markdown", "latex", "csv", "html", "--out", str(out))
    line = printed(capsys, root, "--table", "1", *formats, "--", "seed=0")
    assert line.count("\n") == 1
    assert str(out) in line
    assert "Missing: 2 of 4 results." in line
    names = ["table1.csv", "table1.html", "table1.md", "table1.tex"]
    assert sorted(file.name for file in out.iterdir()) == names

    tex = (out / "table1.tex").read_text()
    body = [line for line in tex.splitlines() if not line.startswith("%")]
    assert "29.0 ($-$1.0)" in tex
    assert "COCO's bounds $\\times$ (" in tex
    assert "/512)$^2$" in tex
    assert "min\\_cost" in tex
    assert "python run.py" not in "\n".join(body)
    for name in ("table*", "tabular"):
        assert tex.count(f"\\begin{{{name}}}") == tex.count(f"\\end{{{name}}}")
    columns = {line.count("&") for line in body if line.endswith("\\\\")}
    assert len(columns) == 2  # one per block
    assert "\n".join(body).isascii()

    page = (out / "table1.html").read_text()
    stack = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert not {"src", "href"} & dict(attrs).keys()  # self-contained
            if tag != "meta":
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Reader().feed(page)
    assert stack == []
    assert "29.0 (-1.0)" in page
    assert (out / "table1.csv").read_text().startswith("table,row,metric,paper,ours_mean,")


def test_text_is_escaped(tmp_path, root, capsys, monkeypatch):
    experiment = (
        "{table: 5, title: A & B_1, question: 'x < 100%?', sweep: [seed=0], rows: ["
        "{label: 'OneNet, ResNet-101, (512, 853)', overrides: [heads=1]}, "
        "{label: 'a|b & c_d', overrides: [heads=2]}]}"
    )
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "the_users.yaml").write_text(experiment)
    root = (root, "--config-dir", str(tmp_path), "--table", "5")
    page = printed(capsys, *root, "--format", "markdown")
    assert "| OneNet, ResNet-101, (512, 853) [1] |" in page
    assert "- [1] APs 40.6 is a misprint" in page
    assert r"| a\|b & c_d " in page  # not in the paper's table
    lines = tidy(printed(capsys, *root, "--format", "csv"))
    assert lines["a|b & c_d", "AP"]["paper"] == ""
    tex = printed(capsys, *root, "--format", "latex")
    assert r"A \& B\_1. x $<$ 100\%?" in tex
    assert r"a$|$b \& c\_d &" in tex
    html = printed(capsys, *root, "--format", "html")
    use_folder(None)
    assert "a|b &amp; c_d</td>" in html
    assert "x &lt; 100%?" in html


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--table", "1", "77"], "77"),
        (["--table", "1", "--runs", __file__], "--runs"),
        (["--table", "1", "--", "heds=3"], "heds"),
        (["--table", "1", "--", "+experiment=table2"], "--table"),
        (["--table", "1", "--out", f"{__file__}/x", "--", "seed=0"], "--out"),
    ],
)
def test_input_that_cannot_work_is_told_in_a_few_lines(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


@pytest.mark.slow
def test_the_command_works_from_anywhere_without_torch(tmp_path):
    script = REPOSITORY / "analysis" / "tables.py"
    code = (
        f"import runpy, sys; sys.argv = ['tables.py', '--table', '1', '--', 'debug=tiny', 'seed=0']"
        f"\ntry: runpy.run_path({str(script)!r}, run_name='__main__')"
        "\nexcept SystemExit as end: assert end.code == 0"
        "\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Table 1" in done.stdout
    assert f"{REPOSITORY / 'runs_debug'}" in done.stdout
    assert "python run.py location=predefined cost=loc_only seed=0 debug=tiny" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_row_of_the_paper_is_a_row_of_its_experiment():
    paper = [*read_paper().index]
    for experiment in map(read_experiment, experiment_names()):
        labels = [row.label for row in experiment.rows]
        assert len(set(labels)) == len(labels)
        assert {label for table, label in paper if table == experiment.table} <= {*labels}


def test_what_varies_from_row_to_row_is_a_column_of_words(root, capsys):
    for spec in specs(root, 5, "backbone=tiny"):
        fill(spec, AP=70.0 if spec.evaluation.peaks else 60.0, AP_nms=70.0)
    page = printed(capsys, root, "--table", "5", "--", "backbone=tiny")
    head, rule, *_ = lines_of(page, block=0)
    assert head[:5] == ["row", "peaks", "model", "assigner", "lr"]
    assert [mark.endswith(":") for mark in rule[:5]] == [False] * 4 + [True]
    cells = {row: (words[0], words[2], words[5]) for row, words in grid(page).items()}
    assert cells["CenterNet, tiny"] == ("3×3 peaks picked", "not matched", "-")
    assert cells["OneNet, tiny"][:2] == ("no peaks picked", "assigner min_cost")
    assert grid(page)["CenterNet, tiny"][6] == "70.0 ± 0.0"
    assert grid(page)["CenterNet, tiny, no peaks"][6] == "60.0 ± 0.0"
