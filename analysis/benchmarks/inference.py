"""From an image to its boxes: OneNet beside torchvision's one-stage detectors, which need NMS.

All weights are random. A frame begins with the image as a tensor on the device.
"""

import time
from collections.abc import Callable

import torch
from torchvision.models import detection

from analysis.benchmarks.timing import Row, least_seconds
from analysis.fps import Network, Speed
from onenet.backbones import make_backbone, normalize
from onenet.data.loading import pad_to_multiple
from onenet.detectors.onenet import OneNet
from onenet.fusion import for_inference
from onenet.inference import nms_keep, top_k
from onenet.necks import NECKS

CLASSES = 80
ENOUGH = 4  # seconds for the rounds of a network, of which there are at least 4
PAPER_SIZES = ((512, 640), (512, 853))
TORCHVISION = {
    "fcos": detection.fcos_resnet50_fpn,
    "retinanet": detection.retinanet_resnet50_fpn,
}
WHAT = (
    "an image of {h} × {w}, float32, {threads} thread(s), random weights. Plain: torchvision's "
    "fcos_resnet50_fpn in evaluation mode, {classes} classes, score_thresh=0, up to 1,000 "
    "candidates a level, then its NMS; min_size={h} max_size={w} and its resizing left out, so the "
    "image keeps its size. Ours: ResNet-50, neck=deconv (256, 128, 64 channels), {classes} "
    "classes, as in an evaluation: BatchNorm folded, weights laid out for the size beforehand, "
    "the 100 best pairs, no NMS"
)


def rows() -> list[Row]:
    size_hw = (512, 853)
    ours = onenet_frames(onenet("resnet50", "deconv", size_hw), size_hw)
    plain = torchvision_frames("fcos", size_hw)
    plain_seconds, seconds = least_seconds(plain, ours, warmup=3)
    what = WHAT.format(
        h=size_hw[0],
        w=size_hw[1],
        threads=torch.get_num_threads(),
        classes=CLASSES,
    )
    return [Row("fcos", what, 1e3 * plain_seconds, 1e3 * seconds, unit="ms", goal=2.0)]


def fps(device: str = "cpu") -> list[Speed]:
    """Of every network that the tables ask for, and of torchvision's; minutes on a processor.

    Call it alone on the machine. `device`: cpu or cuda.
    """
    speeds = []
    for network, size_hw in networks():
        answers = [onenet_frames(network, size_hw, device, nms) for nms in (False, True)]
        speeds.append(_speed(network, device, *_frames_per_second(answers, device)))
    for name in TORCHVISION:
        for size_hw in PAPER_SIZES:
            network = Network(name, "resnet50", "fpn", 256, 1, 1, _size(size_hw))
            answers = [torchvision_frames(name, size_hw, device)]
            speeds.append(_speed(network, device, None, *_frames_per_second(answers, device)))
    return speeds


def networks() -> list[tuple[Network, tuple[int, int]]]:
    """Those of the paper's tables, and those of the default scale; each with the image's size."""
    found = [
        (onenet(backbone, neck, size_hw), size_hw)
        for size_hw in PAPER_SIZES
        for backbone in ("resnet18", "resnet50", "resnet101")
        for neck in ("deconv", "deconv_dcn", "fpn")
    ]
    for backbone, neck, size_hw in (
        ("resnet50", "deconv_dcn", (512, 853)),
        ("tiny", "fpn", (64, 96)),
    ):
        for heads, infer_heads in ((1, 1), (3, 1), (3, 3)):
            found.append((onenet(backbone, neck, size_hw, heads, infer_heads), size_hw))
    return list(dict.fromkeys(found))


def onenet(
    backbone: str, neck: str, size_hw: tuple[int, int], heads: int = 1, infer_heads: int = 1
) -> Network:
    return Network("onenet", backbone, neck, 64, heads, infer_heads, _size(size_hw))


def onenet_frames(
    network: Network, size_hw: tuple[int, int], device: str = "cpu", nms: bool = False
) -> Callable[[], object]:
    """A function that detects in one image, in the way an evaluation does."""
    torch.manual_seed(0)
    backbone = make_backbone(network.backbone)
    neck = NECKS[network.neck](backbone.feature_info.channels(), network.channels)
    model = OneNet(backbone, CLASSES, neck=neck, heads=network.heads)
    model = for_inference(model.to(device, memory_format=torch.channels_last))
    images = torch.zeros(1, 3, *pad_to_multiple(size_hw), dtype=torch.uint8, device=device)
    images[..., : size_hw[0], : size_hw[1]].random_(256)

    @torch.inference_mode()
    def detect():
        output = model(normalize(images), num_heads=network.infer_heads)[-1]
        (detections,) = top_k(output, [size_hw])
        return nms_keep(detections) if nms else detections

    return detect


def torchvision_frames(
    name: str, size_hw: tuple[int, int], device: str = "cpu"
) -> Callable[[], object]:
    """A function that detects in one image, in the way torchvision does."""
    torch.manual_seed(0)
    model = TORCHVISION[name](
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        score_thresh=0.0,
        min_size=min(size_hw),
        max_size=max(size_hw),
        _skip_resize=True,  # to the same size
    )
    model = model.eval().to(device)
    image = torch.rand(3, *size_hw, device=device)

    @torch.inference_mode()
    def detect():
        return model([image])

    return detect


def _frames_per_second(answers: list[Callable[[], object]], device: str) -> list[float]:
    def finished(answer: Callable[[], object]) -> Callable[[], object]:
        def run():
            answer()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    frames = [finished(answer) for answer in answers]
    one_round = sum(least_seconds(*frames, rounds=1, warmup=3))
    rounds = int(min(100, max(4, ENOUGH / one_round)))
    return [1 / s for s in least_seconds(*frames, rounds=rounds)]


def _speed(network: Network, device: str, fps: float | None, fps_nms: float) -> Speed:
    return Speed(
        network,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        dtype="float32",
        classes=CLASSES,
        fps=fps,
        fps_nms=fps_nms,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        measured=time.time(),
    )


def _size(size_hw: tuple[int, int]) -> str:
    return "{}x{}".format(*size_hw)
