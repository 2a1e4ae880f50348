"""From overrides to runs: grids, experiments, narrowing and multiplying.

Run: pytest tests/test_experiments.py
"""

from pathlib import Path

import pytest

from onenet.config.compose import use_folder
from onenet.errors import UserError
from onenet.sweeps.experiments import expand, experiment_names, read_experiment
from onenet.sweeps.plan import group


@pytest.fixture
def own(tmp_path):
    """Writes +experiment=mine into a new user folder and returns the file."""

    def write(text: str) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        file = folder / "experiment" / "mine.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        use_folder(str(folder))
        return file

    yield write
    use_folder(None)


def test_the_main_job_is_four_runs():
    specs = expand(["cost=loc_only,loc_cls", "heads=1,3"])
    assert [(c.config.cost.name, c.config.heads) for c in specs] == [
        ("loc_only", 1),
        ("loc_only", 3),
        ("loc_cls", 1),
        ("loc_cls", 3),
    ]
    assert len({spec.id for spec in specs}) == 4


def test_hydras_ranges_and_quotes_work():
    assert [c.config.seed for c in expand(["seed=range(0,3)"])] == [0, 1, 2]
    assert expand(["optim.milestones=[0.5,0.9]"])[0].config.optim.milestones == [0.5, 0.9]


def test_table_1_is_four_rows_by_three_seeds():
    specs = expand(["+experiment=table1"])
    assert len(specs) == 12
    assert {spec.config.seed for spec in specs} == {0, 1, 2}
    combinations = {(c.config.location, c.config.cost.name) for c in specs}
    assert len(combinations) == 4


def test_table_2_is_pairs_and_its_last_rows_share_a_training():
    specs = expand(["+experiment=table2", "seed=0"])
    assert len(specs) == 5
    assert specs[3].id == specs[4].id
    assert specs[3].evaluation.infer_heads == 3
    assert specs[4].evaluation.infer_heads == 1
    runs = group(specs)
    assert [len(run.specs) for run in runs] == [1, 1, 1, 2]
    rates = [spec.config.lr for spec in specs]
    assert rates[1] == rates[3] == pytest.approx(2 * rates[0])
    assert rates[2] == rates[0]


def test_tables_that_share_a_row_share_its_run():
    one = expand(["+experiment=table1", "cost=loc_cls", "location=predicted", "seed=0"])
    two = expand(["+experiment=table2", "seed=0"])
    assert one[0].id == two[0].id
    both = expand(["+experiment=table1,table2", "seed=0"])
    assert len(group(both)) == len(group(one)) + 3 + 3


def test_axes_of_the_rows_narrow_and_other_axes_multiply():
    assert {c.label for c in expand(["+experiment=table1", "location=predicted"])} == {
        "predicted",
        "predicted + class",
    }
    specs = expand(["+experiment=table1", "seed=5", "data.shapes.kind=rigid,parts"])
    assert len(specs) == 8
    assert {c.config.seed for c in specs} == {5}


def test_a_cells_command_makes_the_same_run():
    for spec in expand(["+experiment=table2", "debug=tiny", "runs_root=/x"]):
        again = expand([*spec.overrides, "runs_root=/x"])[0]
        assert (again.id, again.evaluation) == (spec.id, spec.evaluation)


@pytest.mark.parametrize("scale", [["debug=tiny"], ["debug=overfit"], []])
@pytest.mark.parametrize("name", experiment_names())
def test_every_row_of_every_experiment_resolves(name, scale):
    experiment = read_experiment(name)
    assert experiment.question.endswith("?")
    labels = {spec.label for spec in expand([f"+experiment={name}", *scale])}
    assert labels == {row.label for row in experiment.rows}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+experiment=tabel1"], "table1"),
        (["+experiment=table1", "location=nowhere"], "location=nowhere"),
        (["+experiment=table2", "heads=2"], "heads=2"),
        (["seed=interval(0,1)"], "list"),
        (["heads=(3"], "heads=(3"),
        (["seed=range(0,1000000000)"], "seed=range(0,1000000000): lists more than 10000 values"),
        (["seed=range(0,3,0)"], "must not be zero"),
        (["seed=range(3,0)"], "lists no value"),
        (["heads=glob(*)"], "lists no value"),
        (["cost=glob(x*)"], "lists no value"),
    ],
)
def test_wrong_overrides_are_errors_with_a_way_out(overrides, message):
    with pytest.raises(UserError) as caught:
        expand(overrides)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_an_override_selects_the_rows_that_have_the_value_anyway(own):
    own(
        "title: a\nquestion: b?\nrows:\n- {label: one, overrides: [heads=1]}\n"
        "- {label: three, overrides: [heads=3]}\n- {label: default, overrides: [seed=7]}\n"
        "- {label: other, overrides: [detector=centernet, model.min_overlap=0.5]}"
    )

    def labels(*overrides: str) -> list[str]:
        return [spec.label for spec in expand(["+experiment=mine", *overrides])]

    assert labels("heads=1") == ["one", "default", "other"]
    assert labels("heads=3") == ["three"]
    assert labels("heads=3,1") == ["one", "three", "default", "other"]
    assert labels("detector=onenet") == ["one", "three", "default"]
    assert labels("model.min_overlap=0.5") == ["other"]
    with pytest.raises(UserError, match="No row of experiment mine has heads=5"):
        labels("heads=5")


def test_a_broken_experiment_file_is_named(own):
    for text in ("rows: [{label: a}]", "title: a", "- a"):
        with pytest.raises(UserError, match=rf"{own(text)} is not an experiment"):
            expand(["+experiment=mine"])
    own("rows: [")
    with pytest.raises(UserError, match=r"experiment/mine\.yaml cannot be read"):
        expand(["+experiment=mine"])


def test_an_experiment_of_the_users_own_is_a_table(own):
    own("title: a\nquestion: b?\nrows: [{label: x, overrides: [heads=3]}]\nsweep: [seed=4]")
    assert "mine" in experiment_names()
    (spec,) = expand(["+experiment=mine"])
    assert (spec.label, spec.config.heads, spec.config.seed) == ("x", 3, 4)
