"""One forward pass over a data set, scored with and without NMS."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from onenet.data.loading import Batch, DetectionDataset, evaluation_batches
from onenet.data.normalization import normalize
from onenet.evaluation.predictions import MAX_DETECTIONS, Predictions
from onenet.ops.fusion import for_inference
from onenet.postprocess import nms_keep, top_k
from onenet.structures import unpadded_sizes
from onenet.system.context import ON_CPU, RunContext

NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.inference_mode()
def predict(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    batch: int,
    infer_heads: int = 1,
    peaks: bool = False,
    workers: int = 0,
    context: RunContext = ON_CPU,
    see: Callable[[Batch, object], None] = lambda batch, output: None,
) -> tuple[Predictions, list[str]] | None:
    """The top 100 of every image in original pixels, and the files that could not be read.

    `infer_heads`: the answer is that of head number `infer_heads`. `peaks`: see `top_k`. An image
    that cannot be read has no detections. `see` is called with each batch and the head's output.
    With several processes each predicts its share of the images, and the answer is the first one's;
    the others get None.
    """
    network, device, world = for_inference(model), context.device, context.world
    number = {int(i): n for n, i in enumerate(dataset.source.annotations.image_ids)}
    found: dict[int, tuple] = {}
    bad: list[str] = []
    share = {"rank": world.rank, "processes": world.size}
    for loaded in evaluation_batches(dataset, batch, workers, **share):
        images = normalize(loaded.images.to(device))
        output = network(images, unpadded_sizes(loaded.targets, device), num_heads=infer_heads)[-1]
        see(loaded, output)
        sizes_hw = [target.size_hw for target in loaded.targets]
        answers = top_k(output, sizes_hw, MAX_DETECTIONS, peaks)
        for detections, target, original_hw, is_substitute in zip(
            answers, loaded.targets, loaded.original_hw, loaded.is_substitute, strict=True
        ):
            if is_substitute:
                continue
            to_original = np.tile(np.array(original_hw[::-1]) / target.size_hw[::-1], 2)
            boxes = detections.boxes_xyxy.cpu().double().numpy() * to_original
            keep = [nms_keep(detections, iou).numpy() for iou in NMS_IOUS]
            found[number[target.image_id]] = (
                boxes,
                detections.scores.cpu().double().numpy(),
                detections.labels.cpu().numpy(),
                np.stack(keep),
            )
        bad += loaded.bad_images
    shares = world.gather((found, bad))
    if not world.first:
        return None
    found = {image: answer for of_process, _ in shares for image, answer in of_process.items()}
    bad = [name for _, of_process in shares for name in of_process]
    return _collect(found), bad


def _collect(found: dict[int, tuple]) -> Predictions:
    """`found`: for each image its boxes, scores, labels, and what each NMS leaves."""
    images = sorted(found)
    counts = [len(found[image][1]) for image in images]
    boxes, scores, labels, kept = zip(*(found[image] for image in images), strict=True)
    kept = np.concatenate(kept, axis=1)
    return Predictions(
        image=np.repeat(images, counts),
        boxes_xyxy=np.concatenate(boxes),
        scores=np.concatenate(scores),
        labels=np.concatenate(labels),
        nms_keep=dict(zip(NMS_IOUS, kept, strict=True)),
    )
