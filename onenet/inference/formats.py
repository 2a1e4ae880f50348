"""Writes a trained detector as a file that others can use: ONNX, torch.export, or safetensors."""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from onenet.config.compose import from_dict
from onenet.config.schema import Config
from onenet.errors import UserError
from onenet.inference.detector import TrainedDetector
from onenet.inference.graph import ExportedOutput, graph_of
from onenet.inference.load import CONFIG_FILE, WEIGHTS_FILE, keep_heads
from onenet.system.files import write_atomically, write_json

FILES = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": WEIGHTS_FILE}
OUTPUTS = ExportedOutput._fields
FORBIDDEN = {"NonMaxSuppression", "BatchNormalization"}  # operators
Runner = Callable[[Tensor], ExportedOutput]  # uint8 images [1, 3, H, W] -> detections


def check_packages(format_: str) -> None:
    """Raises UserError if a package that the format needs is missing."""
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime")}.get(format_, ())
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise UserError(f"{format_} needs {', '.join(missing)}: pip install 'onenet[export]'")


def write_onnx(
    detector: TrainedDetector, file: Path, size_hw: tuple[int, int], dynamic: bool
) -> None:
    """Writes an ONNX file. Its metadata has the run's id, the class names and the size."""
    images = torch.zeros(2 if dynamic else 1, 3, *size_hw, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.onnx.export(
            graph_of(detector),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=[*OUTPUTS],
            dynamic_shapes=_dynamic(dynamic),
        )
    metadata = {
        "run": detector.id,
        "classes": json.dumps(detector.classes.names),
        "category_ids": json.dumps(detector.classes.ids),
        "size": json.dumps(None if dynamic else list(size_hw)),
    }
    program.model.metadata_props.update(metadata)
    program.save(file, external_data=False)
    check_operators(file)


def check_operators(file: Path) -> None:
    """Raises UserError if there is NMS in the graph, or BatchNorm that was not folded."""
    import onnx

    graph = onnx.load(file).graph
    if operators := {node.op_type for node in graph.node} & FORBIDDEN:
        raise UserError(
            f"{file.name} would have the operators {', '.join(sorted(operators))}, which an export "
            "must not have.\nExport the weights instead: --format safetensors."
        )


def write_torch(
    detector: TrainedDetector, file: Path, size_hw: tuple[int, int], dynamic: bool
) -> None:
    """Writes a file to be read by `torch.export.load`."""
    images = torch.zeros(2 if dynamic else 1, 3, *size_hw, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            graph_of(detector), (images,), dynamic_shapes=_dynamic(dynamic)
        )
    with warnings.catch_warnings():  # about weights that share memory, harmless on a CPU
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, file)


def _dynamic(dynamic: bool) -> dict | None:
    """Height and width are any multiples of 32; the batch is any size."""
    if not dynamic:
        return None
    sides = {2: 32 * torch.export.Dim("rows", min=2), 3: 32 * torch.export.Dim("columns", min=2)}
    return {"images": {0: torch.export.Dim("batch"), **sides}}


def write_safetensors(detector: TrainedDetector, folder: Path) -> None:
    """Writes the weights of the heads that inference needs, and config.json, which `load` reads."""
    keep_heads(detector.network, detector.infer_heads)
    weights = {k: v.cpu().contiguous() for k, v in detector.network.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
    content = {
        "id": detector.id,
        "heads": detector.infer_heads,
        "classes": asdict(detector.classes),
        "config": asdict(without_paths(detector.config)),
    }
    write_json(folder / CONFIG_FILE, content)


def without_paths(config: Config) -> Config:
    """Returns a copy for other machines: no paths, no tracker, no code of the user's."""
    values = asdict(config)
    if config.neck.own or (isinstance(config.model, dict) and config.model):
        raise UserError(
            "The network has parts of your own, whose code cannot travel with its weights.\n"
            "Export it in the format onnx, or keep the run's folder."
        )
    data, backbone = values["data"], values["backbone"]
    for split in ("train", "val"):
        data[split] = {key: Path(path).name if path else None for key, path in data[split].items()}
    data |= {"root": Path(data["root"]).name if data["root"] else None, "own": None}
    backbone["weights"] = Path(backbone["weights"]).name
    values["cost"]["terms"], values["assigner"]["own"] = {}, None
    values |= {"runs_root": None, "tracker": values["tracker"] | {"name": "none", "entity": None}}
    return from_dict(values)


def open_onnx(file: Path, threads: int) -> Runner:
    """Returns a function that runs the file with ONNX Runtime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> ExportedOutput:
        outputs = session.run([*OUTPUTS], {"images": images.numpy()})
        return ExportedOutput(*map(torch.from_numpy, outputs))

    return run


def open_torch(file: Path) -> Runner:
    """Returns a function that runs the file with torch on the processor."""
    module = torch.export.load(file).module()

    @torch.inference_mode()
    def run(images: Tensor) -> ExportedOutput:
        return ExportedOutput(*module(images))

    return run
