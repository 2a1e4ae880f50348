"""From predictions to detections: the top 100, and nothing else (section 4, "Inference").

CenterNet picks the peaks of its map first; NMS is there to compare.

B images, P prediction slots, K classes, D detections.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from onenet.boxes import clip_to_image
from onenet.structures import Detections, HeadOutput, UndecodedOutput


def top_k(
    output: HeadOutput | UndecodedOutput,
    sizes_hw: Sequence[tuple[int, int]],
    k: int = 100,
    peaks: bool = False,
) -> list[Detections]:
    """The k best (slot, class) pairs of each image; no threshold, no NMS, no max-pooling.

    `peaks`: only pairs with no better slot of the same class among the 8 around (CenterNet, section
    4, "From points to bounding boxes"); for outputs with a grid.

    Of equal scores the first slot comes first, in a slot the first class. Boxes are clipped to the
    image, `sizes_hw` [B] of (height, width) pixels; those with nothing left are dropped. Fewer
    than k pairs: all of them.
    """
    class_logits = output.class_logits
    if peaks:
        class_logits = only_peaks(class_logits, output.grid_hw)  # type: ignore[union-attr]
    num_classes = class_logits.shape[-1]
    best_of_slot = class_logits.amax(dim=2)  # [B, P]
    detections = []
    for image, size_hw in enumerate(sizes_hw):
        # Each slot that is ahead of another has a pair ahead of all of the other's. So the k best
        # pairs are in the k best slots, and all else need not be ranked class by class.
        slots = _largest(best_of_slot[image], k).sort().values
        logits = class_logits[image, slots].flatten()  # slot by slot
        pairs = _largest(logits, k)
        boxes = clip_to_image(output.boxes_at(image, slots[pairs // num_classes]).float(), size_hw)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & (logits[pairs] > -torch.inf)
        scores, labels = logits[pairs].float().sigmoid(), pairs % num_classes
        detections.append(Detections(boxes[solid], scores[solid], labels[solid]))
    return detections


def only_peaks(class_logits: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """[B, P, K], P = H·W row after row; -inf where one of the 8 slots around is higher."""
    maps = class_logits.transpose(1, 2).unflatten(2, grid_hw)  # [B, K, H, W]
    highest = F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    lower = (maps < highest).flatten(2).transpose(1, 2)
    return class_logits.masked_fill(lower, -torch.inf)


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
