"""The process that mirrors a run's files to Weights & Biases (see `tracker`).

It reads metrics.jsonl while the run writes it, and the other files when the run has ended. W&B is
online if there is an API key, else offline inside the run's folder.

`--ended` is for a run that has already ended (`analysis/sync.py`): it clears what W&B has of the
run and sends everything again.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from onenet.runs.folder import Locked, RunFolder
from onenet.runs.metrics import parse_line
from onenet.runs.result import read_result
from onenet.system.files import read_json, write_json
from onenet.tracking.tracker import BUSY, UNANSWERED, EndListener, verdict_file, write_verdict
from onenet.tracking.wandb_run import (
    DEFAULT_PATIENCE,
    POLL_SECONDS,
    OpenError,
    Patience,
    at_most,
    exclusive_home,
    first_line,
    open_offline,
    open_run,
    remove_others,
    to_send_later,
)

if TYPE_CHECKING:
    import wandb

ANSWER_SECONDS = 30  # for the server's first response, once the run has ended


class Mirror:
    """Sends a run's files to W&B, each item once, even if the run takes several attempts.

    `mirrored.json` lists what has been sent: the last step of the training and of each evaluation,
    and a digest of the pictures and of the detections. Steps, not file positions, because a resumed
    run truncates metrics.jsonl and repeats steps.
    """

    def __init__(self, folder: RunFolder, run: "wandb.Run", patience: Patience = DEFAULT_PATIENCE):
        self.folder, self.run, self.patience = folder, run, patience
        self._marks_file = marks_file(folder)
        self.marks = {"steps": {}, **read_json(self._marks_file)}
        self.inode, self.position = 0, 0  # of metrics.jsonl
        run.define_metric("train/step")
        run.define_metric("train/*", step_metric="train/step")
        run.define_metric("eval/*", step_metric="train/step")

    def send_lines(self) -> None:
        """Logs the new lines of metrics.jsonl."""
        steps, before = self.marks["steps"], dict(self.marks["steps"])
        for line in self._new_lines():
            step, evaluation = line.pop("step"), line.pop("evaluation", None)
            prefix = f"eval/{evaluation}" if evaluation else "train"
            if step > steps.get(prefix, -1):
                numbers = {f"{prefix}/{name}": value for name, value in line.items()}
                self.run.log({**numbers, "train/step": step})
                steps[prefix] = step
        if steps != before:
            write_json(self._marks_file, self.marks)

    def _new_lines(self) -> Iterator[dict]:
        """Yields the complete lines since the last call, or all of them if the file is new."""
        try:
            file = open(self.folder.metrics_file, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self.inode or stat.st_size < self.position:
                self.inode, self.position = stat.st_ino, 0
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):  # the run is still writing it
                    return
                if numbers := parse_line(line):
                    yield numbers
                self.position += len(line)

    def send_summary(self, status: str) -> None:
        """Sends the metrics of all evaluations; those other than the default are named <id>/..."""
        default = self.folder.result()
        numbers = {"status": status, **default.get("metrics", {})}
        numbers |= {f"timing/{name}": value for name, value in default.get("timing", {}).items()}
        for file in sorted(self.folder.path.glob("evaluations/*/result.json")):
            result = read_result(file)
            if result.get("evaluation") != default.get("evaluation"):
                for name, value in result.get("metrics", {}).items():
                    numbers[f"{file.parent.name}/{name}"] = value
        self.run.summary.update(numbers)

    def send_pictures(self) -> None:
        """Sends the pictures, with boxes that W&B can filter and toggle, and the panels."""
        import wandb

        source = self.folder.path / "pictures"
        index = read_json(source / "pictures.json")
        digest = hashlib.sha256(json.dumps(index).encode()).hexdigest()[:16]
        entries = index.get("images")
        if not entries or self.marks.get("pictures") == digest:
            return
        names = {int(label): name for label, name in index["categories"].items()}
        titles = [Path(entry["file"]).stem for entry in entries]
        images = pad_to_one_size([source / entry["file"] for entry in entries])
        panels = pad_to_one_size([source / entry["panel"] for entry in entries])

        def with_boxes(key: str) -> list[wandb.Image]:
            return [
                wandb.Image(
                    image,
                    caption=f"{title}, {key.replace('_', ' ')}",
                    boxes={
                        "predictions": boxes(entry[key], names),
                        "ground_truth": boxes(entry["ground_truth"], names),
                    },
                )
                for image, title, entry in zip(images, titles, entries, strict=True)
            ]

        detections = {f"boxes/{key}": with_boxes(key) for key in ("before_nms", "after_nms")}
        positives = [wandb.Image(panel, caption=t) for panel, t in zip(panels, titles, strict=True)]
        self.run.log({**detections, "positives": positives})
        self._mark("pictures", digest)

    def send_detections(self) -> None:
        """Sends the detections and per-image arrays of all evaluations as one artifact.

        They are neither copied nor cached.
        """
        import wandb

        artifact = wandb.Artifact(f"detections-{self.run.id}", type="detections")
        evaluations = self.folder.path / "evaluations"
        for name in ("detections.json.gz", "per_image.npz"):
            for file in sorted(evaluations.glob(f"*/{name}")):
                artifact.add_file(
                    str(file),
                    name=str(file.relative_to(evaluations)),
                    policy="immutable",
                    skip_cache=True,
                )
        if not artifact.manifest.entries or self.marks.get("detections") == artifact.digest:
            return
        with at_most(self.patience.artifact):  # it would wait minutes for the server
            upload = self.run.log_artifact(artifact)
            if not self.run.offline:
                upload.wait()
        self._mark("detections", artifact.digest)

    def _mark(self, name: str, digest: str) -> None:
        self.marks[name] = digest
        write_json(self._marks_file, self.marks)


def marks_file(folder: RunFolder) -> Path:
    """Returns the file that lists what has been sent to W&B."""
    return folder.path / "wandb" / "mirrored.json"


def pad_to_one_size(files: list[Path]) -> list[Image.Image]:
    """Reads pictures and pads them at the right and bottom: W&B has one size for a whole list."""
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(picture.convert("RGB"))
    size = tuple(max(sides) for sides in zip(*(p.size for p in pictures), strict=True))
    canvases = []
    for picture in pictures:
        canvases.append(Image.new("RGB", size, "gray"))
        canvases[-1].paste(picture)
    return canvases


def boxes(rows: list[list[float]], names: dict[int, str]) -> dict:
    """Converts boxes to W&B's format; rows of x1, y1, x2, y2, label[, score] in pixels."""
    box_data = []
    for x1, y1, x2, y2, label, *score in rows:
        position = {"minX": round(x1), "minY": round(y1), "maxX": round(x2), "maxY": round(y2)}
        caption = " ".join([names[int(label)], *(f"{s:.2f}" for s in score)])
        box = {
            "position": position,
            "domain": "pixel",
            "class_id": int(label),
            "box_caption": caption,
        }
        box_data.append({**box, "scores": {"score": score[0]}} if score else box)
    return {"box_data": box_data, "class_labels": names}


