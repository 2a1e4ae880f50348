"""What a stranger may do to a command: odd overrides and terminals.

Each case has its overrides, what must be said, and the exit status; nothing else may change.

Run: pytest tests/test_attacks.py
"""

import io
import os
import subprocess
import sys

import pytest
from rich.progress import Progress

from onenet.config.compose import compose
from onenet.errors import UserError
from onenet.sweeps import screen, summary
from onenet.sweeps.console import SafeConsole
from onenet.sweeps.experiments import axes_of, expand, specs_of
from onenet.sweeps.search import requested_search
from onenet.system.files import REPOSITORY
from onenet.system.printable import printable
from onenet.system.terminal import prepare_streams

TINY = ("debug=tiny", "tracker=none")


# --- overrides, in process ---

VALUES = [
    *[(f"{key}={value}", key, "finite") for key in ("lr", "schedule") for value in ("nan", "inf")],
    *[(f"size.ratio={value}", "size.ratio", "finite") for value in ("nan", "inf", "-inf")],
    *[(f"cost.weights.{term}=nan", f"cost.weights.{term}", "finite") for term in ("cls", "giou")],
    ("data.shapes.min_side=nan", "data.shapes.min_side", "finite"),
    ("optim.clip=nan", "optim.clip", "finite"),
    ("save_every=nan", "save_every", "finite"),
    ("lr=-1", "lr", "at least 0"),
    *[(f"loss.weights.{term}=-1", f"loss.weights.{term}", "at least") for term in ("cls", "l1")],
    ("loss.alpha=-3", "loss.alpha", "0..1"),
    ("cost.alpha=2", "cost.alpha", "0..1"),
    ("head.prior=0", "head.prior", "1e-06"),
    ("head.prior=1", "head.prior", "0.999"),
    ("seed=99999999999999999999999999", "seed", "must be in"),
    ("seed=-1", "seed", "must be in"),
    ("data.shapes.max_objects=1000000000", "data.shapes.max_objects", "1..1000"),
    ("batch=0", "batch", "at least 1"),
    ("steps=0", "steps", "at least 1"),
    ("workers=-1", "workers", "at least 0"),
    ("heads=0", "heads", "at least 1"),
    ("augment.flip=2", "augment.flip", "0..1"),
    ("size.short=8", "size.short", "at least 32"),
    ("runs_root=", "runs_root", "empty"),
    ("assigner.name=foo", "assigner.name=foo", "min_cost, hungarian"),
    ("backbone.name=foo", "backbone.name=foo", "resnet50"),
    ("data.name=foo", "data.name=foo", "shapes, coco"),
    ("neck.name=foo", "neck.name=foo", "deconv"),
    ("tracker.name=foo", "tracker.name=foo", "wandb, none"),
    ("detector=foo", "detector", "centernet"),
    ("precision=fp8", "precision=fp8", "bf16"),
    ("device=tpu", "device=tpu", "cuda"),
    ("evaluate=never", "evaluate=never", "again"),
    ("eval.backend=coco", "eval.backend=coco", "hotcoco"),
    ("infer_heads=2", "infer_heads=2", "Raise heads"),
    ("lr_scale=0", "lr_scale=0", "above 0"),
    ("accumulate=1000", "batch=", "micro-batch"),
    ("assigner.conflict=null", "assigner.conflict", "choose"),
    ("backbone.weights=resnet50", "backbone.weights", "no file"),
    ("seed=${seed}", "seed", "interpolation"),
    ("seed=${nothing}", "nothing", "not found"),
    ("seed=abc", "seed", "Integer"),
    ("heads=1.5", "heads", "Integer"),
    ("plan=maybe", "plan", "not a valid bool"),
    ("nothing=1", "nothing", "Could not override"),
    ("size=1", "size", "SizeConfig"),
    ("+extra=1", "+extra=1", "keys can be changed"),
    ("~heads", "~heads", "keys can be changed"),
    ("cost=[a]", "cost", "choose one of"),
    ("cost=nothing", "cost/nothing", "Available options"),
    ("assigner.own={a: 1}", "assigner.own={a: 1}", "in a YAML file"),
    ("neck.own={_target_: a.b}", "neck.own={_target_: a.b}", "in a YAML file"),
    ("data.own=[]", "data.own", "Cannot merge"),
    ("model={a: 1}", "model.a", "not in struct"),
]


