"""One run in its own process: `python -m onenet.job FOLDER REQUEST`, started by a sweep.

FOLDER is the run's folder with its frozen config; REQUEST is a file in it that says what to do.
"""

import argparse
import os
import sys
from pathlib import Path

from onenet.job.run import work
from onenet.runs.folder import RunFolder
from onenet.runs.request import Request
from onenet.system.signals import stop_with_parent
from onenet.system.terminal import run_command


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m onenet.job", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("request", type=Path, help="JSON file of a Request")
    parser.add_argument("--driver", action="store_true", help="stop when standard input ends")
    args = parser.parse_args(arguments)
    if args.driver:
        stop_with_parent()
    try:
        request = Request.read(args.request)
    except FileNotFoundError:
        print(f"another sweep has already had this done: no {args.request}", flush=True)
        return 0
    status = work(RunFolder(args.folder), request, request.config["device"])
    if status == 0:
        args.request.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    # os._exit: a remaining thread or data worker must not delay the sweep.
    status = run_command(main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
