"""Predicts a data set in one forward pass, with and without NMS."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from onenet.data.loading import Batch, DetectionDataset, evaluation_batches
from onenet.data.normalization import normalize
from onenet.evaluation.predictions import MAX_DETECTIONS, Predictions
from onenet.ops.fusion import for_inference
from onenet.postprocess import nms_masks, top_k
from onenet.structures import Detections, unpadded_sizes
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
    on_batch: Callable[[Batch, object], None] = lambda batch, output: None,
) -> tuple[Predictions, list[str]] | None:
    """Returns the top 100 of every image in original pixels, and the files that cannot be read.

    `infer_heads`: use the output of head number `infer_heads`. `peaks`: see `top_k`. `on_batch` is
    called with each batch and that head's output. An image that cannot be read has no detections.
    With several processes, each predicts a part of the images; the first returns all of them, the
    others None.
    """
    network, device, world = for_inference(model), context.device, context.world
    number = {int(i): n for n, i in enumerate(dataset.source.annotations.image_ids)}
    by_image: dict[int, tuple] = {}
    bad_images: list[str] = []
    process = {"rank": world.rank, "processes": world.size}
    for loaded_batch in evaluation_batches(dataset, batch, workers, **process):
        images, targets = normalize(loaded_batch.images.to(device)), loaded_batch.targets
        output = network(images, unpadded_sizes(targets, device), num_heads=infer_heads)[-1]
        on_batch(loaded_batch, output)
        detections_of = top_k(output, [t.size_hw for t in targets], MAX_DETECTIONS, peaks)
        rows = zip(
            targets,
            detections_of,
            nms_masks(detections_of, NMS_IOUS),
            loaded_batch.original_hw,
            loaded_batch.is_substitute,
            strict=True,
        )
        for target, detections, masks, original_hw, is_substitute in rows:
            if not is_substitute:
                arrays = in_original_pixels(detections, target.size_hw, original_hw)
                by_image[number[target.image_id]] = (*arrays, masks)
        bad_images += loaded_batch.bad_images
    parts = world.gather((by_image, bad_images))
    if not world.first:
        return None
    all_images = {image: row for part_images, _ in parts for image, row in part_images.items()}
    return concatenate(all_images), [name for _, names in parts for name in names]


def in_original_pixels(
    detections: Detections, size_hw: tuple[int, int], original_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns boxes [D, 4] float64 in pixels of the original image, scores [D] float64 and labels
    [D] int64. `size_hw`: of the resized, unpadded image."""
    scale = np.tile(np.array(original_hw[::-1]) / size_hw[::-1], 2)
    return (
        detections.boxes_xyxy.cpu().double().numpy() * scale,
        detections.scores.cpu().double().numpy(),
        detections.labels.cpu().numpy(),
    )


def concatenate(by_image: dict[int, tuple]) -> Predictions:
    """`by_image`: the boxes, scores, labels and NMS masks of each image."""
    images = sorted(by_image)
    counts = [len(by_image[image][1]) for image in images]
    boxes, scores, labels, masks = zip(*(by_image[image] for image in images), strict=True)
    masks = np.concatenate(masks, axis=1)
    return Predictions(
        image=np.repeat(images, counts),
        boxes_xyxy=np.concatenate(boxes),
        scores=np.concatenate(scores),
        labels=np.concatenate(labels),
        nms_keep=dict(zip(NMS_IOUS, masks, strict=True)),
    )
