"""Pictures of a finished run: its positive samples (Figure 5) and its boxes with and without NMS
(Figure 6), on the same images for every run on the same data.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from onenet.config.schema import Config
from onenet.data.images import ImageSource
from onenet.data.loading import DetectionDataset, collate
from onenet.data.normalization import normalize
from onenet.data.sizes import ImageSize
from onenet.job import build, drawing
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
    """Fills pictures/ of the run's folder with image_<id>.png (the image), panel_<id>.png (positive
    samples | boxes before NMS | boxes after NMS) and pictures.json (all of it as numbers).

    `threshold`: only boxes of at least this score are drawn. The right one differs a lot between
    costs (Figure 6), so each run gets its own: where 0.9 of the objects it can find are found.
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
        after = nms_keep(detections).to(device)
        scale = max(1.0, SHORTEST_SIDE / min(target.size_hw))
        places = _places(output, match.pred_idx) * scale
        points = torch.cat([places, target.gt_labels[match.gt_idx, None]], dim=1)
        truth = torch.cat([target.gt_xyxy * scale, target.gt_labels[:, None]], dim=1)
        drawn = detections.scores >= threshold
        entry = {
            "file": f"image_{target.image_id}.png",
            "panel": f"panel_{target.image_id}.png",
            "ground_truth": _rounded(truth),
            "positives": _rounded(points),
            "before_nms": _boxes(detections, drawn, scale),
            "after_nms": _boxes(detections, drawn & after, scale),
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


def _places(output: HeadOutput, slots: torch.Tensor) -> torch.Tensor:
    """The grid points of the first image's slots; of queries the centres of their boxes: [N, 2]."""
    points, boxes = output.points_xy[slots], output.boxes_at(0, slots)
    return torch.where(points.isnan(), (boxes[:, :2] + boxes[:, 2:]) / 2, points)


def _boxes(detections: Detections, chosen: torch.Tensor, scale: float) -> list:
    boxes = detections.boxes_xyxy * scale
    columns = [boxes, detections.labels[:, None], detections.scores[:, None]]
    return _rounded(torch.cat(columns, dim=1)[chosen])


def _rounded(table: torch.Tensor) -> list:
    return np.round(table.double().cpu().numpy(), 3).tolist()


def _panel(picture: Image.Image, entry: dict) -> Image.Image:
    """Three copies side by side: positive samples, boxes before NMS, boxes after NMS."""
    titles = ("positive samples", "boxes without NMS", "boxes with NMS")
    width, height, gap, head = *picture.size, 8, 18
    panel = Image.new("RGB", (3 * width + 2 * gap, height + head), "white")
    copies = (
        drawing.with_positives(picture, entry["ground_truth"], entry["positives"]),
        drawing.with_boxes(picture, entry["before_nms"]),
        drawing.with_boxes(picture, entry["after_nms"]),
    )
    for column, (title, copy) in enumerate(zip(titles, copies, strict=True)):
        left = column * (width + gap)
        panel.paste(copy, (left, head))
        ImageDraw.Draw(panel).text((left + 2, 3), title, fill="black")
    return panel
