"""Searches: requests, draws, interruptions and failures. Most tests train nothing.

Run: pytest tests/test_search.py; with a search that is killed: pytest -m slow tests/test_search.py
"""

import io
import math
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
from rich.console import Console

from onenet.config.compose import loader, use_folder
from onenet.config.options import METRICS
from onenet.errors import UserError
from onenet.sweeps import search_sweep
from onenet.sweeps.experiments import axes_of, experiment_names, search_names
from onenet.sweeps.search import Search, Study, in_three_digits, requested_search
from onenet.system.files import REPOSITORY, write_json
from tests.launchers import launcher_of

JOBS_2 = "hydra.launcher.jobs=2"
JOBS_1 = "hydra.launcher.jobs=1"
MAX_2 = "hydra.launcher.max_failures=2"
TWO = ("hydra.launcher.jobs=2", "hydra.launcher.threads=1")
TINY = ["debug=tiny", "tracker=none"]
OVERRIDES = ["+experiment=search_cost", *TINY, *TWO]


def search_for(tmp_path, *overrides: str) -> Search:
    return requested_search(axes_of([*OVERRIDES, f"runs_root={tmp_path}", *overrides]))


class Runner:
    """Replaces `run_all`: writes results without training."""

    def __init__(self, fails=lambda weights: False, stop_after: int | None = None):
        self.fails, self.stop_after = fails, stop_after
        self.names: list[str] = []
        self.diverges = False

    def __call__(self, console, runs, launcher, free) -> dict:
        exit_codes = {}
        for run in runs:
            if len(self.names) == self.stop_after:
                raise KeyboardInterrupt
            self.names.append(run.name)
            weights = run.config.cost.weights
            run.folder.path.mkdir(parents=True, exist_ok=True)
            if self.fails(weights):
                exit_codes[run.name] = 1
                kind = "diverged" if self.diverges else "failed"
                run.folder.set_status(state="failed", kind=kind, exception=f"{kind}: no")
                continue
            ap = 50 - 10 * math.log(weights.cls / 3) ** 2 - 10 * math.log(weights.giou) ** 2
            result = {"metrics": {"AP": ap, "params": 7}, "metrics_notes": {}}
            write_json(run.folder.evaluation(run.specs[0].evaluation) / "result.json", result)
            write_json(run.folder.result_file, result)
            run.folder.set_status(state="done", kind="done", exception=None)
        return exit_codes


@pytest.fixture
def own(tmp_path):
    """A function that defines the search +experiment=mine in a user's config folder."""

    def write(settings: str) -> None:
        folder = tmp_path / "own" / "experiment"
        folder.mkdir(parents=True)
        head = "# @package _global_\ndefaults: [/search_schema@search, _self_]\n"
        text = f"{head}experiment: {{title: a, question: 'b?'}}\nsearch: {settings}\n"
        (folder / "mine.yaml").write_text(text)
        use_folder(str(folder.parent))

    yield write
    use_folder(None)


