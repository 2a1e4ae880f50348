"""From predictions to detections: the top 100, and nothing else (section 4, "Inference").

CenterNet first selects the peaks of its map. NMS is only used for comparison.

B images, P prediction slots, K classes, D detections.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from onenet.boxes import clip_to_image
from onenet.structures import Detections, HeadOutput, UndecodedOutput


def top_k(
    output: HeadOutput | UndecodedOutput,
    sizes_hw: Sequence[tuple[int, int]],
    k: int = 100,
    peaks: bool = False,
) -> list[Detections]:
    """Returns the k best (slot, class) pairs of each image; no threshold, no NMS, no max-pooling.

    `peaks`: only use pairs whose 8 neighbouring slots have no higher score for the class
    (CenterNet, section 4, "From points to bounding boxes"); only for outputs with a grid.

    Ties go to the first slot, then to the first class. Boxes are clipped to the image, `sizes_hw`
    [B] of (height, width) pixels, and dropped if they become empty. If there are fewer than k
    pairs, all are returned.
    """
    class_logits = output.class_logits
    if peaks:
        class_logits = suppress_non_peaks(class_logits, output.grid_hw)  # type: ignore[union-attr]
    num_classes = class_logits.shape[-1]
    slot_maxima = class_logits.amax(dim=2)  # [B, P]
    detections = []
    for image, size_hw in enumerate(sizes_hw):
        # If one slot ranks above another, its best pair ranks above all pairs of the other slot. So
        # the k best slots contain the k best pairs, and no other slot needs ranking by class.
        slots = _top_indices(slot_maxima[image], k).sort().values
        logits = class_logits[image, slots].flatten()  # slot by slot
        pairs = _top_indices(logits, k)
        boxes = clip_to_image(output.boxes_at(image, slots[pairs // num_classes]).float(), size_hw)
        valid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & (logits[pairs] > -torch.inf)
        scores, labels = logits[pairs].float().sigmoid(), pairs % num_classes
        detections.append(Detections(boxes[valid], scores[valid], labels[valid]))
    return detections


def suppress_non_peaks(class_logits: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Sets logits [B, P, K] to -inf if one of the 8 neighbouring slots has a higher one.

    Slots are in row-major order, P = H·W.
    """
    maps = class_logits.transpose(1, 2).unflatten(2, grid_hw)  # [B, K, H, W]
    maxima = F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    non_peaks = (maps < maxima).flatten(2).transpose(1, 2)
    return class_logits.masked_fill(non_peaks, -torch.inf)


def _top_indices(values: Tensor, k: int) -> Tensor:
    """Indices of the k largest values of [N], largest first, ties by index; all if N < k."""
    threshold = values.topk(min(k, len(values))).values[-1]
    candidates = (values >= threshold).nonzero().squeeze(1)  # more than k if there are ties
    return candidates[values[candidates].argsort(descending=True, stable=True)[:k]]


def nms_keep(detections: Detections, iou: float = 0.5) -> Tensor:
    """Which detections class-wise non-maximum suppression keeps: [D] bool, on the CPU."""
    return nms_masks(detections, [iou])[0]


def nms_masks(detections: Detections, ious: Sequence[float]) -> Tensor:
    """`nms_keep` at each of the IoU thresholds: [len(ious), D] bool.

    Equals torchvision's `batched_nms`, but moves the boxes of different classes apart only once.
    """
    boxes, scores = detections.boxes_xyxy, detections.scores
    masks = torch.zeros(len(ious), len(scores), dtype=torch.bool)
    if len(scores):
        apart = boxes + (detections.labels.to(boxes) * (boxes.max() + 1))[:, None]
        for mask, iou in zip(masks, ious, strict=True):
            mask[nms(apart, scores, iou).cpu()] = True
    return masks
