"""W&B's runs, made again from the run folders. The files are the record, W&B is a mirror.

    python analysis/sync.py                      every run of runs/
    python analysis/sync.py --runs DIR RUN ...   these: names or ids of folders

Each run takes the place of what W&B has under its id, with all that its files hold, and of what
other lives of it left in <folder>/wandb. Runs that go on are skipped. Without a key, or with
WANDB_MODE=offline, an offline run lies in each folder afterwards, for `wandb sync`.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onenet.errors import UserError
from onenet.runs.folder import RunFolder, named
from onenet.system.files import REPOSITORY
from onenet.tracking.tracker import BUSY, UNANSWERED, rebuilt

WAIT_SECONDS = 300
OUTCOMES = ("skipped", "failed", "not tried")  # beside "rebuilt"


def main(arguments: list[str]) -> int:
    """0; 1 if a run could not be rebuilt; 2 if the input cannot work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_names", nargs="*", metavar="RUN", help="default: all")
    parser.add_argument(
        "--runs", metavar="DIR", default=REPOSITORY / "runs", help="runs root (default: run.py's)"
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=WAIT_SECONDS,
        help="for W&B to take a run's artifact, and again for the rest (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    try:
        if os.environ.get("WANDB_MODE") == "disabled":
            raise UserError("WANDB_MODE=disabled: there is nothing to rebuild. Unset it.")
        if args.wait <= 0:
            raise UserError(f"--wait {args.wait:g}: it must be above 0.")
        folders = chosen(Path(args.runs).expanduser().absolute(), args.run_names)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return sync(folders, args.wait)


def chosen(root: Path, words: Sequence[str]) -> list[RunFolder]:
    """The run folders of the root that the words name, or all of them. Raises UserError."""
    if not root.is_dir():
        raise UserError(f"--runs {root} is not a folder.")
    configs = root.glob("[!.]*/config.yaml")
    folders = [RunFolder(file.parent) for file in sorted(configs)]
    if not folders:
        raise UserError(f"There is no run in {root}.")
    return named(root, folders, words) or folders


def sync(folders: Sequence[RunFolder], seconds: float) -> int:
    """Rebuilds them one by one and prints a line for each. Returns the exit status."""
    counts, offline = Counter(), []
    for tried, folder in enumerate(folders, 1):
        outcome, line = rebuild(folder, seconds)
        print(f"{folder.path.name}: {line}", flush=True)
        counts[outcome] += 1
        if outcome == "rebuilt":
            offline += offline_lives(folder)
        if outcome == "unanswered":
            counts["failed"], counts["not tried"] = counts["failed"] + 1, len(folders) - tried
            break
    others = [f"{counts[word]} {word}" for word in OUTCOMES if counts[word]]
    print(", ".join([f"{counts['rebuilt']} rebuilt", *others]))
    if offline:
        print(f"to send what was rebuilt offline: {send_command(offline)}")
    return 1 if counts["failed"] else 0


def rebuild(folder: RunFolder, seconds: float) -> tuple[str, str]:
    """How it went, for the count, and the line about it."""
    status, state = folder.status(), folder.state()
    if state == "missing" or (state == "failed" and "id" not in status):  # refused at its start
        return "skipped", "has not begun: skipped"
    if folder.is_locked():
        return "skipped", "running: skipped"
    if "id" not in status:
        return "failed", "its status.json does not say its id: left as it is"
    word = "preempted" if status.get("state") == "preempted" else "failed"
    word = "done" if state == "done" else word
    code, said = rebuilt(folder, word, seconds)
    if code == BUSY:
        return "skipped", "running: skipped"
    if code == UNANSWERED:
        return "unanswered", f"W&B does not answer, nothing has changed ({said})"
    if code:
        return "failed", f"W&B lacks it or a part of it ({said}); the same command makes it again"
    offline = " offline" if offline_lives(folder) else ""
    return "rebuilt", f"rebuilt{offline} ({word})"


def offline_lives(folder: RunFolder) -> list[Path]:
    return list(folder.path.glob("wandb/offline-run-*"))


def send_command(lives: list[Path]) -> str:
    root, pattern = lives[0].parents[2], "*/wandb/offline-run-*"
    if len(lives) > 1 and set(lives) == set(root.glob(pattern)):
        return f"wandb sync {shlex.quote(str(root))}/{pattern}"
    return shlex.join(["wandb", "sync", *map(str, lives)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
