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
from onenet.job import build
from onenet.job.recorder import add_line
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder
from onenet.runs.identity import RECIPE, run_id
from onenet.runs.request import Request
from onenet.system.distributed import World
from onenet.system.files import REPOSITORY, write_atomically, write_json
from onenet.training.loop import Progress


def evaluate(
    folder: RunFolder,
    config: Config,
    model: nn.Module,
    progress: Progress,
    source: ImageSource,
    spec: EvalSpec,
    request: Request,
    world: World,
) -> dict | None:
    """Fills evaluations/<id>/: detections.json.gz (before NMS), per_image.npz, result.json last.

    Returns the result; None in all processes but the first.
    """
    started = time.perf_counter()
    target = folder.evaluation(spec)
    predicted = predict(
        model,
        build.evaluation_set(config, source, spec),
        batch=config.eval.batch,
        infer_heads=spec.infer_heads,
        peaks=spec.peaks,
        workers=config.workers,
        device=build.device(config.device),
        world=world,
    )
    if predicted is None:
        return None
    predictions, bad = predicted
    scorer = Scorer(source.annotations, spec.area_scale, config.eval.backend)
    metrics, notes = scorer.score(predictions)
    metrics["conflict_rate"] = 100 * progress.conflicts / max(1, progress.objects)
    metrics["params"] = sum(p.numel() for p in model.parameters())
    metrics["train_seconds"] = round(progress.seconds, 1)
    if bad:
        notes["AP"] = f"{len(bad)} images could not be read and have no detections"
    rows = predictions.to_coco(source.annotations)
    text = json.dumps(rows).encode()  # at level 9 packing takes three times as long, to save 3 %
    write_atomically(target / "detections.json.gz", gzip.compress(text, compresslevel=6))
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **per_image.pack(source.annotations, predictions))
    write_atomically(target / "per_image.npz", arrays.getvalue())
    add_line(folder, {"step": progress.step, "evaluation": spec.id}, metrics)
    result = {
        "id": run_id(config),
        "recipe": RECIPE,
        "evaluation": asdict(spec),
        "overrides": request.overrides,
        "choices": choices(config, spec),
        "config": asdict(config),
        "metrics": metrics,
        "metrics_notes": notes,
        "curves": scorer.curves(predictions),
        "data_report": list(source.annotations.report),
        "bad_images": sorted({*progress.bad_images, *bad}),
        "timing": {
            "train_seconds": round(progress.seconds, 1),
            "seconds_per_step": progress.seconds / max(1, progress.step),
            "evaluation_seconds": round(time.perf_counter() - started, 1),
            "peak_memory_gib": round(peak_memory(build.device(config.device)) / 2**30, 2),
            "finished": time.time(),
        },
        "env": {
            **environment(build.device(config.device), request.threads),
            "processes": world.size,
            "accumulate": config.accumulate,
            "precision": build.precision(config.precision, build.device(config.device)),
        },
    }
    write_json(target / "result.json", result)
    return result


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
        *("pycocotools", "faster-coco-eval"),
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
