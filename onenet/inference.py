"""From dense predictions to detections: the top 100, and nothing else (section 4, "Inference").

B images, P prediction slots, K classes, D detections.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from onenet.boxes import clip_to_image
from onenet.structures import Detections, HeadOutput


def top_k(
    output: HeadOutput, sizes_hw: Sequence[tuple[int, int]], k: int = 100
) -> list[Detections]:
    """The k best (slot, class) pairs of each image; no threshold, no NMS, no max-pooling.

    Boxes are clipped to the image, `sizes_hw` [B] of (height, width) pixels; those with nothing
    left are dropped. Fewer than k pairs: all of them.
    """
    logits = output.class_logits.float()
    num_classes = logits.shape[-1]
    flat = logits.flatten(1)  # [B, P·K]
    best, index = flat.topk(min(k, flat.shape[1]), dim=1)
    detections = []
    for image, size_hw in enumerate(sizes_hw):
        boxes = clip_to_image(
            output.boxes_xyxy[image, index[image] // num_classes].float(), size_hw
        )
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        labels = index[image] % num_classes
        detections.append(Detections(boxes[solid], best[image][solid].sigmoid(), labels[solid]))
    return detections


def nms_keep(detections: Detections, iou: float = 0.5) -> Tensor:
    """What class-wise non-maximum suppression leaves: [D] bool, on the CPU."""
    keep = torch.zeros(len(detections.scores), dtype=torch.bool)
    left = batched_nms(detections.boxes_xyxy, detections.scores, detections.labels, iou)
    keep[left.cpu()] = True
    return keep
