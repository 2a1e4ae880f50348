"""What a run's evaluation leaves behind: numbers, detections, and where they come from."""

import gzip
import io
import json
import platform
import resource
import subprocess
import time
from dataclasses import asdict
from importlib import metadata

import numpy as np
import torch
from torch import nn

from onenet.config.schema import Config
from onenet.data.images import ImageSource
from onenet.evaluation import per_image
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.evaluation.predictions import Predictions
from onenet.job import build
from onenet.job.recorder import add_line
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder
from onenet.runs.identity import RECIPE, run_id
from onenet.runs.request import Request
from onenet.system.context import RunContext
from onenet.system.files import REPOSITORY, write_atomically, write_json
from onenet.training.loop import Progress


def predict_split(
    config: Config, model: nn.Module, source: ImageSource, spec: EvalSpec, context: RunContext
) -> tuple[Predictions, list[str]] | None:
    """What `predict` gives for an evaluation; None in all processes but the first."""
    return predict(
        model,
        build.evaluation_set(config, source, spec),
        batch=config.eval.batch,
        infer_heads=spec.infer_heads,
        peaks=spec.peaks,
        workers=config.workers,
        context=context,
    )


def score(
    config: Config, source: ImageSource, spec: EvalSpec, predictions: Predictions, bad: list[str]
) -> dict:
    """`metrics`, `metrics_notes`, `curves`, `data_report` and `bad_images` of a result. `bad`: the
    files that could not be read."""
    scorer = Scorer(source.annotations, spec.area_scale, config.eval.backend)
    metrics, notes, curves = scorer.score(predictions)
    if bad:
        notes["AP"] = f"{len(bad)} images could not be read and have no detections"
    return {
        "metrics": metrics,
        "metrics_notes": notes,
        "curves": curves,
        "data_report": list(source.annotations.report),
        "bad_images": bad,
    }


def describe(
    config: Config,
    model: nn.Module,
    progress: Progress,
    spec: EvalSpec,
    request: Request,
    context: RunContext,
    scored: dict,
) -> dict:
    """The content of result.json: what `score` gave, and where it comes from."""
    metrics = scored["metrics"] | {
        "conflict_rate": 100 * progress.conflicts / max(1, progress.objects),
        "params": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(progress.seconds, 1),
    }
    return {
        "id": run_id(config),
        "recipe": RECIPE,
        "evaluation": asdict(spec),
        "overrides": request.overrides,
        "choices": choices(config, spec),
        "config": asdict(config),
        **scored,
        "metrics": metrics,
        "bad_images": sorted({*progress.bad_images, *scored["bad_images"]}),
        "timing": {
            "train_seconds": round(progress.seconds, 1),
            "seconds_per_step": progress.seconds / max(1, progress.step),
            "peak_memory_gib": round(peak_memory(context.device) / 2**30, 2),
            "finished": time.time(),
        },
        "env": {
            **environment(context.device, request.threads),
            "processes": context.world.size,
            "accumulate": context.accumulate,
            "precision": context.precision,
        },
    }


def write(
    folder: RunFolder,
    source: ImageSource,
    predictions: Predictions,
    result: dict,
    step: int,
    started: float,
) -> None:
    """Fills evaluations/<id>/: detections.json.gz (before NMS), per_image.npz, result.json last.

    `step`: of the network that was evaluated. `started`: when the evaluation was, by
    `time.perf_counter`.
    """
    spec = EvalSpec(**result["evaluation"])
    target = folder.evaluation(spec)
    rows = predictions.to_coco(source.annotations)
    text = json.dumps(rows).encode()  # at level 9 packing takes three times as long, to save 3 %
    write_atomically(target / "detections.json.gz", gzip.compress(text, compresslevel=6))
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **per_image.pack(source.annotations, predictions))
    write_atomically(target / "per_image.npz", arrays.getvalue())
    add_line(folder, {"step": step, "evaluation": spec.id}, result["metrics"])
    result["timing"]["evaluation_seconds"] = round(time.perf_counter() - started, 1)
    write_json(target / "result.json", result)


def summary(result: dict) -> str:
    """A result in a line."""
    metrics, notes = result["metrics"], result["metrics_notes"]
    if metrics["AP"] is None:
        return f"AP is undefined: {notes['AP']}"
    return f"AP {metrics['AP']:.1f}, with NMS {metrics['AP_nms']:.1f}"


def choices(config: Config, spec: EvalSpec) -> dict:
    """The words that a table or a filter asks for."""
    return {
        "cost": config.cost.name,
        "location": config.location,
        "assigner": config.assigner.name,
        "heads": config.heads,
        "infer_heads": spec.infer_heads,
        "lr": config.lr,
        "backbone": config.backbone.name,
        "neck": config.neck.name,
        "detector": config.detector,
        "data": config.data.name,
        "kind": config.data.shapes.kind if config.data.name == "shapes" else None,
        "preset": config.preset,
        "seed": config.seed,
    }


def peak_memory(device: str) -> int:
    """Bytes: on the GPU, or of the whole process, at most so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: str, threads: int) -> dict:
    """Where the numbers come from."""
    packages = (
        *("torch", "torchvision", "timm", "numpy", "pillow"),
        *("hotcoco", "faster-coco-eval", "pycocotools"),
    )

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": threads,
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain")),
    }
