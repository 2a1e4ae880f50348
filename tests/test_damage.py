"""Random damage to any file of a run folder: never a traceback, a wrong result, or a lost one.

A case truncates one file at a random byte, or changes one random byte of it. Then everything that
reads a run folder reads it, and the command is entered again.

Run: pytest tests/test_damage.py                 one case per file
     pytest tests/test_damage.py -m slow -n 0 -s  200 cases; prints what became of them
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from onenet.errors import UserError
from onenet.job.run import Job
from onenet.runs.edits import edit
from onenet.runs.folder import STATES, RunFolder
from onenet.runs.result import WITH_PATHS
from onenet.sweeps import plan, summary
from onenet.sweeps.experiments import expand
from onenet.sweeps.plan import Run
from onenet.system.distributed import ALONE
from onenet.system.signals import StopRequest
from onenet.training import checkpoint

FILES = (
    *("config.yaml", "status.json", "metrics.jsonl", "result.json", "assignments.npz"),
    *("predictions.npz", "checkpoints/last.pt", "evaluations/*/result.json"),
    *("evaluations/*/per_image.npz", "evaluations/*/detections.json.gz", "pictures/pictures.json"),
    "pictures/image_1.png",
)
OTHER_EVALUATION = "eval.split=train"


def planned(root: Path, *overrides: str) -> Run:
    words = ["debug=tiny", "tracker=none", "steps=2", "neck.channels=8", f"runs_root={root}"]
    (run,) = plan.group(expand([*words, *overrides]))
    return run


def do(run: Run) -> None:
    plan.freeze([run])
    Job(run.folder, run.request(threads=1), ALONE, StopRequest()).run()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> RunFolder:
    """A finished run, which no test changes."""
    run = planned(tmp_path_factory.mktemp("original"))
    do(run)
    return run.folder


@pytest.fixture
def root(tmp_path, original) -> Iterator[Path]:
    """A runs root with a copy of the run."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def damage(folder: RunFolder, pattern: str, generator: random.Random) -> str:
    """Damages the file; returns how."""
    (file,) = folder.path.glob(pattern)
    content = bytearray(file.read_bytes())
    position = generator.randrange(len(content))
    if truncates := generator.random() < 0.5:
        del content[position:]
    else:
        content[position] ^= generator.randrange(1, 256)
    file.write_bytes(content)
    return f"{file.name} {'ends before' if truncates else 'is changed at'} byte {position}"


def assert_read(folder: RunFolder, original: RunFolder, pattern: str) -> None:
    """Reads all files: each gives what it held, or says that it is damaged."""
    run = planned(folder.path.parent)
    plan.print_plan(Console(quiet=True), [run])
    assert summary.failure(run, {})
    assert folder.state() in STATES
    for spec in (None, run.specs[0].evaluation):
        assert numbers(folder.result(spec)) in ({}, numbers(original.result(spec)))
    assert folder.last_metrics().get("step", 0) >= 0
    try:
        folder.config()
    except UserError as error:
        assert_short(error, folder)
        assert edit(folder)
    if pattern == "checkpoints/last.pt" and (file := checkpoint.find(folder, original.id)):
        assert_same_weights(file, original.checkpoint_file)
    lines = original.metrics()
    assert all(line in lines for line in folder.metrics())


def numbers(result: dict) -> dict:
    """The result without its configuration, which the digest leaves out."""
    return {key: value for key, value in result.items() if key not in WITH_PATHS}


def assert_short(error: UserError, folder: RunFolder) -> None:
    assert str(folder.path) in str(error)
    assert len(str(error).splitlines()) <= 3


def assert_same_weights(file: Path, original: Path) -> None:
    weights, others = (torch.load(f, weights_only=True)["model"] for f in (file, original))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def assert_recovers(folder: RunFolder, original: RunFolder, pattern: str) -> str:
    """Enters the command again: the result is there. Returns what became of the run."""
    root = folder.path.parent
    state = planned(root).state()
    assert state in ("done", "partial")
    if state == "partial":
        do(planned(root))
    assert planned(root).state() == "done"
    assert numbers(folder.result()) == numbers(original.result())
    if pattern not in ("config.yaml", "checkpoints/last.pt"):
        return "unharmed" if state == "done" else "restored"
    try:
        do(planned(root, OTHER_EVALUATION))  # reads both
    except UserError as error:
        assert_short(error, folder)
        assert numbers(folder.result()) == numbers(original.result())
        return "no further evaluation, and says so"
    return "unharmed"


def attack(root: Path, original: RunFolder, seed: int) -> str:
    generator = random.Random(seed)
    pattern = FILES[seed % len(FILES)]
    folder = RunFolder(root / original.path.name)
    shutil.copytree(original.path, folder.path)
    how = damage(folder, pattern, generator)
    try:
        assert_read(folder, original, pattern)
        return assert_recovers(folder, original, pattern)
    except Exception as error:
        raise AssertionError(f"case {seed}: {how}") from error
    finally:
        shutil.rmtree(folder.path)


def test_random_damage_loses_no_result(root, original):
    assert len([attack(root, original, seed) for seed in range(len(FILES))]) == len(FILES)


@pytest.mark.slow
def test_much_random_damage_loses_no_result(root, original):
    outcomes = Counter(attack(root, original, seed) for seed in range(1000, 1200))
    print(dict(outcomes))
    assert outcomes.total() == 200
    assert outcomes["unharmed"] > 80
