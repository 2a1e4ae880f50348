"""Pictures of a trained run: positive samples (Figure 5) and boxes without and with NMS (Figure 6).

All runs on the same data use the same images.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from onenet import build
from onenet.config.schema import Config
from onenet.data.images import ImageSource
from onenet.data.loading import DetectionDataset, collate
from onenet.data.normalization import normalize
from onenet.data.sizes import ImageSize
from onenet.evaluation import drawing
from onenet.postprocess import nms_keep, top_k
from onenet.runs.evaluations import default_evaluation
from onenet.runs.folder import RunFolder
from onenet.structures import Detections, HeadOutput, unpadded_sizes
from onenet.system.context import ON_CPU, RunContext
from onenet.system.files import write_json

IMAGES = 4
SHORTEST_SIDE = 256  # pixels of a picture


@torch.inference_mode()
def write(
    run: RunFolder,
    config: Config,
    model: nn.Module,
    source: ImageSource,
    threshold: float,
    context: RunContext = ON_CPU,
) -> None:
    """Writes pictures/ of the run's folder: image_<id>.png (the image), panel_<id>.png (positive
    samples | boxes before NMS | boxes after NMS) and pictures.json (the numbers in them).

    `threshold`: the lowest score of a box that is drawn. A good value varies a lot between costs
    (Figure 6), so each run has its own, at which it still finds 0.9 of the objects it can find.
    """
    model.eval()
    folder = run.path / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    names = list(source.annotations.category_names)
    dataset = DetectionDataset(source, ImageSize(config.size.short, config.size.ratio))
    loss = build.loss(config, model)
    peaks = default_evaluation(config).peaks
    device = context.device
    entries = []
    for image in range(min(IMAGES, len(dataset))):
        batch = collate([dataset[0, image]])
        if batch.is_substitute[0]:
            continue
        target = batch.targets[0].to(device)
        sizes_hw = unpadded_sizes([target], device)
        output = model(normalize(batch.images.to(device)), sizes_hw, num_heads=1)[0]
        match = loss.match(output, [target])[0]
        detections = top_k(output, [target.size_hw], peaks=peaks)[0]
        nms_mask = nms_keep(detections).to(device)
        scale = max(1.0, SHORTEST_SIDE / min(target.size_hw))
        locations = _locations(output, match.pred_idx) * scale
        positives = torch.cat([locations, target.gt_labels[match.gt_idx, None]], dim=1)
        truth = torch.cat([target.gt_xyxy * scale, target.gt_labels[:, None]], dim=1)
        mask = detections.scores >= threshold
        entry = {
            "file": f"image_{target.image_id}.png",
            "panel": f"panel_{target.image_id}.png",
            "ground_truth": _rounded_rows(truth),
            "positives": _rounded_rows(positives),
            "before_nms": _box_rows(detections, mask, scale),
            "after_nms": _box_rows(detections, mask & nms_mask, scale),
        }
        height, width = target.size_hw
        pixels = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)))
        picture.save(folder / entry["file"])
        _panel(picture, entry).save(folder / entry["panel"])
        entries.append(entry)
    write_json(
        folder / "pictures.json",
        {
            "categories": {str(label): name for label, name in enumerate(names)},
            "threshold": threshold,
            "images": entries,
        },
    )


def _locations(output: HeadOutput, slots: torch.Tensor) -> torch.Tensor:
    """Returns the grid points of the first image's slots, or the box centres of queries: [N, 2]."""
    points, boxes = output.points_xy[slots], output.boxes_at(0, slots)
    return torch.where(points.isnan(), (boxes[:, :2] + boxes[:, 2:]) / 2, points)


def _box_rows(detections: Detections, mask: torch.Tensor, scale: float) -> list:
    boxes = detections.boxes_xyxy * scale
    columns = [boxes, detections.labels[:, None], detections.scores[:, None]]
    return _rounded_rows(torch.cat(columns, dim=1)[mask])


def _rounded_rows(table: torch.Tensor) -> list:
    return np.round(table.double().cpu().numpy(), 3).tolist()


def _panel(picture: Image.Image, entry: dict) -> Image.Image:
    """Returns three copies side by side: positive samples, boxes before NMS, boxes after NMS."""
    titles = ("positive samples", "boxes without NMS", "boxes with NMS")
    width, height, gap, top = *picture.size, 8, 18
    panel = Image.new("RGB", (3 * width + 2 * gap, height + top), "white")
    copies = (
        drawing.with_positives(picture, entry["ground_truth"], entry["positives"]),
        drawing.with_boxes(picture, entry["before_nms"]),
        drawing.with_boxes(picture, entry["after_nms"]),
    )
    for column, (title, copy) in enumerate(zip(titles, copies, strict=True)):
        left = column * (width + gap)
        panel.paste(copy, (left, top))
        ImageDraw.Draw(panel).text((left + 2, 3), title, fill="black")
    return panel
