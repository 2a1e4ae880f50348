"""A sweep that is killed repeatedly must give the results of an undisturbed sweep.

    python tests/soak.py                                  20 kills, 8 runs, about ten minutes
    python tests/soak.py --kills 5 --runs 4 --root DIR    tables and folders in DIR
    python tests/soak.py workers=2                        with more overrides for run.py

Sends SIGKILL, sometimes SIGTERM, to the sweep's process group at random times during start-up,
training and evaluation, then restarts it with the same command. Exits 1 and lists differences.
"""

import argparse
import gzip
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import torch

from onenet.runs.folder import RunFolder
from onenet.sweeps.experiments import RunSpec, expand
from onenet.system.files import REPOSITORY

JOBS_2 = "hydra.launcher.jobs=2"
TINY = [
    "debug=tiny",
    "tracker=none",
    "save_every=0",
    JOBS_2,
    "hydra.launcher.threads=1",
]
AIMS = ("training", "start-up", "evaluation", "anywhere", "training")  # cycled
DELAYS = {"training": 4.0, "start-up": 5.0, "evaluation": 0.8, "anywhere": 20.0}  # max seconds
TERM_EVERY = 4  # kills per SIGTERM
END_SECONDS = 45  # for a sweep to exit on SIGTERM
WAIT_SECONDS = 120  # for a run to reach its evaluation
TIMES = ("wall", "seconds", "train_seconds")
COMPARED = ("id", "config", "choices", "metrics", "metrics_notes", "data_report", "bad_images")


class Sweep:
    """One sweep command that can be restarted."""

    def __init__(self, root: Path, words: list[str]):
        self.words = [*words, f"runs_root={root}"]
        self.specs: list[RunSpec] = expand(self.words)
        self.output = root.with_suffix(".txt")
        self.process: subprocess.Popen | None = None
        self.started = 0.0

    @property
    def folders(self) -> list[RunFolder]:
        return [spec.folder for spec in self.specs]

    def start(self) -> None:
        command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *self.words]
        self.started = time.monotonic()
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end(self) -> None:
        """Leaves no process behind."""
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> int:
        """Signals the whole group, as a shutdown does. Returns the exit status."""
        os.killpg(self.process.pid, number)
        return self.process.wait(END_SECONDS)

    def run_through(self) -> int:
        self.start()
        return self.process.wait()

    def phases(self) -> list[str]:
        return [phase(spec) for spec in self.specs]


def phase(spec: RunSpec) -> str:
    """The phase of a run: missing, partial 12/60, running 12/60, evaluating, done, failed."""
    state, step = spec.folder.state(), spec.folder.last_metrics().get("step", 0)
    if state == "running" and step == spec.config.steps:
        return "evaluating"
    return f"{state} {step}/{spec.config.steps}" if state in ("running", "partial") else state


def soak(sweep: Sweep, kills: int, dice: random.Random) -> list[str]:
    """Kills and restarts the sweep, then lets it finish. Returns errors."""
    wrong = []
    hit = Counter()
    for kill in range(kills):
        sweep.start()
        aim = AIMS[kill % len(AIMS)]
        if not wait_for_moment(sweep, aim, dice):
            print(f"all done after {kill} kills", flush=True)
            break
        number = signal.SIGTERM if kill % TERM_EVERY == TERM_EVERY - 1 else signal.SIGKILL
        phases, after = sweep.phases(), time.monotonic() - sweep.started
        status = sweep.send(number)
        hit.update(struck(phases))
        print(
            f"kill {kill + 1:2}  {number.name} after {after:4.1f} s, aimed at {aim}: "
            f"{', '.join(phases)}; exit status {status}",
            flush=True,
        )
        if number == signal.SIGTERM:
            wrong += after_sigterm(sweep, phases, status)
    print(f"hit: {', '.join(f'{count} x {what}' for what, count in hit.items())}", flush=True)
    if status := sweep.run_through():
        wrong.append(f"the last sweep ended with {status}:\n{sweep.output.read_text()[-3000:]}")
    if "Traceback" in sweep.output.read_text():
        wrong.append(f"a traceback on the screen:\n{sweep.output.read_text()[-3000:]}")
    return wrong


def wait_for_moment(sweep: Sweep, aim: str, dice: random.Random) -> bool:
    """False if the sweep ended first."""
    before = sweep.phases()
    moment = {
        "training": lambda: any(
            now.split()[1:] != was.split()[1:] for now, was in training(sweep.phases(), before)
        ),
        "evaluation": lambda: "evaluating" in sweep.phases(),
    }.get(aim, lambda: True)
    patiently(lambda: moment() or sweep.process.poll() is not None)
    time.sleep(dice.uniform(0, DELAYS[aim]))
    return sweep.process.poll() is None


def training(now: list[str], before: list[str]) -> list[tuple[str, str]]:
    """The current and the earlier phase of each run in training."""
    return [pair for pair in zip(now, before, strict=True) if pair[0].startswith("running")]


