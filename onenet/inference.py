"""From dense predictions to detections: the top 100, and nothing else (section 4, "Inference").

B images, P prediction slots, K classes, D detections.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from onenet.boxes import clip_to_image
from onenet.structures import Detections, HeadOutput, UndecodedOutput


def top_k(
    output: HeadOutput | UndecodedOutput, sizes_hw: Sequence[tuple[int, int]], k: int = 100
) -> list[Detections]:
    """The k best (slot, class) pairs of each image; no threshold, no NMS, no max-pooling.

    Of equal scores the first slot comes first, in a slot the first class. Boxes are clipped to the
    image, `sizes_hw` [B] of (height, width) pixels; those with nothing left are dropped. Fewer
    than k pairs: all of them.
    """
    num_classes = output.class_logits.shape[-1]
    best_of_slot = output.class_logits.amax(dim=2)  # [B, P]
    detections = []
    for image, size_hw in enumerate(sizes_hw):
        # Each slot that is ahead of another has a pair ahead of all of the other's. So the k best
        # pairs are in the k best slots, and all else need not be ranked class by class.
        slots = _largest(best_of_slot[image], k).sort().values
        logits = output.class_logits[image, slots].flatten()  # slot by slot
        pairs = _largest(logits, k)
        boxes = clip_to_image(output.boxes_at(image, slots[pairs // num_classes]).float(), size_hw)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        scores, labels = logits[pairs].float().sigmoid(), pairs % num_classes
        detections.append(Detections(boxes[solid], scores[solid], labels[solid]))
    return detections


def _largest(values: Tensor, k: int) -> Tensor:
    """Where the k largest of [N] are, best first, of equals the first; all if N < k."""
    least = values.topk(min(k, len(values))).values[-1]
    at = (values >= least).nonzero().squeeze(1)  # k, or more where some equal the least
    return at[values[at].argsort(descending=True, stable=True)[:k]]


def nms_keep(detections: Detections, iou: float = 0.5) -> Tensor:
    """What class-wise non-maximum suppression leaves: [D] bool, on the CPU."""
    keep = torch.zeros(len(detections.scores), dtype=torch.bool)
    left = batched_nms(detections.boxes_xyxy, detections.scores, detections.labels, iou)
    keep[left.cpu()] = True
    return keep
