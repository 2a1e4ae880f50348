"""Properties that hold for any input: overrides, JSON, and files that end at any byte.

Run: pytest tests/test_properties.py           up to 50 examples of each
     pytest tests/test_properties.py -m slow   more of them
"""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from onenet.config.compose import compose, to_dict
from onenet.data.coco import read_coco
from onenet.errors import UserError
from onenet.runs.edits import edit
from onenet.runs.folder import STATES, RunFolder
from onenet.runs.identity import flatten
from onenet.runs.status import KINDS
from onenet.sweeps import plan, summary
from onenet.sweeps.experiments import expand
from onenet.system.files import read_json
from onenet.training import checkpoint

OLD = Path(__file__).parent / "golden" / "run_ae34722"
NAME = "loc_only-predicted-h2-tiny-rigid-s0-0800872d41"
RESULT = read_json(OLD / "result.json")
STATUS = read_json(OLD / "status.json")


def examples(count: int):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # no shrinking, which takes minutes
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    """A finished run of an earlier commit; each example writes the file that it damages."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(OLD, root / NAME)
    return RunFolder(root / NAME)


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes half a second."""
    monkeypatch.setattr(summary.picture, "draw", lambda rows, file: None)


# --- overrides ---

KEYS = [
    *[key for key in flatten(to_dict(compose(["debug=tiny"]))) if key != "runs_root"],
    *("cost", "location", "data", "preset", "detector", "backbone", "neck", "debug", "tracker"),
    *("+experiment", "runs_root", "model", "size", "nothing", "~heads", "+extra"),
]
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from(["1e400", "-0", "0x10", "1_0"]))
WORDS = st.sampled_from(
    [
        *(
            "null",
            "true",
            "",
            "[]",
            "{}",
            "[1,2]",
            "{a: 1}",
            "${seed}",
            "${oc.env:HOME}",
            "'",
            "\\",
        ),
        *(
            "1,2",
            "range(0,3)",
            "glob(*)",
            "choice(1,2)",
            "interval(0,1)",
            "sort(2,1)",
            "a=b",
            "???",
        ),
        *(
            "loc_only",
            "coco",
            "paper",
            "tiny",
            "/dev/null",
            "/dev/zero",
            "\0",
            "é",
            "日本",
            "~",
            ".",
        ),
    ]
)
OVERRIDES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.one_of(NUMBERS, WORDS, st.text(max_size=8))).map(
        lambda pair: f"{pair[0]}={pair[1]}"
    ),
    min_size=1,
    max_size=3,
)


def assert_composes_or_refuses(overrides: list[str]) -> None:
    message = "composed"
    try:
        specs = expand(["debug=tiny", "tracker=none", *overrides])
        assert specs
        assert plan.group(specs)
    except UserError as error:
        message = str(error)
    assert message


@given(OVERRIDES)
@examples(50)
def test_any_overrides_compose_or_are_refused(overrides):
    assert_composes_or_refuses(overrides)


@pytest.mark.slow
@given(OVERRIDES)
@examples(600)
def test_any_of_many_overrides_compose_or_are_refused(overrides):
    assert_composes_or_refuses(overrides)


# --- JSON ---

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def changed(values: dict):
    """Any JSON, or `values` with any JSON in the place of one value."""
    paths = [(key,) for key in values]
    paths += [(k, inner) for k, node in values.items() if isinstance(node, dict) for inner in node]

    def replace(path: tuple, value) -> dict:
        copy = json.loads(json.dumps(values))
        node = copy if len(path) == 1 else copy[path[0]]
        node[path[-1]] = value
        return copy

    return st.one_of(JSON, st.builds(replace, st.sampled_from(paths), JSON))


@cache
def planned(root: Path) -> list[plan.Run]:
    words = ["debug=tiny", "tracker=none", "heads=2", "cost=loc_only", f"runs_root={root}"]
    return plan.group(expand(words))


def assert_planned(folder: RunFolder) -> None:
    """Everything that the sweep reads of the folder can be read."""
    runs = planned(folder.path.parent)
    console = Console(quiet=True)
    plan.print_plan(console, runs)
    summary.print_results(console, runs, {})
    assert folder.state() in STATES
    assert folder.kind() in (None, *KINDS)


def assert_status_is_read(folder: RunFolder, values) -> None:
    (folder.path / "status.json").write_text(json.dumps(values))
    assert_planned(folder)
    shutil.copy(OLD / "status.json", folder.path)