@pytest.fixture
def runner(monkeypatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(search_sweep, "run_all", lambda *arguments: runner(*arguments))
    return runner


def do_search(search: Search, *overrides: str) -> tuple[int, str, Study]:
    console = Console(file=io.StringIO(), width=200)
    status = search_sweep.main(console, search, launcher_of([*TWO, *overrides]))
    return status, console.file.getvalue(), Study(search)


def values_of(study: Study) -> list[dict]:
    return [trial.values for trial in study.trials]


# --- requests ---


def test_a_search_is_no_table():
    assert "search_cost" in search_names()
    assert "search_cost" not in experiment_names()
    assert requested_search(axes_of(["+experiment=table1"])) is None
    assert requested_search(axes_of(["seed=0,1"])) is None


@pytest.mark.parametrize("name", search_names())
def test_every_search_resolves(name, tmp_path):
    search = requested_search(axes_of([f"+experiment={name}", *TINY, f"runs_root={tmp_path}"]))
    assert loader().read(f"experiment/{name}")["experiment"]["question"].endswith("?")
    assert Study(search).trials == []


def test_overrides_apply_to_all_trials_or_narrow_the_space_or_set_the_search(tmp_path):
    search = search_for(
        tmp_path, "seed=5", "cost.weights.giou=4", "search.trials=3", "search.metric=AP50"
    )
    settings = search.settings
    assert (settings.trials, settings.metric, settings.sampler) == (3, "AP50", "tpe")
    assert list(settings.space) == ["cost.weights.cls"]
    base = Study(search).base.config
    assert (base.seed, base.cost.weights.giou, base.cost.name) == (5, 4.0, "loc_cls")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.metric=AP5"], "AP50"),
        (["search.direction=up"], "maximize"),
        (["search.sampler=grid"], "random"),
        (["search.trials=0"], "at least 1"),
        (["search.trial=3"], "search.trial"),
        (["seed=0,1"], "seed=0,1"),
        (["+experiment=search_cost,table1"], "alone"),
        (["cost.weights.cls=1", "cost.weights.giou=1"], "no key is left"),
        (["location=predefined"], "cost.weights.giou: the key does not change"),
        (["hedas=1"], "hedas"),
    ],
)
def test_wrong_overrides_are_errors_with_a_way_out(overrides, message, tmp_path):
    with pytest.raises(UserError) as caught:
        Study(search_for(tmp_path, *overrides))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{cost.weights.clss: [1, 2]}", "cost.weights.cls"),
        ("{cost.weights.cls: [2, 1]}", "FROM"),
        ("{cost.weights.cls: [0, 1, log]}", "above 0"),
        ("{cost.weights.cls: [1, 2, linear]}", "FROM"),
        ("{cost.weights.cls: 3}", "FROM"),
        ("{cost.weights.cls: [-1, 1]}", "cost.weights.cls=-1.0: must be at least 0"),
        ("{cost: [1, 2]}", "search.space.cost: a group"),
        ("{eval.batch: [1, 2]}", "does not change"),
        ("{}", "no key is left"),
        ("3", "space"),
    ],
)
def test_a_wrong_space_is_named(space, message, tmp_path, own):
    own(f"{{space: {space}}}")
    with pytest.raises(UserError) as caught:
        Study(requested_search(axes_of(["+experiment=mine", *TINY, f"runs_root={tmp_path}"])))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_values_have_three_digits_and_stay_in_their_range():
    rates = optuna.distributions.FloatDistribution(1e-5, 0.12345, log=True)
    assert in_three_digits(0.0012345, rates) == 0.00123
    assert in_three_digits(0.1234499, rates) == 0.123
    assert in_three_digits(0.99, rates) == 0.12345
    assert in_three_digits(1234.4, optuna.distributions.IntDistribution(10, 5000)) == 1230


# --- draws ---


def test_a_search_does_its_trials_and_says_the_best(tmp_path, runner):
    status, output, study = do_search(search_for(tmp_path, "search.trials=9"))
    assert status == 0
    assert len(runner.names) == len(set(runner.names)) == 9
    assert study.trials[0].values == {"cost.weights.cls": 2.0, "cost.weights.giou": 2.0}
    for trial in study.trials:
        for value in trial.values.values():
            assert value == float(f"{value:.3g}")
            assert 0.2 <= value <= 20
    best = max(study.trials, key=lambda trial: trial.result("AP"))
    last = output.strip().splitlines()[-2:]
    assert last[0] == f"The best: AP {best.result('AP'):.4g} of trial {best.number}"
    assert last[1].strip() == best.run.specs[0].command
    assert f"cost.weights.cls={best.values['cost.weights.cls']}" in last[1]


def test_later_trials_follow_from_earlier_results(tmp_path, runner):
    """The first ten trials are random; the last twenty score higher on average."""
    _, _, study = do_search(search_for(tmp_path, "search.trials=40"))
    values = [trial.result("AP") for trial in study.trials]
    assert sum(values[20:]) / 20 > sum(values[1:10]) / 9 + 10
    assert max(values) > 48


