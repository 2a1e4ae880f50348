"""The results of an evaluation: metrics, detections, and how they were obtained."""

import gzip
import io
import platform
import resource
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import orjson
import torch
from torch import nn

from onenet import build
from onenet.config.schema import Config
from onenet.data.annotations import Annotations
from onenet.data.images import ImageSource
from onenet.detectors import detector_of
from onenet.evaluation import per_image
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.evaluation.predictions import Predictions
from onenet.evaluation.score_gap import ScoreGaps
from onenet.runs.evaluations import EvalSpec
from onenet.runs.identity import RECIPE
from onenet.runs.request import Request
from onenet.runs.result import write_result
from onenet.system.context import RunContext
from onenet.system.files import REPOSITORY, write_atomically
from onenet.system.plural import plural
from onenet.training.loop import Progress

Gap = tuple[float | None, str]  # the mean score gap, and why it is None


def predict_split(
    config: Config, model: nn.Module, source: ImageSource, spec: EvalSpec, context: RunContext
) -> tuple[Predictions, list[str], Gap] | None:
    """Returns the result of `predict` for an evaluation, and the score gap, from the same forward
    pass; None in all processes but the first."""
    gaps = None
    if "cost" in detector_of(config.detector, config.model).reads:
        gaps = ScoreGaps(build.loss(config, model).match, spec.peaks, context)
    predicted = predict(
        model,
        build.evaluation_set(config, source, spec),
        batch=config.eval.batch,
        infer_heads=spec.infer_heads,
        peaks=spec.peaks,
        workers=config.workers,
        context=context,
        **({"on_batch": gaps.add} if gaps else {}),
    )
    gap = gaps.mean() if gaps else (None, f"{config.detector} is trained without matching")
    return predicted and (*predicted, gap)


def score(
    config: Config,
    annotations: Annotations,
    spec: EvalSpec,
    predictions: Predictions,
    bad_images: list[str],
    gap: Gap | None = None,
) -> dict:
    """Returns `metrics`, `metrics_notes`, `curves`, `data_report` and `bad_images` of a result.

    `bad_images`: the files that could not be read. Without `gap`, there is no `score_gap`.
    """
    scorer = Scorer(annotations, spec.area_scale, config.eval.backend)
    metrics, notes, curves = scorer.score(predictions)
    if bad_images:
        unread = f"{plural(len(bad_images), 'image')} without detections: could not be read"
        notes["AP"] = "; ".join(filter(None, (notes.get("AP"), unread)))
    if gap:
        metrics["score_gap"], why_none = gap
        if why_none:
            notes["score_gap"] = why_none
    return {
        "metrics": metrics,
        "metrics_notes": notes,
        "curves": curves,
        "data_report": list(annotations.report),
        "bad_images": bad_images,
    }


def describe(
    config: Config,
    model: nn.Module,
    progress: Progress,
    spec: EvalSpec,
    request: Request,
    context: RunContext,
    scores: dict,
) -> dict:
    """Returns the content of result.json: `scores` (from `score`) and how they were obtained."""
    metrics = scores["metrics"] | {
        "conflict_rate": 100 * progress.conflicts / max(1, progress.objects),
        "params": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(progress.seconds, 1),
    }
    return {
        "id": request.id,
        "recipe": RECIPE,
        "evaluation": asdict(spec),
        "overrides": request.overrides,
        "choices": choices(config, spec),
        "config": asdict(config),
        **scores,
        "metrics": metrics,
        "bad_images": sorted({*progress.bad_images, *scores["bad_images"]}),
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
    target: Path,
    annotations: Annotations,
    predictions: Predictions,
    result: dict,
    start_time: float,
) -> None:
    """Writes the folder of an evaluation: detections.json.gz (before NMS), per_image.npz, and
    result.json last.

    `start_time`: of the evaluation, by `time.perf_counter`.
    """
    text = orjson.dumps(predictions.to_coco(annotations))  # a tenth of the time of `json`
    # Level 6 would take three times as long to save 8 %.
    write_atomically(target / "detections.json.gz", gzip.compress(text, compresslevel=3))
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **per_image.pack(annotations, predictions))
    write_atomically(target / "per_image.npz", arrays.getvalue())
    result["timing"]["evaluation_seconds"] = round(time.perf_counter() - start_time, 1)
    write_result(target / "result.json", result)


def summary(result: dict) -> str:
    """Returns a result in one line."""
    metrics, notes = result["metrics"], result["metrics_notes"]
    if metrics["AP"] is None:
        return f"AP is undefined: {notes['AP']}"
    return f"AP {metrics['AP']:.1f}, with NMS {metrics['AP_nms']:.1f}"


def choices(config: Config, spec: EvalSpec) -> dict:
    """Returns the settings by which tables and filters select results."""
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
    """Returns the peak memory so far in bytes: on the GPU, or of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: str, threads: int) -> dict:
    """Returns the versions, the hardware and the commit that produced the numbers."""
    packages = (
        *("torch", "torchvision", "timm", "numpy", "pillow"),
        *("hotcoco", "faster-coco-eval", "pycocotools"),
    )

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        return process.stdout.strip()

    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": threads,
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain")),
    }