def finish(mirror: Mirror, outcome: str) -> list[str]:
    """Sends the rest and closes the W&B run. Returns the problems."""
    problems, seconds = [], mirror.patience.upload
    parts = {
        "metrics": mirror.send_lines,
        "summary": lambda: mirror.send_summary(outcome or "failed"),
        "pictures": mirror.send_pictures,
        "detections": mirror.send_detections,
    }
    for name, send in parts.items():
        try:
            send()
        except Exception as error:  # the other parts can still be sent
            traceback.print_exc()
            problems.append(f"{name}: {first_line(error)}")
    try:
        mirror.run.finish(exit_code=0 if outcome == "done" else 1)
    except TimeoutError:
        problems.append(f"upload not finished within {seconds:g} s; {to_send_later(mirror.run)}")
    return problems


def follow(folder: RunFolder) -> list[str]:
    """Mirrors a run until it ends. Returns the problems."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # signals are for the run; the mirror ends after it
    listener = EndListener(on_timeout=lambda problem: write_verdict(folder, [problem]))
    with exclusive_home(folder) as home:
        verdict_file(folder).unlink(missing_ok=True)  # the previous mirror's
        try:
            run, problems = open_run(folder, home), []
        except OpenError as error:
            run = open_offline(folder)
            problems = [f"{error}; {to_send_later(run)}"]
        mirror = Mirror(folder, run)
        while not listener.end.wait(POLL_SECONDS):
            mirror.send_lines()
        problems += finish(mirror, listener.outcome)
        write_verdict(folder, problems)
        return problems


def rebuild(folder: RunFolder, outcome: str, patience: Patience) -> list[str]:
    """Clears what W&B has of a run that has ended, and sends everything. Returns the problems.

    Raises Locked if the run is in progress, and OpenError; in both cases nothing has changed.
    """
    with exclusive_home(folder) as home:
        if folder.is_locked():
            raise Locked(folder.path)
        run = open_run(folder, home, patience, clear=True)
        marks_file(folder).unlink(missing_ok=True)
        problems = finish(Mirror(folder, run, patience), outcome)
        if not problems:
            remove_others(run)
        write_verdict(folder, problems)
        return problems


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if W&B has everything; BUSY or UNANSWERED if nothing has changed;
    else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ended", metavar="OUTCOME", help="how the run ended, if it has ended")
    about = "seconds to wait for W&B at most, with --ended"
    parser.add_argument("--wait", type=float, default=30.0, help=about)
    args = parser.parse_args(arguments)
    folder = RunFolder(args.folder)
    try:
        if args.ended:
            patience = Patience(min(args.wait, ANSWER_SECONDS), args.wait, args.wait)
            problems = rebuild(folder, args.ended, patience)
        else:
            problems = follow(folder)
    except Locked:
        print("another process is running it", flush=True)
        return BUSY
    except OpenError as error:
        write_verdict(folder, [str(error)])
        return 1 if error.server_answered else UNANSWERED
    except Exception as error:
        write_verdict(folder, [first_line(error)])
        raise
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
