"""The two-stage variant: the encoder proposes the decoder's queries (appendix A.4, "Two-Stage
Deformable DETR").

B images, S positions of all levels, Q queries, C channels, K classes. Boxes are normalized
(cx, cy, w, h), shares of the unpadded image.
"""

import torch
from torch import Tensor, nn

from onenet.detectors.deformable_detr.decoder import PredictionHead, Queries
from onenet.detectors.deformable_detr.geometry import LevelGeometry
from onenet.detectors.deformable_detr.position import sine_encoding

BASE_SCALE = 0.05  # side of the finest level's proposals, as a share of the image
BORDER = 0.01  # proposals of which a coordinate is nearer to 0 or 1 are not used
REJECTED = -50.0  # class logit of what is not used


def base_proposals(geometry: LevelGeometry) -> tuple[Tensor, Tensor]:
    """A box around each position, 0.05 · 2^level of the image wide and high: [B, S, 4].
    And which are used: [B, S] bool, false near the border, and so in padding."""
    centers = geometry.reference_points
    sides = [
        centers.new_full((length, 2), BASE_SCALE * 2**level)
        for level, length in enumerate(geometry.lengths)
    ]
    boxes = torch.cat([centers, torch.cat(sides).expand_as(centers)], dim=2)
    usable = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=2)
    return boxes, usable


class Proposals(nn.Module):
    """Predicts classes and a box at every position; the best become queries.

    The released code trains one class here, foreground. This one tells the classes apart, so that
    the loss is that of any other output, and ranks positions by their highest logit. Positions that
    are not used have constant logits, far below any other, a constant box and no gradient.
    """

    def __init__(self, dim: int, queries: int):
        super().__init__()
        self.queries = queries
        self.memory_projection = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.query_projection = nn.Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)

    def forward(
        self, memory: Tensor, geometry: LevelGeometry, head: PredictionHead
    ) -> tuple[Tensor, Tensor, Queries]:
        """memory [B, S, C] -> class logits [B, S, K], boxes [B, S, 4], and min(Q, S) queries whose
        references are boxes, through which no gradient flows."""
        starts, usable = base_proposals(geometry)
        rejected = ~usable[..., None]
        features = self.memory_norm(self.memory_projection(memory))
        logits = head.class_logits(features).masked_fill(rejected, REJECTED)
        boxes = head.boxes(features, starts).masked_fill(rejected, 0.5)
        best = logits.detach().amax(dim=2).topk(min(self.queries, logits.shape[1]), dim=1).indices
        references = boxes.detach().take_along_dim(best[..., None], dim=1)
        queries = self._queries(references, usable.take_along_dim(best, dim=1))
        return logits, boxes, queries

    def _queries(self, references: Tensor, usable: Tensor) -> Queries:
        encoding = sine_encoding(references, self.memory_norm.normalized_shape[0] // 2)
        projected = self.query_norm(self.query_projection(encoding))
        position, content = projected.chunk(2, dim=2)
        return Queries(content, position, references, usable)
