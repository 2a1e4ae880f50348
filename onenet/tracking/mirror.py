"""Weights & Biases, as a mirror of a run's files, in a process of its own (see `tracker`).

It reads metrics.jsonl while the run writes it, and the rest when the run is over. W&B is online
where it finds a key, else offline inside the run's folder.

`--ended` is for a run that is over (`analysis/sync.py`): what W&B has of it is cleared, and all of
it is handed over at once.
"""

import argparse
import contextlib
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
from onenet.system.files import read_json, write_json
from onenet.tracking.tracker import BUSY, UNANSWERED, Ending, leave_verdict, verdict_file
from onenet.tracking.wandb_run import (
    BESIDE_A_RUN,
    POLL_SECONDS,
    NotOpened,
    Patience,
    alone_inside,
    at_most,
    first_line,
    open_offline,
    open_run,
    remove_others,
    to_send_later,
)

if TYPE_CHECKING:
    import wandb

ANSWER_SECONDS = 30  # for a server's first word, if the run is over


class Mirror:
    """Hands a run's files to W&B, each thing once, also over several lives of the run.

    `mirrored.json` keeps what was handed over: for training lines and for each evaluation the last
    step (a resumed run cuts metrics.jsonl back and then repeats steps, so places in the file mean
    nothing), for pictures and detections a digest.
    """

    def __init__(self, folder: RunFolder, run: "wandb.Run", patience: Patience = BESIDE_A_RUN):
        self.folder, self.run, self.patience = folder, run, patience
        self._marks_file = marks_file(folder)
        self.marks = {"steps": {}, **read_json(self._marks_file)}
        self.file_read, self.position = 0, 0
        run.define_metric("train/step")
        run.define_metric("train/*", step_metric="train/step")
        run.define_metric("eval/*", step_metric="train/step")

    def lines(self) -> None:
        """Logs what metrics.jsonl has gained."""
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
        """The whole lines since the last call, or since the file's start if it was replaced."""
        try:
            file = open(self.folder.metrics_file, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno())
            if found.st_ino != self.file_read or found.st_size < self.position:
                self.file_read, self.position = found.st_ino, 0
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):  # the run is still writing it
                    return
                with contextlib.suppress(ValueError):
                    yield json.loads(line)
                self.position += len(line)

    def summary(self, status: str) -> None:
        """The default evaluation's numbers under their own names, others' after their id."""
        default = self.folder.result()
        numbers = {"status": status, **default.get("metrics", {})}
        numbers |= {f"timing/{name}": value for name, value in default.get("timing", {}).items()}
        for file in sorted(self.folder.path.glob("evaluations/*/result.json")):
            result = read_json(file)
            if result.get("evaluation") != default.get("evaluation"):
                for name, value in result.get("metrics", {}).items():
                    numbers[f"{file.parent.name}/{name}"] = value
        self.run.summary.update(numbers)

    def pictures(self) -> None:
        """The run's pictures: boxes that W&B can filter and toggle, and the panels as they are."""
        import wandb

        source = self.folder.path / "pictures"
        listing = read_json(source / "pictures.json")
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
        entries = listing.get("images")
        if not entries or self.marks.get("pictures") == digest:
            return
        names = {int(label): name for label, name in listing["categories"].items()}
        titles = [Path(entry["file"]).stem for entry in entries]
        images = one_size([source / entry["file"] for entry in entries])
        panels = one_size([source / entry["panel"] for entry in entries])

        def with_boxes(stage: str) -> list[wandb.Image]:
            return [
                wandb.Image(
                    image,
                    caption=f"{title}, {stage.replace('_', ' ')}",
                    boxes={
                        "predictions": boxes(entry[stage], names),
                        "ground_truth": boxes(entry["ground_truth"], names),
                    },
                )
                for image, title, entry in zip(images, titles, entries, strict=True)
            ]

        stages = {f"boxes/{stage}": with_boxes(stage) for stage in ("before_nms", "after_nms")}
        positives = [wandb.Image(panel, caption=t) for panel, t in zip(panels, titles, strict=True)]
        self.run.log({**stages, "positives": positives})
        self._mark("pictures", digest)

    def detections(self) -> None:
        """All evaluations' detections and per-image arrays as one artifact, sent from where they
        are: no copy, no cache.
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
        with at_most(self.patience.artifact):  # it asks the server, and would wait for minutes
            logged = self.run.log_artifact(artifact)
            if not self.run.offline:
                logged.wait()
        self._mark("detections", artifact.digest)

    def _mark(self, name: str, digest: str) -> None:
        self.marks[name] = digest
        write_json(self._marks_file, self.marks)


def marks_file(folder: RunFolder) -> Path:
    """What of the run W&B has."""
    return folder.path / "wandb" / "mirrored.json"


def one_size(files: list[Path]) -> list[Image.Image]:
    """Pictures, padded to the right and below: W&B keeps one width and height for a whole list."""
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
    """W&B's form of boxes in pixels of their image: rows of x1, y1, x2, y2, label[, score]."""
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


def finish(mirror: Mirror, word: str) -> list[str]:
    """Sends the rest and closes the W&B run. Returns what went wrong."""
    problems, seconds = [], mirror.patience.upload
    parts = {
        "metrics": mirror.lines,
        "summary": lambda: mirror.summary(word or "failed"),
        "pictures": mirror.pictures,
        "detections": mirror.detections,
    }
    for name, send in parts.items():
        try:
            send()
        except Exception as error:  # the other parts can still be sent
            traceback.print_exc()
            problems.append(f"{name}: {first_line(error)}")
    try:
        mirror.run.finish(exit_code=0 if word == "done" else 1)
    except TimeoutError:
        problems.append(f"not all sent within {seconds:g} s; {to_send_later(mirror.run)}")
    return problems


def follow(folder: RunFolder) -> list[str]:
    """Mirrors a run until its end. Returns what went wrong."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a cluster's are for the run: this ends after it
    ending = Ending(out_of_time=lambda problem: leave_verdict(folder, [problem]))
    with alone_inside(folder) as home:
        verdict_file(folder).unlink(missing_ok=True)  # an earlier mirror's
        try:
            run, problems = open_run(folder, home), []
        except NotOpened as error:
            run = open_offline(folder)
            problems = [f"{error}; {to_send_later(run)}"]
        mirror = Mirror(folder, run)
        while not ending.heard.wait(POLL_SECONDS):
            mirror.lines()
        problems += finish(mirror, ending.word)
        leave_verdict(folder, problems)
        return problems


def rebuild(folder: RunFolder, word: str, patience: Patience) -> list[str]:
    """Clears what W&B has of a run that ended with `word`, and hands all of it over. Returns what
    went wrong.

    Raises Locked if the run goes on meanwhile, and NotOpened; then nothing has changed.
    """
    with alone_inside(folder) as home:
        if folder.is_locked():
            raise Locked(folder.path)
        run = open_run(folder, home, patience, clear=True)
        marks_file(folder).unlink(missing_ok=True)
        problems = finish(Mirror(folder, run, patience), word)
        if not problems:
            remove_others(run)
        leave_verdict(folder, problems)
        return problems


def main(arguments: list[str]) -> int:
    """0: all of it is where it should be. BUSY, UNANSWERED: nothing has changed. 1: the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ended", metavar="WORD", help="how the run ended, if it is over")
    parser.add_argument("--wait", metavar="SECONDS", type=float, help="for W&B, with --ended")
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
    except NotOpened as error:
        leave_verdict(folder, [str(error)])
        return 1 if error.answered else UNANSWERED
    except Exception as error:
        leave_verdict(folder, [first_line(error)])
        raise
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
