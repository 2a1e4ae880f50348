"""Executes one run: trains it unless that is done, and does the requested evaluations.

All output of a run is written from here. With several processes (torchrun), all of them train and
predict, and the first one writes.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from onenet import build
from onenet.config.compose import from_dict
from onenet.config.schema import Config
from onenet.config.upgrade import upgrade
from onenet.data.images import ImageSource
from onenet.data.loading import training_batches
from onenet.data.sources import open_split
from onenet.errors import UserError
from onenet.job import pictures, results
from onenet.job.endings import describe, kind_of, note_failed_start
from onenet.job.recorder import TrainingLog, add_line
from onenet.job.repair import repair
from onenet.job.snapshots import snapshots_of
from onenet.runs.classes import Classes
from onenet.runs.evaluations import EvalSpec, default_evaluation
from onenet.runs.folder import Locked, RunFolder, owner
from onenet.runs.identity import run_id
from onenet.runs.request import Request, all_rows
from onenet.runs.result import write_result
from onenet.system.distributed import World, is_first_process, join
from onenet.system.memory import keep_freed_memory
from onenet.system.signals import EXIT_STATUS, Preempted, StopRequest
from onenet.tracking.tracker import mirrored
from onenet.training import checkpoint
from onenet.training.loop import Hooks, Progress, TrainingState, train
from onenet.training.stopwatch import Stopwatch


class Job:
    """One run in this process. `run` reads top to bottom."""

    def __init__(self, folder: RunFolder, request: Request, world: World, stop: StopRequest):
        self.folder, self.request, self.world, self.stop = folder, request, world, stop
        self.id = request.id
        self.config: Config = from_dict(upgrade(request.config))
        self.context = build.context(self.config, world)
        problem = self._find_mismatch() if world.first else None
        if problem := world.broadcast(problem):
            raise UserError(problem)

    def _find_mismatch(self) -> str | None:
        """Returns why this is not the requested run, or None if it is."""
        try:
            if run_id(self.config) != self.id:
                return (
                    f"A file that run {self.id} reads has changed since the run was requested: "
                    "enter the command again."
                )
            if (frozen := self._frozen_id()) != self.id:
                return (
                    f"{self.folder.config_file} describes run {frozen}, not {self.id}: "
                    "it has been edited.\nRestore it, or move the folder away and enter the same "
                    "command to train again."
                )
        except UserError as error:
            return str(error)
        return None

    def _frozen_id(self) -> str:
        """Returns the id of config.yaml, with the current paths of files that may have moved."""
        frozen = from_dict(self.folder.config())
        frozen.data.root = self.config.data.root
        frozen.data.train, frozen.data.val = self.config.data.train, self.config.data.val
        if Path(self.config.backbone.weights).is_file():
            frozen.backbone.weights = self.config.backbone.weights
        return run_id(frozen)

    def run(self) -> None:
        """Trains unless that is done, then evaluates; leaves the folder in state `done`.

        Raises Locked if another process holds the folder. Any other error is written to status.json
        and then raised.
        """
        torch.set_num_threads(self.request.threads)
        keep_freed_memory()
        with self._lock():
            if self.world.first:
                self.folder.clean()
                repair(self.folder, self.id, default_evaluation(self.config))
                rows = all_rows(self.folder, self.request.rows)
                tracker = vars(self.config.tracker)
                self.folder.set_status(rows=rows, tracker=tracker, evaluation_error=None)
            is_done = self.folder.is_trained()
            try:
                if not is_done and self.world.first:
                    resumes = self.folder.status().get("resumes", -1) + 1
                    self.folder.set_status(
                        state="running", kind=None, id=self.id, resumes=resumes,
                        steps=self.config.steps, threads=self.request.threads,
                        processes=self.world.size, exception=None, traceback=None, **owner(),
                    )  # fmt: skip
                is_done = self.world.broadcast(is_done)
                self._train_and_evaluate(is_trained=is_done)
            except BaseException as error:
                self.stop.defer_forever()
                self._write_error(error, is_trained=is_done)
                raise
            if not is_done and self.world.first:
                self.folder.set_status(state="done", kind="done", ended=time.time())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Locks the folder in the first process, on behalf of all."""
        with contextlib.ExitStack() as stack:
            is_busy = False
            if self.world.first:
                try:
                    stack.enter_context(self.folder.lock())
                except Locked:
                    is_busy = True
            if self.world.broadcast(is_busy):
                raise Locked(self.folder.path)
            yield

    def _write_error(self, error: BaseException, is_trained: bool) -> None:
        """Writes to status.json what ended the run, unless another process already has.

        The process in which it happened comes first; the others only see a lost connection.
        """
        folder = self.folder
        if isinstance(error, Preempted):
            if self.world.first and not is_trained:
                reason = self.stop.reason
                folder.set_status(state="preempted", kind="preempted", stopped_by=reason)
            return
        if folder.status().get("evaluation_error" if is_trained else "exception"):
            return
        kind = kind_of(error)
        was_killed = kind == "failed" and self.world.has_lost_process()
        if is_trained:
            message = "another process of this run was killed"
            folder.set_status(evaluation_error=message if was_killed else describe(error))
        elif was_killed:  # keep the state, as if all processes had been killed: it can be resumed
            folder.set_status(kind="killed", ended=time.time())
        else:
            details = {"exception": describe(error), "traceback": traceback.format_exc()}
            folder.set_status(state="failed", kind=kind, ended=time.time(), **details)

    def _train_and_evaluate(self, is_trained: bool) -> None:
        folder, world = self.folder, self.world
        validation = open_split(self.config.data, "val", folder.cache)
        classes = Classes.of(validation.annotations)
        if world.first:
            classes.write(folder.classes_file)
        model = build.detector(self.config, len(classes), self.context.device)
        default = default_evaluation(self.config)
        specs = dict.fromkeys([default, *self.request.evaluations])
        missing = [spec for spec in specs if not folder.result(spec, self.request.since)]
        if not (missing := world.broadcast(missing)) and is_trained:
            return
        with mirrored(folder, self.config) if world.first else contextlib.nullcontext():
            if is_trained:
                progress = checkpoint.load_trained(folder, self.id, model, self.context.device)
            else:
                with self.stop.defer():
                    progress = self._train(model, validation)
            for spec in missing:
                self._evaluate(model, progress, spec, validation)
            if not world.first:
                return
            result = folder.result(default)
            if not is_trained:
                threshold = result["metrics"]["score_threshold"] or 0.5
                pictures.write(folder, self.config, model, validation, threshold, self.context)
            write_result(folder.result_file, result)

    def _print(self, text: str) -> None:
        if self.world.first:
            print(text, flush=True)

    def _evaluate(
        self, model: nn.Module, progress: Progress, spec: EvalSpec, validation: ImageSource
    ) -> None:
        """Does one evaluation and writes its folder."""
        source = validation
        if spec.split == "train":
            source = open_split(self.config.data, "train", self.folder.cache)
        self._print(f"evaluating {spec.id}")
        config, context, start_time = self.config, self.context, time.perf_counter()
        output = results.predict_split(config, model, source, spec, context)
        if output is None:  # the first process has it
            return
        predictions, bad_images, gap = output
        scores = results.score(config, source.annotations, spec, predictions, bad_images, gap)
        result = results.describe(config, model, progress, spec, self.request, context, scores)
        add_line(self.folder, {"step": progress.step, "evaluation": spec.id}, result["metrics"])
        target = self.folder.evaluation(spec)
        results.write(target, source.annotations, predictions, result, start_time)
        self._print(results.summary(result))

    def _resume(self, model: nn.Module) -> TrainingState:
        """Loads the checkpoint if there is one; otherwise starts from step 0."""
        optimizer = build.optimizer(self.config, model)
        file = checkpoint.find(self.folder, self.id) if self.world.first else None
        if not (file := self.world.broadcast(file)):
            return TrainingState(optimizer)
        progress = checkpoint.load(file, model, optimizer, self.context.device)
        self._print(f"resumed at step {progress.step}")
        return TrainingState(optimizer, progress)

    def _train(self, model: nn.Module, validation: ImageSource) -> Progress:
        """Trains up to the last step, from the checkpoint if there is one."""
        config, world, context = self.config, self.world, self.context
        state = self._resume(model)
        source = open_split(config.data, "train", self.folder.cache)
        for line in source.annotations.report:
            self._print(f"data.train: {line}")
        watch = Stopwatch(context.device)
        log = TrainingLog(self.folder, config, self.id, model, state, context, watch)
        log.begin()
        if config.compile:
            model.compile(dynamic=True)  # batches differ in size
        dataset, step = build.training_set(config, source), state.progress.step
        batches = training_batches(
            dataset, config.batch, step, config.steps, config.workers,
            rank=world.rank, processes=world.size, accumulate=config.accumulate,
        )  # fmt: skip
        hooks = Hooks(
            log=log.append,
            log_every=config.log_every,
            save=log.save,
            save_due=log.save_due,
            snapshot=self._snapshots(model, validation),
            stop=lambda: self.stop.reason is not None,
            watch=watch,
        )
        network, schedule = world.parallel(model, config.sync_bn), build.schedule(config)
        loss, clip = build.loss(config, model), config.optim.clip
        train(network, loss, batches, schedule, state, context, hooks, clip)
        world.broadcast_weights(model)
        progress = state.progress
        progress.bad_images = sorted({*chain(*world.gather(progress.bad_images))})
        return progress

    def _snapshots(self, model: nn.Module, validation: ImageSource) -> Callable[[int], None]:
        """Returns the hook that takes `eval.looks` evenly spaced snapshots, the last at the end."""
        config, count = self.config, self.config.eval.looks
        snapshot_steps = {round(config.steps * (number + 1) / count) for number in range(count)}
        if not snapshot_steps or not self.world.first:
            return lambda step: None
        snapshots = snapshots_of(self.folder, config, model, validation, self.context.device)

        def take(step: int) -> None:
            if step in snapshot_steps:
                snapshots.take(model, step, last=step == config.steps)

        return take


def work(folder: RunFolder, request: Request, device: str) -> int:
    """Executes the run, alone or with the other processes that `torchrun` started.

    Returns the exit status: 0 done, 1 failed, 2 invalid input, 3 another process holds the folder,
    75 stopped, can be resumed.
    """
    stop = StopRequest(once=True)
    try:
        stop.install()
        try:
            job = Job(folder, request, join(build.device(device)), stop)
        except Exception as error:
            if is_first_process():
                note_failed_start(folder, error)
            raise
        job.run()
    except Preempted as reason:
        print(f"stopped ({reason}): the same command goes on from here", flush=True)
        return EXIT_STATUS
    except Locked:
        print(f"another process is running {folder.path}: not started here", flush=True)
        return 3
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
