"""The whole of inference as one module, for export: pixels in, the top 100 out.

B images, P = H/4 · W/4 slots, K classes, D = min(100, P·K) detections.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from onenet.data.normalization import normalize
from onenet.detectors import detector_of
from onenet.errors import UserError
from onenet.evaluation.predictions import MAX_DETECTIONS
from onenet.inference.detector import TrainedDetector
from onenet.ops.fusion import for_inference
from onenet.postprocess import suppress_non_peaks


class ExportedOutput(NamedTuple):
    boxes: Tensor  # [B, D, 4] float32 xyxy pixels of the input, clipped to it
    scores: Tensor  # [B, D] float32 in 0..1, highest first; 0 for an empty box
    labels: Tensor  # [B, D] int64 in 0..K-1


class InferenceGraph(nn.Module):
    """Normalisation, the network with BatchNorm folded, decoding, and the top 100 (section 4).

    Maps images [B, 3, H, W], uint8 RGB, H and W multiples of 32, to an ExportedOutput. There is no
    NMS in it. It equals `postprocess.top_k`, except that it keeps empty boxes, with a score of 0.
    """

    def __init__(self, detector: TrainedDetector):
        super().__init__()
        self.network = for_inference(detector.network, portable=True)
        self.infer_heads, self.peaks = detector.infer_heads, detector.peaks

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = images.shape[-2:]
        output = self.network(normalize(images), num_heads=self.infer_heads)[-1]
        logits = output.class_logits
        if self.peaks:
            logits = suppress_non_peaks(logits, output.grid_hw)
        classes = logits.shape[2]
        # The best slots contain the best pairs of slot and class: see `top_k`.
        slots = logits.amax(dim=2).topk(min(MAX_DETECTIONS, logits.shape[1])).indices
        slots = slots.sort().values  # so that ties go to the first slot
        pair_logits = _rows(logits, slots).flatten(1)  # [B, slots * K]
        best = pair_logits.topk(min(MAX_DETECTIONS, pair_logits.shape[1]))
        rows = best.indices // classes
        labels = best.indices - rows * classes
        boxes = _rows(output.boxes_xyxy, slots.gather(1, rows))
        x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
        boxes = torch.stack([x, y], dim=3).flatten(2)
        is_box = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        return boxes, best.values.sigmoid() * is_box, labels


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """[B, P, C], [B, N] -> [B, N, C]."""
    return table.gather(1, rows[..., None].expand(-1, -1, table.shape[2]))


def graph_of(detector: TrainedDetector) -> InferenceGraph:
    """Raises UserError for a detector whose predictions depend on more than the pixels."""
    name = detector.config.detector
    if "neck" not in detector_of(name, detector.config.model).reads:
        raise UserError(
            f"detector={name} also reads the size of each image without its padding, for which the "
            "graph has no input.\nExport it in the format safetensors."
        )
    return InferenceGraph(detector).eval()
