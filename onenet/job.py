"""One run in its own process: train what is not trained, evaluate what is asked for, write it down.

`python -m onenet.job FOLDER --request JSON` is what the sweep starts; the folder holds the frozen
config. Everything that a user sees of a run is written here or by what is called from here.
"""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import nn

from onenet import build, checkpoint, pictures, results
from onenet.config import Config, from_dict
from onenet.data.loading import training_batches
from onenet.data.sources import open_split
from onenet.errors import UserError
from onenet.identity import default_evaluation, run_id
from onenet.optim import make_optimizer
from onenet.request import Request
from onenet.runs import Locked, RunFolder, owner, write_atomically, write_json
from onenet.tracking import mirrored
from onenet.train import Progress, train

SAY_EVERY = 10  # seconds between lines on the screen


class Job:
    """The state that the steps of one run share. `run` reads top to bottom."""

    def __init__(self, folder: RunFolder, request: Request):
        self.folder, self.request = folder, request
        self.config: Config = from_dict(folder.config())
        self.id = run_id(self.config)
        self.device = build.device(self.config)
        self.said = 0.0

    def run(self) -> None:
        """Trains unless that is done, then evaluates; leaves the folder in state `done`.

        Raises Locked if another process is at it, and whatever ended the run, after it has been
        written to status.json.
        """
        torch.set_num_threads(self.request.threads)
        with self.folder.lock():
            done = self.folder.state() == "done"
            try:
                if not done:
                    resumes = self.folder.status().get("resumes", -1) + 1
                    self.folder.set_status(
                        state="running", id=self.id, resumes=resumes, steps=self.config.steps,
                        threads=self.request.threads, exception=None, traceback=None, **owner(),
                    )  # fmt: skip
                self._train_and_evaluate(trained=done)
            except BaseException as error:
                if not done:
                    self.folder.set_status(
                        state="preempted" if isinstance(error, KeyboardInterrupt) else "failed",
                        exception=f"{type(error).__name__}: {error}",
                        traceback=traceback.format_exc(),
                        ended=time.time(),
                    )
                raise
            if not done:
                self.folder.set_status(state="done", ended=time.time())

    def _train_and_evaluate(self, trained: bool) -> None:
        validation = open_split(self.config.data, "val")
        model = build.detector(self.config, len(validation.annotations.category_ids))
        with mirrored(self.folder, self.config):
            if trained:
                progress = checkpoint.load(
                    self.folder.checkpoint_file, self.id, model, None, self.device
                )
            else:
                progress = self._train(model)
            default = default_evaluation(self.config)
            for spec in dict.fromkeys([default, *self.request.evaluations]):
                if not self.folder.result(spec):
                    source = validation
                    if spec.split == "train":
                        source = open_split(self.config.data, "train")
                    print(f"evaluating {spec.id}", flush=True)
                    result = results.evaluate(
                        self.folder, self.config, model, progress, source, spec, self.request
                    )
                    print(results.summary(result), flush=True)
            result = self.folder.result(default)
            if not trained:
                threshold = result["metrics"]["score_threshold"] or 0.5
                pictures.write(
                    self.folder.path / "pictures", self.config, model, validation, threshold
                )
            write_json(self.folder.result_file, result)

    def _train(self, model: nn.Module) -> Progress:
        """Trains to the last step, from the checkpoint if there is one."""
        config, folder = self.config, self.folder
        optimizer = make_optimizer(model, config.lr, config.optim.weight_decay)
        progress = Progress()
        if folder.checkpoint_file.is_file():
            progress = checkpoint.load(
                folder.checkpoint_file, self.id, model, optimizer, self.device
            )
            print(f"resumed at step {progress.step}", flush=True)
        cut_back(folder, progress.step)
        source = open_split(config.data, "train")
        for line in source.annotations.report:
            print(f"data.train: {line}", flush=True)
        dataset = build.training_set(config, source)
        saved_at = time.monotonic()

        def save() -> None:
            nonlocal saved_at
            checkpoint.save(folder.checkpoint_file, self.id, model, optimizer, progress)
            saved_at = time.monotonic()

        with open(folder.metrics_file, "a") as lines:
            started, first = time.monotonic(), progress.step

            def log(numbers: dict) -> None:
                numbers["wall"] = round(progress.seconds, 3)
                lines.write(json.dumps(numbers) + "\n")
                lines.flush()
                pace = (time.monotonic() - started) / (numbers["step"] - first)
                self._say(numbers, pace * (config.steps - numbers["step"]))

            train(
                model,
                build.detection_loss(config),
                training_batches(
                    dataset, config.batch, progress.step, config.steps, config.workers
                ),
                optimizer,
                build.schedule(config),
                progress,
                clip=config.optim.clip,
                device=self.device,
                log_every=config.log_every,
                log=log,
                save=save,
                save_due=lambda _: time.monotonic() - saved_at >= config.save_every,
            )
        return progress

    def _say(self, numbers: dict, seconds_left: float) -> None:
        """A line on the screen, now and then."""
        now = time.monotonic()
        if now - self.said < SAY_EVERY and numbers["step"] < self.config.steps:
            return
        self.said = now
        minutes, seconds = divmod(round(seconds_left), 60)
        print(
            f"step {numbers['step']}/{self.config.steps}  loss {numbers['loss']:.3f}  "
            f"lr {numbers['lr']:.2g}  {minutes}:{seconds:02d} left",
            flush=True,
        )


def cut_back(folder: RunFolder, step: int) -> None:
    """Drops the lines of metrics.jsonl beyond the checkpoint: each step stands there once."""
    if not folder.metrics_file.is_file():
        return
    kept = []
    for line in folder.metrics_file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # torn by a crash: the last one
            break
    write_atomically(folder.metrics_file, "".join(kept))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--request", type=Request.parse, required=True, help="JSON of a Request")
    given = parser.parse_args(arguments)
    folder = RunFolder(given.folder)
    try:
        Job(folder, given.request).run()
    except Locked:
        print(f"{folder.path} belongs to another process: left alone", flush=True)
        return 3
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # os._exit: whatever still lingers (a tracker's thread, a worker) must not delay the sweep.
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
