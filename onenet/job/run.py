"""One run: train what is not trained, evaluate what is asked for, write it down.

Everything that a user sees of a run is written here or by what is called from here. With several
processes (torchrun) all of them train and predict, and the first one writes.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from onenet.config.compose import from_dict
from onenet.config.schema import Config
from onenet.config.upgrade import upgrade
from onenet.data.images import ImageSource
from onenet.data.loading import training_batches
from onenet.data.sources import open_split
from onenet.errors import UserError
from onenet.job import build, pictures, results
from onenet.job.endings import described, kind_of, refuse
from onenet.job.recorder import TrainingRecord
from onenet.runs.evaluations import EvalSpec, default_evaluation
from onenet.runs.folder import Locked, RunFolder, owner
from onenet.runs.identity import run_id
from onenet.runs.request import Request, all_rows
from onenet.system.distributed import World, is_first_process, join
from onenet.system.files import write_json
from onenet.system.memory import keep_freed_memory
from onenet.system.signals import EXIT_STATUS, Preempted, StopRequest
from onenet.tracking.tracker import mirrored
from onenet.training import checkpoint
from onenet.training.loop import Hooks, Progress, TrainingState, train
from onenet.training.stopwatch import Stopwatch


class Job:
    """The state that the steps of one run share. `run` reads top to bottom."""

    def __init__(self, folder: RunFolder, request: Request, world: World, stop: StopRequest):
        self.folder, self.request, self.world, self.stop = folder, request, world, stop
        self.id = request.id
        self.config: Config = from_dict(upgrade(request.config))
        self.context = build.context(self.config, world)
        problem = self._other_run() if world.first else None
        if problem := world.broadcast(problem):
            raise UserError(problem)

    def _other_run(self) -> str | None:
        """What makes this another run than the one that is asked for."""
        try:
            if run_id(self.config) != self.id:
                return (
                    f"A file that run {self.id} reads has changed since the run was asked for: "
                    "type the command again."
                )
            if (frozen := self._frozen_id()) != self.id:
                return (
                    f"{self.folder.config_file} is of run {frozen}, not of {self.id}: "
                    "it was edited.\n"
                    "Restore it, or move the folder away; the same command then trains anew."
                )
        except UserError as error:
            return str(error)
        return None

    def _frozen_id(self) -> str:
        """Of what config.yaml says, but for the places of files: these may have moved since."""
        try:
            frozen = from_dict(self.folder.config())
            frozen.data.root = self.config.data.root
            frozen.data.train, frozen.data.val = self.config.data.train, self.config.data.val
            if Path(self.config.backbone.weights).is_file():
                frozen.backbone.weights = self.config.backbone.weights
            return run_id(frozen)
        except (OmegaConfBaseException, KeyError, TypeError) as error:
            raise UserError(
                f"{self.folder.config_file} is not the configuration of a run: "
                f"{str(error).splitlines()[0]}\n"
                "Restore it, or move the folder away; the same command then trains anew."
            ) from error

    def run(self) -> None:
        """Trains unless that is done, then evaluates; leaves the folder in state `done`.

        Raises Locked if another run is at it, and whatever ended the run, after it has been
        written to status.json.
        """
        torch.set_num_threads(self.request.threads)
        keep_freed_memory()
        with self._lock():
            if self.world.first:
                self.folder.clean()
                self.folder.set_status(
                    rows=all_rows(self.folder, self.request.rows),
                    tracker=vars(self.config.tracker),
                    evaluation_error=None,
                )
                self._restore_result()
            done = self.folder.status().get("state") == "done"
            try:
                if not done and self.world.first:
                    resumes = self.folder.status().get("resumes", -1) + 1
                    self.folder.set_status(
                        state="running", kind=None, id=self.id, resumes=resumes,
                        steps=self.config.steps, threads=self.request.threads,
                        processes=self.world.size, exception=None, traceback=None, **owner(),
                    )  # fmt: skip
                done = self.world.broadcast(done)
                self._train_and_evaluate(trained=done)
            except BaseException as error:
                self.stop.defer_forever()
                self._write_down(error, trained=done)
                raise
            if not done and self.world.first:
                self.folder.set_status(state="done", kind="done", ended=time.time())

    def _restore_result(self) -> None:
        """If result.json is torn or gone: from the evaluation that it is a copy of."""
        default = self.folder.result(default_evaluation(self.config))
        if self.folder.status().get("state") == "done" and default and not self.folder.result():
            write_json(self.folder.result_file, default)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """The first process holds the folder for all."""
        with contextlib.ExitStack() as stack:
            free = True
            if self.world.first:
                try:
                    stack.enter_context(self.folder.lock())
                except Locked:
                    free = False
            if not self.world.broadcast(free):
                raise Locked(self.folder.path)
            yield

    def _write_down(self, error: BaseException, trained: bool) -> None:
        """What ended the run. The process in which it happened is the first to know; the others see
        a lost connection."""
        status = self.folder.status()
        if isinstance(error, Preempted):
            if self.world.first and not trained:
                self.folder.set_status(
                    state="preempted", kind="preempted", stopped_by=self.stop.reason
                )
            return
        if status.get("evaluation_error" if trained else "exception"):
            return
        kind = kind_of(error)
        killed = kind == "failed" and self.world.has_lost_process()
        if trained:
            word = "another process of this run was killed" if killed else described(error)
            self.folder.set_status(evaluation_error=word)
        elif killed:  # its checkpoint is good: the state is as if all had been killed
            self.folder.set_status(kind="killed", ended=time.time())
        else:
            self.folder.set_status(
                state="failed",
                kind=kind,
                exception=described(error),
                traceback=traceback.format_exc(),
                ended=time.time(),
            )

    def _train_and_evaluate(self, trained: bool) -> None:
        folder, world = self.folder, self.world
        validation = open_split(self.config.data, "val", folder.cache)
        num_classes = len(validation.annotations.category_ids)
        model = build.detector(self.config, num_classes, self.context.device)
        with mirrored(folder, self.config) if world.first else contextlib.nullcontext():
            if trained:
                progress = checkpoint.load_trained(folder, self.id, model, self.context.device)
            else:
                with self.stop.defer():
                    progress = self._train(model, validation)
            default = default_evaluation(self.config)
            for spec in dict.fromkeys([default, *self.request.evaluations]):
                if not world.broadcast(bool(folder.result(spec))):
                    self._evaluate(model, progress, spec, validation)
            if not world.first:
                return
            result = folder.result(default)
            if not trained:
                threshold = result["metrics"]["score_threshold"] or 0.5
                pictures.write(folder, self.config, model, validation, threshold, self.context)
            write_json(folder.result_file, result)

    def _print(self, text: str) -> None:
        if self.world.first:
            print(text, flush=True)

    def _evaluate(
        self, model: nn.Module, progress: Progress, spec: EvalSpec, validation: ImageSource
    ) -> None:
        """Fills the folder of one evaluation."""
        source = validation
        if spec.split == "train":
            source = open_split(self.config.data, "train", self.folder.cache)
        self._print(f"evaluating {spec.id}")
        started = time.perf_counter()
        predicted = results.predict_split(self.config, model, source, spec, self.context)
        if predicted is None:  # of this process the first one has got it
            return
        scored = results.score(self.config, source, spec, *predicted)
        result = results.describe(
            self.config, model, progress, spec, self.request, self.context, scored
        )
        results.write(self.folder, source, predicted[0], result, progress.step, started)
        self._print(results.summary(result))

    def _resume(self, model: nn.Module) -> TrainingState:
        """From the checkpoint if there is one, else from the beginning."""
        optimizer = build.optimizer(self.config, model)
        usable = checkpoint.find(self.folder, self.id) if self.world.first else None
        if not (usable := self.world.broadcast(usable)):
            return TrainingState(optimizer)
        progress = checkpoint.load(usable, model, optimizer, self.context.device)
        self._print(f"resumed at step {progress.step}")
        return TrainingState(optimizer, progress)

    def _train(self, model: nn.Module, validation: ImageSource) -> Progress:
        """Trains to the last step."""
        config, world, context = self.config, self.world, self.context
        state = self._resume(model)
        source = open_split(config.data, "train", self.folder.cache)
        for line in source.annotations.report:
            self._print(f"data.train: {line}")
        watch = Stopwatch(context.device)
        record = TrainingRecord(self.folder, config, self.id, model, state, context, watch)
        record.begin()
        if config.compile:
            model.compile(dynamic=True)  # batches differ in size
        batches = training_batches(
            build.training_set(config, source),
            config.batch,
            state.progress.step,
            config.steps,
            config.workers,
            rank=world.rank,
            processes=world.size,
            accumulate=config.accumulate,
        )
        hooks = Hooks(
            log=record.log,
            log_every=config.log_every,
            save=record.save,
            save_due=record.save_due,
            snapshot=self._snapshots(model, validation),
            stop=lambda: self.stop.reason is not None,
            watch=watch,
        )
        train(
            world.parallel(model, config.sync_bn),
            build.loss(config, model),
            batches,
            build.schedule(config),
            state,
            context,
            hooks,
            clip=config.optim.clip,
        )
        world.broadcast_weights(model)
        progress = state.progress
        progress.bad_images = sorted({*chain(*world.gather(progress.bad_images))})
        return progress

    def _snapshots(self, model: nn.Module, validation: ImageSource) -> Callable[[int], None]:
        """Takes `eval.looks` snapshots, evenly spread, the last one at the end."""
        config, times = self.config, self.config.eval.looks
        due = {round(config.steps * (number + 1) / times) for number in range(times)}
        if not due or not self.world.first:
            return lambda step: None
        snapshots = build.snapshots(self.folder, config, model, validation, self.context.device)

        def take(step: int) -> None:
            if step in due:
                snapshots.take(model, step, last=step == config.steps)

        return take


def work(folder: RunFolder, request: Request, device: str) -> int:
    """Does the run, alone or with the other processes that `torchrun` started. The exit status: 0
    done, 1 failed, 2 the input cannot work, 3 somebody else is at it, 75 stopped, to be continued.
    """
    stop = StopRequest(once=True)
    try:
        stop.install()
        try:
            job = Job(folder, request, join(build.device(device)), stop)
        except Exception as error:
            if is_first_process():
                refuse(folder, error)
            raise
        job.run()
    except Preempted as reason:
        print(f"stopped ({reason}): the same command goes on from here", flush=True)
        return EXIT_STATUS
    except Locked:
        print(f"{folder.path} belongs to another process: left alone", flush=True)
        return 3
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
