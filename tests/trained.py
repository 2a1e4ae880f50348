"""Folders of finished runs whose networks were never trained, made in a second."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from onenet.config.compose import compose, to_dict
from onenet.inference.detector import network_for
from onenet.runs.classes import Classes
from onenet.runs.evaluations import default_evaluation
from onenet.runs.folder import RunFolder
from onenet.runs.identity import run_id, slug
from onenet.system.files import write_json
from onenet.training.checkpoint import save_weights

CLASSES = Classes([2, 5, 8, 9, 11], ["ellipse", "rectangle", "triangle", "cross", "hourglass"])


def random_network(config, num_classes: int = len(CLASSES)) -> nn.Module:
    """A network that predicts boxes of many sizes with scores of many values. Its BatchNorm has
    statistics, and its deformable convolutions have offsets."""
    network = network_for(config, num_classes)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("box_conv.bias", "size.output.bias")):
                parameter.fill_(3.0)
            elif name.endswith("class_conv.weight"):
                parameter.normal_(0, 0.3, generator=generator)
            elif "taps" in name:
                parameter.normal_(0, 0.05, generator=generator)
    return network


def finished_run(root: Path, *overrides: str, state: str = "done") -> RunFolder:
    """The folder of a run with these overrides of debug=tiny, in the runs root."""
    config = compose(["debug=tiny", f"runs_root={root}", *overrides])
    id_ = run_id(config)
    folder = RunFolder(root / f"{slug(config)}-{id_}")
    folder.freeze(to_dict(config))
    CLASSES.write(folder.classes_file)
    save_weights(folder, id_, random_network(config).state_dict())
    folder.set_status(state=state, kind=state, id=id_)
    if state == "done":
        spec = default_evaluation(config)
        metrics = dict.fromkeys(("AP", "AP_nms", "AP50", "AP50_nms"), 12.3)
        result = {"id": id_, "metrics": metrics, "env": {"precision": "float32"}}
        write_json(folder.result_file, result | {"evaluation": asdict(spec)})
    return folder


def with_changed_weight(network: nn.Module, name: str, change: float) -> nn.Module:
    """Changes one number of a parameter, in place."""
    with torch.no_grad():
        network.get_parameter(name).flatten()[0] += change
    return network