def test_the_same_seed_draws_the_same_whatever_stops_it(tmp_path, runner):
    _, _, straight = do_search(search_for(tmp_path / "straight", "search.trials=16"))
    search = search_for(tmp_path / "stopped", "search.trials=16")
    for stop in (1, 4, 13):
        runner.stop_after = 16 + stop
        with pytest.raises(KeyboardInterrupt):
            do_search(search)
    runner.stop_after = None
    _, _, resumed = do_search(search)
    assert values_of(resumed) == values_of(straight)
    assert len(runner.names) == 32
    other = do_search(search_for(tmp_path / "other", "search.trials=16", "search.seed=1"))[2]
    assert values_of(other)[0] == values_of(straight)[0]
    assert all(a != b for a, b in zip(values_of(other)[1:], values_of(straight)[1:], strict=True))


@pytest.mark.slow
def test_wherever_its_record_is_cut_the_search_goes_on_alike(tmp_path, runner):
    search = search_for(tmp_path, "search.trials=6")
    _, _, straight = do_search(search)
    journal = straight.folder.path / "optuna.journal"
    lines = journal.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        for torn in ("", lines[count][: len(lines[count]) // 2]):
            journal.write_text("".join(lines[:count]) + torn)
            assert values_of(Study(search)) == values_of(straight)[: len(Study(search).trials)]
            assert values_of(do_search(search)[2]) == values_of(straight)
    assert len(runner.names) == 6


def test_repeated_it_runs_nothing_and_more_trials_can_be_requested(tmp_path, runner):
    _, _, first = do_search(search_for(tmp_path, "search.trials=3"))
    status, output, _ = do_search(search_for(tmp_path, "search.trials=3"))
    assert (status, len(runner.names)) == (0, 3)
    assert "The best" in output
    more = do_search(search_for(tmp_path, "search.trials=6"))[2]
    assert values_of(more)[:3] == values_of(first)
    assert len(runner.names) == 6
    at_once = do_search(search_for(tmp_path / "at_once", "search.trials=6"))[2]
    assert values_of(at_once) == values_of(more)


def test_other_overrides_make_another_search(tmp_path, runner):
    first, second = (
        do_search(search_for(tmp_path, "search.trials=2")),
        do_search(search_for(tmp_path, "search.trials=2", "seed=1")),
    )
    assert first[2].folder != second[2].folder
    assert len(set(runner.names)) == 4


def test_where_its_file_is_lost_the_sequence_comes_again(tmp_path, runner):
    _, _, first = do_search(search_for(tmp_path, "search.trials=8"))
    (first.folder.path / "optuna.journal").unlink()
    again = do_search(search_for(tmp_path, "search.trials=8"))[2]
    assert values_of(again) == values_of(first)
    assert len(runner.names) == 8


def test_equal_values_share_a_run(tmp_path, runner, own):
    own("{sampler: random, trials: 12, space: {heads: [1, 2]}}")
    overrides = ["+experiment=mine", *TINY, f"runs_root={tmp_path / 'runs'}"]
    status, _, study = do_search(requested_search(axes_of(overrides)))
    assert status == 0
    assert len(runner.names) == 2
    assert {trial.values["heads"] for trial in study.trials} == {1, 2}


def test_minimize_takes_the_lowest(tmp_path, runner):
    _, output, study = do_search(
        search_for(tmp_path, "search.trials=6", "search.direction=minimize")
    )
    assert f"AP {min(t.result('AP') for t in study.trials):.4g} of" in output.splitlines()[-2]


# --- failures ---


def test_a_failed_run_is_a_failed_trial_and_is_tried_again_later(tmp_path, runner):
    runner.fails = lambda weights: weights.cls > 5
    status, output, study = do_search(search_for(tmp_path, "search.trials=12"))
    failed = [t for t in study.trials if t.run.state() == "failed"]
    assert status == 0
    assert 0 < len(failed) < 12
    assert len(runner.names) == 12
    assert output.count("NOT DONE") == len(failed)
    assert f"12 trials: {12 - len(failed)} done, {len(failed)} not" in output
    runner.fails = lambda weights: False
    _, output, again = do_search(search_for(tmp_path, "search.trials=12"))
    assert "NOT DONE" not in output
    assert values_of(again) == values_of(study)
    assert len(runner.names) == 12 + len(failed)


def test_what_diverged_is_not_tried_again(tmp_path, runner):
    runner.fails, runner.diverges = lambda weights: weights.cls > 5, True
    do_search(search_for(tmp_path, "search.trials=12"))
    _, output, _ = do_search(search_for(tmp_path, "search.trials=12"))
    assert len(runner.names) == 12
    assert "diverged: no" in output


def test_if_all_fail_it_says_so(tmp_path, runner):
    runner.fails = lambda weights: True
    status, output, _ = do_search(search_for(tmp_path, "search.trials=4"))
    assert status == 1
    assert "4 trials: 0 done, 4 not" in output
    status, output, _ = do_search(search_for(tmp_path, "search.trials=9", "seed=1"), MAX_2)
    assert "2 failed: no more are started" in output
    assert "9 trials: 0 done, 9 not" in output


def test_one_search_at_a_time(tmp_path, runner):
    search = search_for(tmp_path, "search.trials=2")
    with Study(search).folder.lock(), pytest.raises(UserError, match="Another process"):
        do_search(search)


def test_without_optuna_it_says_what_to_install(tmp_path, runner, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'onenet\[search\]'"):
        do_search(search_for(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_plan_says_what_is_searched_and_runs_nothing(tmp_path, runner):
    _, output, _ = do_search(search_for(tmp_path, "plan=true"))
    assert "cost.weights.cls: 0.2 .. 20" in output
    assert "20 trials: 0 done, 20 to do" in output
    assert not list(tmp_path.iterdir())
    do_search(search_for(tmp_path, "search.trials=3"))
    _, output, _ = do_search(search_for(tmp_path, "plan=true"))
    assert "20 trials: 3 done, 17 to do" in output
    assert len(runner.names) == 3


# --- from the command line ---


def start(*overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "run.py"), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.metric=mAP"], "choose one of AP, AP50"),
    ],
)
def test_bad_input_ends_at_once(overrides, message, tmp_path):
    process = start("-m", *OVERRIDES, *overrides, f"runs_root={tmp_path / 'runs'}")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(tmp_path):
    overrides = [
        "-m",
        "+experiment=search_cost",
        *TINY,
        JOBS_1,
        "steps=20",
        "save_every=0",
    ]
    overrides += ["search.trials=3"]
    killed = requested_search(axes_of([*overrides[1:], f"runs_root={tmp_path / 'killed'}"]))
    process = start(*overrides, f"runs_root={tmp_path / 'killed'}")
    while (
        len(now := Study(killed).trials) < 2 or now[1].run.folder.last_metrics().get("step", 0) < 5
    ):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # its run has ended, too
    deadline = time.monotonic() + 60
    while Study(killed).trials[1].run.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [trial.run.state() for trial in Study(killed).trials] == ["done", "partial"]

    process = start(*overrides, f"runs_root={tmp_path / 'killed'}")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "3 trials: 3 done, 0 not" in output
    study = Study(killed)
    assert study.trials[1].run.folder.status()["resumes"] == 1
    assert f"{study.ranked()[0][1].run.specs[0].command}" in output.splitlines()[-1]
    for key in METRICS:
        assert key in study.trials[0].run.folder.result()["metrics"]

    straight = requested_search(axes_of([*overrides[1:], f"runs_root={tmp_path / 'straight'}"]))
    assert start(*overrides, f"runs_root={tmp_path / 'straight'}").communicate()
    assert values_of(Study(straight)) == values_of(study)
    values = [[t.result("AP") for t in s.trials] for s in (Study(straight), study)]
    assert values[0] == values[1]
