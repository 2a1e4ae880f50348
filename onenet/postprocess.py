"""From predictions to detections: the top 100, and nothing else (section 4, "Inference").

CenterNet first selects the peaks of its map. NMS is only used for comparison.

B images, P prediction slots, K classes, D detections.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms

from onenet.boxes import clip_to_images, iou_and_giou
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
    logits = output.class_logits
    if peaks:
        logits = suppress_non_peaks(logits, output.grid_hw)  # type: ignore[union-attr]
    num_classes = logits.shape[-1]
    # If one slot ranks above another, its best pair ranks above all pairs of the other slot. So the
    # k best slots contain the k best pairs, and no other slot needs ranking by class.
    slots = _top_indices(logits.amax(dim=2), k).sort(dim=1).values  # [B, S]
    pair_logits = logits.take_along_dim(slots[..., None], dim=1).flatten(1)  # [B, S·K] by slot
    pairs = _top_indices(pair_logits, k)  # [B, D]
    best_logits, labels = pair_logits.gather(1, pairs), pairs % num_classes
    images = torch.arange(len(slots), device=slots.device)[:, None]
    boxes = output.boxes_at(images, slots.gather(1, pairs // num_classes)).float()
    boxes = clip_to_images(boxes, sizes_hw)
    valid = (boxes[..., 2:] > boxes[..., :2]).all(dim=2) & (best_logits > -torch.inf)
    # Image by image, because the last bit of a sigmoid depends on the position in the tensor, and
    # scores must not depend on the other images of the batch.
    scores = [of_image.float().sigmoid() for of_image in best_logits]
    return [
        Detections(*(column[rows] for column in columns))
        for rows, *columns in zip(valid, boxes, scores, labels, strict=True)
    ]


def suppress_non_peaks(class_logits: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Sets logits [B, P, K] to -inf if one of the 8 neighbouring slots has a higher one.

    Slots are in row-major order, P = H·W.
    """
    maps = class_logits.transpose(1, 2).unflatten(2, grid_hw)  # [B, K, H, W]
    maxima = F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    non_peaks = (maps < maxima).flatten(2).transpose(1, 2)
    return class_logits.masked_fill(non_peaks, -torch.inf)


def _top_indices(values: Tensor, k: int) -> Tensor:
    """Indices of the k largest values of each row of [B, N], largest first, ties by index: [B, k],
    or [B, N] if N < k."""
    top = values.topk(min(k, values.shape[1]))
    if (values >= top.values[:, -1:]).sum() > top.indices.numel():  # ties: topk takes any of them
        return values.argsort(dim=1, descending=True, stable=True)[:, :k]
    indices = top.indices.sort(dim=1).values
    order = values.gather(1, indices).argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, order)


def nms_keep(detections: Detections, iou: float = 0.5) -> Tensor:
    """Which detections class-wise non-maximum suppression keeps: [D] bool, on the CPU."""
    boxes, scores, labels = detections.boxes_xyxy, detections.scores, detections.labels
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[batched_nms(boxes, scores, labels, iou).cpu()] = True
    return mask


def nms_masks(detections_of: Sequence[Detections], ious: Sequence[float]) -> list[np.ndarray]:
    """`nms_keep` at each of T IoU thresholds, for each image of a batch: [T, D] bool.

    Faster than calling it T times per image: each IoU is computed once, and one loop over the ranks
    of the detections serves all images and thresholds.
    """
    boxes = [_separate_classes(each).cpu() for each in detections_of]
    planes = pad_sequence(boxes, batch_first=True).movedim(2, 0).contiguous()  # [4, B, D]
    padded = planes.movedim(0, 2)  # each coordinate contiguous: `iou_and_giou` is faster so
    iou = iou_and_giou(padded[:, :, None], padded[:, None])[0]  # [B, D, D]
    iou = iou.triu(diagonal=1)  # a detection only suppresses those that rank below it
    thresholds = torch.tensor(ious, dtype=torch.float64)[:, None, None]
    compatible = (iou[:, None].double() <= thresholds).numpy()  # [B, T, D, D]
    keep = np.ones(compatible.shape[:3], dtype=bool)  # [B, T, D]
    for rank in range(padded.shape[1]):
        keep &= compatible[:, :, rank] | ~keep[:, :, rank, None]
    return [keep[n, :, : len(each)] for n, each in enumerate(boxes)]


def _separate_classes(detections: Detections) -> Tensor:
    """The boxes [D, 4], shifted by class so that boxes of two classes never overlap. Torchvision's
    `batched_nms` shifts them alike."""
    boxes = detections.boxes_xyxy
    if not len(boxes):
        return boxes
    return boxes + (detections.labels.to(boxes) * (boxes.max() + 1))[:, None]
