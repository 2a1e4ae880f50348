"""CenterNet's training loss: heatmap, size and offset (sections 3 and 4).

B images, P = H·W cells of the map, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onenet.detectors.centernet.output import CenterOutput
from onenet.detectors.centernet.targets import Heatmap, center_targets, draw_heatmap
from onenet.ops.focal import focal_loss
from onenet.structures import STRIDE, Matches, Target


def penalty_reduced_focal_loss(
    logits: Tensor, heatmap: Heatmap, alpha: float, beta: float
) -> Tensor:
    """Equation 1 before the division by the number of objects: logits [B, P, K] -> scalar.

    With the score Ŷ: -(1 - Ŷ)^α log(Ŷ) at peaks, -(1 - Y)^β Ŷ^α log(1 - Ŷ) elsewhere. This is the
    focal loss with γ = α, corrected where the heatmap Y is not 0.
    """
    negative = (1 - heatmap.value) ** beta - 1
    positive = heatmap.peak.to(negative.dtype)
    # focal_loss weighs positives by alpha and negatives by 1 - alpha; equation 1 has no weights.
    return 2 * focal_loss(logits, heatmap.index, positive, negative, alpha=0.5, gamma=alpha)


@dataclass(frozen=True)
class CenterNetLoss:
    """L_k + λ_size L_size + λ_off L_off (equation 4). An object is learnt at its centre's cell.

    `alpha`, `beta`: exponents of equation 1. `min_overlap`: the IoU, in (0, 1), that determines
    the radius of the Gaussians.
    """

    names: ClassVar[tuple[str, ...]] = ("loss_cls", "loss_size", "loss_offset")
    size: float = 0.1  # λ_size, for sizes in cells
    offset: float = 1.0  # λ_off
    alpha: float = 2.0
    beta: float = 4.0
    min_overlap: float = 0.7

    def match(self, output: CenterOutput, targets: Sequence[Target]) -> list[Matches]:
        """Returns the positive samples of each image: the cells of the objects' centres."""
        matches = []
        for target in targets:
            objects = center_targets([target], output.grid_hw)
            gt_idx = torch.arange(len(objects.slot), device=objects.slot.device)
            matches.append(Matches(objects.slot, gt_idx, objects.conflicts()))
        return matches

    def __call__(
        self,
        outputs: Sequence[CenterOutput],
        targets: Sequence[Target],
        num_objects: int | None = None,
        lap: Callable[[str], None] = lambda part: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the total loss of the single output, and its parts for the log.

        The parts are `loss_cls` (the heatmap's), `loss_size` and `loss_offset`, weighted and
        divided by the number of objects (at least 1), and the counts `objects` and `conflicts`
        (number of objects minus number of distinct cells of their centres). `num_objects`: objects
        in the whole batch, if `targets` are only a micro-batch of it. `lap` is called with "match"
        after the targets are built.
        """
        (output,) = outputs
        if num_objects is None:
            num_objects = sum(len(target.gt_labels) for target in targets)
        objects = center_targets(targets, output.grid_hw)
        heatmap = draw_heatmap(
            objects, targets, output.points_xy, output.class_logits.shape[2], self.min_overlap
        )
        lap("match")
        size = output.size_wh[objects.image, objects.slot] / STRIDE
        offset = output.offset_xy[objects.image, objects.slot]
        sums = (
            penalty_reduced_focal_loss(output.class_logits, heatmap, self.alpha, self.beta),
            self.size * (size - objects.size_wh).abs().sum(),  # equation 3
            self.offset * (offset - objects.offset_xy).abs().sum(),  # equation 2
        )
        parts = {n: s / max(1, num_objects) for n, s in zip(self.names, sums, strict=True)}
        counts = {"objects": torch.tensor(len(objects.slot)), "conflicts": objects.conflicts()}
        return sum(parts.values()), {**parts, **counts}
