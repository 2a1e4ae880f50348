"""Score gap: how far an object's positive slot outranks the slots that would be its duplicates.

From "What Makes for End-to-End Object Detection?" (ICML 2021). Per object, the score of its
positive minus the highest score of its class among the other slots whose box has IoU >= 0.5 with
the object; the score of its positive itself if there is no such slot. Scores are in 0..1, so a gap
is in -1..1. At 0 or below, no threshold on the score keeps the positive alone. Where objects of a
class overlap as much (`data.shapes.kind=crowded`), the positive of the one competes with that of
the other, and the gap stays small.

P slots, K classes, N objects in an image, M matches in a batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onenet.boxes import iou_and_giou
from onenet.data.loading import Batch
from onenet.ops.groups import not_first_of_group
from onenet.postprocess import suppress_non_peaks
from onenet.structures import Matches, Target
from onenet.system.context import ON_CPU, RunContext

IOU = 0.5  # from which a slot competes with the positive of an object
PAIRS = 2**19  # of objects and slots at a time, which bounds the memory
QUALITY_POWER = 0.8  # of the IoU in the quality of a positive, as in POTO

Match = Callable[[object, Sequence[Target]], list[Matches]]


class ScoreGaps:
    """Collects the score gaps of an evaluation: `add` is an `on_batch` of `predict`.

    `match`: of the loss, which chooses the positives from an output. `peaks`: slots that are no
    peak have score 0 (see `top_k`).
    """

    def __init__(self, match: Match, peaks: bool = False, context: RunContext = ON_CPU):
        self.match, self.peaks, self.context = match, peaks, context
        self.by_image: dict[int, Tensor] = {}  # image id -> the gaps of its objects
        self.problem = ""  # why the matching failed

    def add(self, batch: Batch, output) -> None:
        """Adds the images of a batch. Objects without a positive have no gap."""
        targets = [target.to(self.context.device) for target in batch.targets]
        try:
            matches = self.match(output, targets)
        except FloatingPointError as error:  # an evaluation has results in spite of that
            self.problem = str(error)
            return
        gaps_of = batch_gaps(output, targets, matches, self.peaks)
        for target, gaps, is_substitute in zip(targets, gaps_of, batch.is_substitute, strict=True):
            if not is_substitute:
                self.by_image[target.image_id] = gaps.cpu()

    def mean(self) -> tuple[float | None, str]:
        """Returns the mean over the objects of all images, and why it is None.

        To be called in every process, and the result is that of all only in the first one.
        """
        parts = self.context.world.gather((self.by_image, self.problem))
        if problem := next((problem for _, problem in parts if problem), ""):
            return None, problem
        by_image = {image: gaps for of_part, _ in parts for image, gaps in of_part.items()}
        # In one order, whatever the processes: a sum depends on it.
        gaps = [by_image[image] for image in sorted(by_image)]
        if not sum(map(len, gaps)):
            return None, "no object has a positive slot"
        return float(torch.cat(gaps).double().mean()), ""


def batch_gaps(
    output, targets: Sequence[Target], matches: Sequence[Matches], peaks: bool = False
) -> Sequence[Tensor]:
    """Returns for each image the gaps of its objects that have a positive, in their order."""
    logits, boxes = output.class_logits, output.boxes_xyxy
    if peaks:
        logits = suppress_non_peaks(logits, output.grid_hw)
    pairs = list(zip(targets, matches, strict=True))
    image = torch.cat([torch.full_like(m.pred_idx, i) for i, m in enumerate(matches)])  # [M]
    slot = torch.cat([m.pred_idx for m in matches])
    gt_idx = torch.cat([m.gt_idx for m in matches])
    label = torch.cat([t.gt_labels[m.gt_idx] for t, m in pairs])
    gt = torch.cat([t.gt_xyxy[m.gt_idx] for t, m in pairs])  # [M, 4]
    quality = _log_quality(output.class_logits[image, slot, label], boxes[image, slot], gt)
    objects = max((len(target.gt_labels) for target in targets), default=0)
    number = image * objects + gt_idx  # [M] number of the object in the batch
    best = (~not_first_of_group(number, -quality)).nonzero()[:, 0]
    best = best[number[best].argsort()]
    image, slot, label, gt = image[best], slot[best], label[best], gt[best]
    parts = torch.arange(len(best), device=gt.device).split(max(1, PAIRS // logits.shape[1]))
    planes = boxes.float().movedim(2, 0).contiguous()  # [4, B, P]: `iou_and_giou` is faster so
    gaps = [
        _gaps(logits[image[rows], :, label[rows]], planes[:, image[rows]], slot[rows], gt[rows])
        for rows in parts
    ]
    return torch.cat(gaps).split(torch.bincount(image, minlength=len(targets)).tolist())


def _log_quality(logits: Tensor, boxes_xyxy: Tensor, gt_xyxy: Tensor) -> Tensor:
    """Logarithm of the quality by which several positives of one object are ranked: [M]."""
    iou = iou_and_giou(boxes_xyxy.float(), gt_xyxy)[0]
    log_score = torch.nn.functional.logsigmoid(logits.float())
    return (1 - QUALITY_POWER) * log_score + QUALITY_POWER * iou.log()


def _gaps(of_class: Tensor, planes: Tensor, slot: Tensor, gt_xyxy: Tensor) -> Tensor:
    """Logits of each object's class [M, P], boxes [4, M, P], positives [M], objects [M, 4] -> [M].

    The sigmoid preserves the order, and that of -inf is 0, the score of no slot.
    """
    of_class, slot = of_class.float(), slot[:, None]
    overlaps = iou_and_giou(planes.movedim(0, 2), gt_xyxy[:, None])[0] >= IOU
    others = of_class.masked_fill(~overlaps, -torch.inf).scatter(1, slot, -torch.inf)
    return of_class.gather(1, slot)[:, 0].sigmoid() - others.amax(dim=1).sigmoid()
