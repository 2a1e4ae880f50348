"""Rebuilds W&B's runs from the run folders. The files are the record, W&B only mirrors them.

    python analysis/sync.py                      every run in runs/
    python analysis/sync.py --runs DIR RUN ...   only these, by folder name or id

A rebuilt run contains everything in the run's files. It replaces W&B's run with the same id, and
the W&B files of earlier attempts in <folder>/wandb. Running runs are skipped. Without an API key,
or with WANDB_MODE=offline, each folder gets an offline run, to be sent with `wandb sync`.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.core.cli import command_line, execute, named_runs, runs_folder
from analysis.core.frame import OWN_RUNS, problem
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.system.terminal import run_command
from onenet.tracking.tracker import BUSY, UNANSWERED, rebuild_mirror

WAIT_SECONDS = 300
OUTCOMES = ("skipped", "failed", "not tried")  # besides "rebuilt"


def main(arguments: list[str]) -> int:
    """Returns 0; 1 if a run could not be rebuilt; 2 if the input is invalid."""
    parser = command_line(__doc__, overrides=False)
    parser.add_argument("run_names", nargs="*", metavar="RUN", help="default: all")
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=WAIT_SECONDS,
        help="time limit for uploading a run's artifact, and again for the rest of the run "
        "(default: %(default)s)",
    )
    return execute(sync_runs, parser.parse_args(arguments))


def sync_runs(args: argparse.Namespace) -> int:
    """Rebuilds the runs one by one and prints a line for each. Returns the exit status."""
    if os.environ.get("WANDB_MODE") == "disabled":
        raise UserError("WANDB_MODE=disabled turns W&B off: unset it to rebuild runs.")
    if args.wait <= 0:
        raise UserError(f"--wait {args.wait:g}: must be above 0.")
    folders = named_runs(runs_folder(args.runs or OWN_RUNS), args.run_names, "config.yaml")
    counts, offline = Counter(), []
    for number, folder in enumerate(folders, 1):
        outcome, line = rebuild(folder, args.wait)
        print(f"{folder.path.name}: {line}", flush=True)
        counts[outcome] += 1
        if outcome == "rebuilt":
            offline += offline_runs(folder)
        if outcome == "unanswered":
            counts["failed"], counts["not tried"] = counts["failed"] + 1, len(folders) - number
            break
    others = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]]
    print(", ".join([f"{counts['rebuilt']} rebuilt", *others]))
    if offline:
        print(f"To send the offline runs: {send_command(offline)}")
    return 1 if counts["failed"] else 0


def rebuild(folder: RunFolder, seconds: float) -> tuple[str, str]:
    """Rebuilds one run. Returns the outcome, for the counts, and a message."""
    if reason := problem(folder):
        return "failed", reason
    status, state = folder.status(), folder.state()
    if state == "missing" or (state == "failed" and "id" not in status):  # rejected at its start
        return "skipped", "not started: skipped"
    if folder.is_locked():
        return "skipped", "running: skipped"
    if "id" not in status:
        return "failed", "its status.json has no id: left as it is"
    ending = "preempted" if status.get("state") == "preempted" else "failed"
    ending = "done" if state == "done" else ending
    code, message = rebuild_mirror(folder, ending, seconds)
    if code == BUSY:
        return "skipped", "running: skipped"
    if code == UNANSWERED:
        return "unanswered", f"W&B does not answer, nothing has changed ({message})"
    if code:
        return "failed", f"incomplete on W&B ({message}); run the same command again"
    offline = " offline" if offline_runs(folder) else ""
    return "rebuilt", f"rebuilt{offline} ({ending})"


def offline_runs(folder: RunFolder) -> list[Path]:
    return list(folder.path.glob("wandb/offline-run-*"))


def send_command(runs: list[Path]) -> str:
    """Returns the command that sends these offline runs to W&B."""
    root, pattern = runs[0].parents[2], "*/wandb/offline-run-*"
    if len(runs) > 1 and set(runs) == set(root.glob(pattern)):
        return f"wandb sync {shlex.quote(str(root))}/{pattern}"
    return shlex.join(["wandb", "sync", *map(str, runs)])


if __name__ == "__main__":
    sys.exit(run_command(main))