def patiently(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def struck(phases: list[str]) -> list[str]:
    """The phases that a kill hit; start-up if no run had started."""
    words = [p.split()[0] for p in phases if p.startswith(("running", "evaluating"))]
    return words or ["start-up"]


def after_sigterm(sweep: Sweep, phases: list[str], status: int) -> list[str]:
    """Active runs must have ended, with state preempted or done."""
    wrong = []
    if status not in (0, 75, -signal.SIGTERM):  # without handlers yet, it just dies
        wrong.append(f"after SIGTERM the sweep ended with {status}")
    for before, folder in zip(phases, sweep.folders, strict=True):
        state = folder.status().get("state")
        if before.startswith(("running", "evaluating")) and state not in ("preempted", "done"):
            wrong.append(f"{folder.path.name}: {before}, SIGTERM, and status.json says {state}")
    return wrong


def differences(expected: RunFolder, actual: RunFolder) -> list[str]:
    """Differences between two runs, apart from times."""
    problems = [
        f"{key} of result.json: {one} and {other}"
        for key in COMPARED
        if (one := plain(expected.result().get(key))) != (other := plain(actual.result().get(key)))
    ]
    problems += line_differences(lines(expected), lines(actual))
    problems += [
        f"checkpoint: {name} differs" for name in tensor_differences(state(expected), state(actual))
    ]
    if detections(expected) != detections(actual):
        problems.append("the detections differ")
    leftovers = [p.name for p in actual.path.rglob(".*.*")]
    return [
        f"{actual.path.name}: {text}" for text in problems + [f"left: {name}" for name in leftovers]
    ]


def plain(value):
    """Drops keys that may differ: times and the runs root."""
    if not isinstance(value, dict):
        return value
    return {k: v for k, v in value.items() if k not in (*TIMES, "runs_root")}


def lines(folder: RunFolder) -> list[dict]:
    return [plain(line) for line in folder.metrics()]


def line_differences(expected: list[dict], actual: list[dict]) -> list[str]:
    steps = Counter((line["step"], line.get("evaluation")) for line in actual)
    problems = [f"metrics.jsonl has {key} {n} times" for key, n in steps.items() if n > 1]
    pairs = enumerate(zip_longest(expected, actual), 1)
    different = [(number, *pair) for number, pair in pairs if pair[0] != pair[1]]
    if different:
        number, one, other = different[0]
        problems.append(
            f"{len(different)} lines of metrics.jsonl, first {number}: {one} and {other}"
        )
    return problems


def state(folder: RunFolder) -> dict:
    loaded = torch.load(folder.checkpoint_file, weights_only=True)
    loaded["progress"].pop("seconds")
    return loaded


def tensor_differences(expected, actual, name: str = "") -> list[str]:
    """The names of entries that are not bit-identical."""
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        same = expected.dtype == actual.dtype and torch.equal(expected, actual)
        return [] if same else [name]
    if isinstance(expected, dict) and isinstance(actual, dict) and set(expected) == set(actual):
        parts = [(f"{name}.{k}".strip("."), expected[k], actual[k]) for k in expected]
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        parts = [
            (f"{name}.{k}", *pair) for k, pair in enumerate(zip(expected, actual, strict=True))
        ]
    else:
        return [] if expected == actual else [name]
    return [bad for part, one, other in parts for bad in tensor_differences(one, other, part)]


def detections(folder: RunFolder) -> list[bytes]:
    files = sorted((folder.path / "evaluations").glob("*/detections.json.gz"))
    return [gzip.decompress(file.read_bytes()) for file in files]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--root", type=Path, help="default: a new temporary folder")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="further words for run.py")
    options = parser.parse_intermixed_args(arguments)
    root = options.root or Path(tempfile.mkdtemp(prefix="soak-"))
    if any((root / name).exists() for name in ("straight", "killed")):
        parser.error(f"{root} holds an earlier soak: choose an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    words = [f"seed=range(0,{options.runs})", *TINY, f"steps={options.steps}", *options.words]

    straight, killed = Sweep(root / "straight", words), Sweep(root / "killed", words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return compare(straight, killed, options.kills, random.Random(options.seed))
    finally:
        straight.end()
        killed.end()


def compare(straight: Sweep, killed: Sweep, kills: int, dice: random.Random) -> int:
    """Runs both; returns the status."""
    print(f"In {straight.output.parent}", flush=True)
    if status := straight.run_through():
        print(f"the undisturbed sweep ended with {status}: {straight.output}")
        return 1
    print(f"undisturbed: {time.monotonic() - straight.started:.0f} s", flush=True)
    wrong = soak(killed, kills, dice)
    for pair in zip(straight.folders, killed.folders, strict=True):
        wrong += differences(*pair)
    resumes = [folder.status().get("resumes") for folder in killed.folders]
    print(f"resumes of the runs: {resumes}")
    print("\n".join(wrong) if wrong else f"{len(resumes)} runs: no difference")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