def assert_result_is_read(folder: RunFolder, values) -> None:
    for file in (folder.result_file, *folder.path.glob("evaluations/*/result.json")):
        file.write_text(json.dumps(values))
        assert_planned(folder)
        assert len((edit(folder) or "").splitlines()) <= 1
        shutil.copy(OLD / "result.json", file)


@given(changed(STATUS))
@examples(50)
@pytest.mark.usefixtures("no_picture")
def test_any_status_is_read(folder, values):
    assert_status_is_read(folder, values)


@given(changed(RESULT))
@examples(25)
@pytest.mark.usefixtures("no_picture")
def test_any_result_is_read_or_counts_as_missing(folder, values):
    assert_result_is_read(folder, values)


@pytest.mark.slow
@given(changed(STATUS), changed(RESULT))
@examples(80)
@pytest.mark.usefixtures("no_picture")
def test_many_a_status_and_result_are_read(folder, status, result):
    assert_status_is_read(folder, status)
    assert_result_is_read(folder, result)


@pytest.mark.slow
@given(changed(RESULT))
@examples(10)
def test_any_result_is_drawn_or_counts_as_missing(folder, values):
    assert_result_is_read(folder, values)


ANNOTATIONS = {
    "images": [{"id": 7, "file_name": "a.png", "width": 90, "height": 70}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [9, 9, 40, 30]}],
    "categories": [{"id": 3, "name": "car"}],
}


def entries(kind: str):
    """ANNOTATIONS with a changed entry of one kind."""
    return changed(ANNOTATIONS[kind][0]).map(lambda entry: {**ANNOTATIONS, kind: [entry]})


@given(st.one_of(changed(ANNOTATIONS), *map(entries, ANNOTATIONS)))
@examples(50)
def test_any_annotations_are_read_or_refused(tmp_path_factory, values):
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.json").write_text(json.dumps(values))
    message = "a.json: read"
    try:
        assert len(read_coco(folder, folder / "a.json", "val").annotations) >= 1
    except UserError as error:
        message = str(error)
    assert "a.json" in message
    assert len(message.splitlines()) <= 3


# --- files that end at any byte ---


def cut(folder: RunFolder, name: str, position: float) -> int:
    """Truncates the copy of a file; returns the length that is left."""
    content = (OLD / name).read_bytes()
    (folder.path / name).write_bytes(content[: int(position * len(content))])
    return int(position * len(content))


POSITION = st.floats(0, 1, exclude_max=True)


@given(POSITION)
@examples(50)
def test_a_truncated_status_is_that_of_a_finished_run(folder, position):
    cut(folder, "status.json", position)
    assert folder.state() == "done"
    assert folder.id == STATUS.get("id", NAME.rpartition("-")[2])
    shutil.copy(OLD / "status.json", folder.path)


@given(POSITION)
@examples(50)
def test_a_truncated_result_is_no_result(folder, position):
    is_whole = cut(folder, "result.json", position) >= len(
        (OLD / "result.json").read_text().strip()
    )
    assert folder.state() == ("done" if is_whole else "partial")
    assert folder.result() == (RESULT if is_whole else {})
    shutil.copy(OLD / "result.json", folder.path)


@given(POSITION)
@examples(50)
def test_truncated_metrics_have_the_lines_before(folder, position):
    length = cut(folder, "metrics.jsonl", position)
    text = (OLD / "metrics.jsonl").read_text()
    whole = [json.loads(line) for line in text[:length].splitlines()[:-1]]
    rest = text[:length].splitlines()[-1:]
    if rest and text.startswith(("\n", ""), length) and rest[0] in text.splitlines():
        whole.append(json.loads(rest[0]))
    assert folder.metrics() == whole
    assert folder.last_metrics() == (whole[-1] if whole else {})
    shutil.copy(OLD / "metrics.jsonl", folder.path)


@given(POSITION)
@examples(50)
def test_a_truncated_checkpoint_is_skipped_for_the_one_before(tmp_path_factory, position):
    folder = RunFolder(tmp_path_factory.getbasetemp() / "truncated-0123456789")
    folder.checkpoint_file.parent.mkdir(parents=True, exist_ok=True)
    state = {"id": "0123456789", "progress": {}, "model": {"a": torch.ones(99)}, "optimizer": {}}
    torch.save(state, folder.previous_checkpoint_file)
    content = folder.previous_checkpoint_file.read_bytes()
    folder.checkpoint_file.write_bytes(content[: int(position * len(content))])
    assert checkpoint.find(folder, "0123456789") == folder.previous_checkpoint_file