@pytest.mark.parametrize(("override", "key", "why"), VALUES, ids=[case[0] for case in VALUES])
def test_a_wrong_value_is_named_with_the_way_out(override, key, why):
    with pytest.raises(UserError) as error:
        expand([*TINY, override])
    message = str(error.value)
    assert key in message
    assert why in message
    assert len(message.splitlines()) <= 12


SWEEPS = [
    ("seed=range(0,3,0)", "must not be zero"),
    ("seed=range(0,1000000000)", "more than 10000 values"),
    ("seed=range(3,3)", "no value"),
    ("seed=glob([*])", "seed"),
    ("seed=interval(0,3)", "a sweep needs a list of values"),
    ("cost=glob(nothing*)", "no value"),
    ("+experiment=nothing", "Could not find"),
    ("+experiment=table1,search_cost", "requested alone"),
]


def plan_runs(overrides: list[str]) -> None:
    axes = axes_of(overrides)
    _ = requested_search(axes) or specs_of(axes)


@pytest.mark.parametrize(("override", "why"), SWEEPS, ids=[case[0] for case in SWEEPS])
def test_a_wrong_sweep_is_named(override, why):
    with pytest.raises(UserError) as error:
        plan_runs([*TINY, override])
    assert why in str(error.value)
    assert len(str(error.value).splitlines()) <= 12


@pytest.mark.parametrize("text", ["[/red]", "[bold]", "\x1b[31m", "ééé", "日本"])
def test_labels_are_any_text(text):
    config = compose([*TINY, f'tracker.project="{text}"'])
    assert config.tracker.project == text


# --- terminals ---

TEXTS = ["[/red]", "[bold]all[/bold]", "\x1b[2J\x1b[31mFAKE", "日本 [x] ird", ":smile:"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_printed_without_markup_and_escapes(text):
    console = SafeConsole(width=200, highlight=False, file=io.StringIO(), force_terminal=True)
    summary.print_table(console, ("run", text), [(text, "1")])
    console.out(f"\nEverything is in {text}")
    with Progress(*screen.COLUMNS, console=console) as progress:
        progress.add_task(printable(text), total=3, note=text)
    output = console.file.getvalue()
    assert output.count(printable(text)) >= 4
    assert "\x1b[2J\x1b[31mFAKE" not in output.split("Everything")[0]


def test_a_folder_is_named_after_a_data_set_whatever_its_name(tmp_path):
    root = tmp_path / "[x] \x1b[2J ird;$(touch PWN)'é"
    root.mkdir()
    (root / "a.json").write_text("{}")
    files = [f"data.{split}.annotations=a.json" for split in ("train", "val")]
    quoted = str(root).replace("'", "\\'")
    (spec,) = expand(["data=coco", f"data.root='{quoted}'", *files])
    assert r"tiny-[x] \x1b[2J ird;$(to-s0-" in spec.folder.path.name


def test_closed_and_narrow_streams_take_any_text(tmp_path, monkeypatch):
    file = tmp_path / "out.txt"
    with open(file, "w", encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        monkeypatch.setattr(sys, "stderr", None)
        prepare_streams()
        print("3 × 日")
        print("nothing", file=sys.stderr)
        sys.stderr.close()
    assert file.read_text() == "3 \\xd7 \\u65e5\n"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "run.py"), *TINY, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


ENVIRONMENTS = [
    {"PYTHONIOENCODING": "ascii"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LOCAL_RANK": "0"},
    {"PYTHONOPTIMIZE": "2"},
    {"COLUMNS": "1", "TERM": "dumb"},
]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: next(iter(e)))
def test_a_run_ends_well_in_an_odd_environment(environment, tmp_path):
    done = run("steps=1", f"runs_root={tmp_path}", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (log,) = tmp_path.glob("*/log.txt")
    assert "Traceback" not in log.read_text()
