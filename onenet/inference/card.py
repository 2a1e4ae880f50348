"""The model card of an export: what it is, how good it is, how to load it."""

import numpy as np

from onenet.config.schema import Config
from onenet.evaluation.bootstrap import bounds
from onenet.inference.detector import TrainedDetector
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder

HEADER = """\
---
license: mit
library_name: onenet
pipeline_tag: object-detection
tags: [object-detection, onenet, end-to-end]
---
"""
SHOWN = ("AP", "AP_nms", "AP50", "AP50_nms")


def card(detector: TrainedDetector, folder: RunFolder) -> str:
    """Returns the text of README.md. `folder`: of the run, for its results."""
    config, classes = detector.config, detector.classes
    names = ", ".join(classes.names[:10]) + (", …" if len(classes) > 10 else "")
    parameters = sum(p.numel() for p in detector.network.parameters())
    return f"""{HEADER}
# {folder.path.name}

An object detector of the OneNet suite ([paper](https://arxiv.org/abs/2012.05780)), run `{detector.id}`.
It needs no NMS if its matching cost has a classification term.

| | |
|---|---|
| detector | {config.detector}, {config.backbone.name}, {config.neck.name} |
| parameters | {parameters:,} |
| matching | cost `{config.cost.name}`, location `{config.location}`, {config.assigner.name}, heads {config.heads} |
| trained on | {trained_on(config)} |
| recipe | preset `{config.preset}`, {config.steps} steps of {config.batch} images, lr {config.lr:g}, seed {config.seed} |
| input | shortest side {detector.size.short}, longest at most {detector.size.longest} pixels |
| classes | {len(classes)}: {names} |

{results(folder)}

## How to load it

```python
from onenet import load

detector = load("PATH/OF/THIS/FOLDER")
for objects in detector.predict("photos/"):
    print(objects.names, objects.scores, objects.boxes_xyxy)
```

or `python -m onenet.predict PATH/OF/THIS/FOLDER photos/ --out found/`.

Licence: MIT. The images it was trained on have their own.
"""  # noqa: E501


def trained_on(config: Config) -> str:
    data = config.data
    if data.name == "shapes":
        return f"built-in shapes, `{data.shapes.kind}`, {data.shapes.train_images:,} images"
    return f"`{data.root or data.name}`"


def results(folder: RunFolder) -> str:
    """Returns the AP table, each with its 95 % interval over the validation images."""
    result = folder.result()
    if not result:
        return "Its AP has not been measured here."
    metrics, env = result["metrics"], result["env"]
    file = folder.evaluation(EvalSpec(**result["evaluation"])) / "per_image.npz"
    intervals = {}
    if file.is_file() and metrics["AP"] is not None:
        with np.load(file) as arrays:
            intervals = bounds(dict(arrays), draws=200)
    lines = ["| metric | value | 95 % interval over images |", "|---|---|---|"]
    for metric in SHOWN:
        value = "undefined" if metrics[metric] is None else f"{metrics[metric]:.1f}"
        interval = "{:.1f} to {:.1f}".format(*intervals[metric]) if metric in intervals else ""
        lines.append(f"| {metric} | {value} | {interval} |")
    table = "\n".join(lines)
    return (
        f"{table}\n\nOn the validation images, in {env['precision']}; `_nms`: with NMS at IoU 0.5."
    )
