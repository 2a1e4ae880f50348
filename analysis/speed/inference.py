"""From an image to its boxes: our detectors beside torchvision's one-stage ones, which need NMS.

All weights are random. A frame begins with the image as a tensor on the device.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torchvision.models import detection

from analysis.core.fps import Network, Speed, network_of
from analysis.core.predicates import NETWORKS
from analysis.speed.timing import Timing, least_seconds
from onenet.config.compose import loader, override
from onenet.data.normalization import normalize
from onenet.data.sizes import pad_to_multiple
from onenet.detectors import DETECTORS
from onenet.job import build
from onenet.ops.fusion import for_inference
from onenet.postprocess import nms_keep, top_k
from onenet.sweeps.experiments import expand

CLASSES = 80
ROUNDS = 5  # in each of which all networks are measured
CLAIMED = 25  # rounds of those that claims compare, whose interval a shared machine widens
ENOUGH = 0.8  # seconds for the frames of a round
TABLES = ("table1", "table2", "table3", "table5")  # those with frames a second
CLAIMS = ("table2", "table3")  # those about which a claim speaks of speed
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


def rows() -> list[Timing]:
    size_hw = (512, 853)
    ours = our_frames(ours_at(size_hw, "resnet50", "deconv"), size_hw)
    plain = torchvision_frames("fcos", size_hw)
    plain_seconds, seconds = least_seconds(plain, ours, warmup=3)
    what = WHAT.format(
        h=size_hw[0],
        w=size_hw[1],
        threads=torch.get_num_threads(),
        classes=CLASSES,
    )
    return [Timing("fcos", what, 1e3 * plain_seconds, 1e3 * seconds, unit="ms", goal=2.0)]


def fps(device: str = "cpu", compared: bool = False) -> list[Speed]:
    """Of every network that the tables ask for, and of torchvision's; a quarter of an hour on a
    processor. `compared`: only those that the claims about speed compare, minutes.

    Call it alone on the machine. `device`: cpu or cuda.
    """
    claimed = networks(CLAIMS, (NETWORKS,))
    answers = {
        network: [our_frames(network, _sides(network), device, nms) for nms in (False, True)]
        for network in (claimed if compared else all_networks())
    }
    for name in () if compared else TORCHVISION:
        for size_hw in PAPER_SIZES:
            network = Network(name, "resnet50", "fpn", 256, 1, 1, _size(size_hw))
            answers[network] = [torchvision_frames(name, size_hw, device)]
    clocks = {network: _clock(frames, device) for network, frames in answers.items()}
    found: dict[Network, list[list[float]]] = {network: [] for network in answers}
    for done in range(CLAIMED):
        for network, frames_per_second in clocks.items():
            if done < ROUNDS or network in claimed:
                found[network].append(frames_per_second())
    now = time.time()
    return [_speed(network, device, rounds, now) for network, rounds in found.items()]


def all_networks() -> list[Network]:
    """Those of the paper's tables at both scales, and OneNet with every neck."""
    found = [
        ours_at(size_hw, backbone, neck)
        for size_hw in PAPER_SIZES
        for backbone in ("resnet18", "resnet50", "resnet101")
        for neck in ("deconv", "deconv_dcn", "fpn")
    ]
    return list(dict.fromkeys([*found, *networks(TABLES, ((), NETWORKS))]))


def networks(tables: Sequence[str], scales: Sequence[tuple[str, ...]]) -> list[Network]:
    """Those of the tables under each scale's overrides."""
    found = []
    for table in tables:
        for scale in scales:
            cells = expand([f"+experiment={table}", "seed=0", *scale])
            found += [network_of(cell.config, cell.evaluation) for cell in cells]
    return list(dict.fromkeys(found))


def ours_at(
    size_hw: tuple[int, int],
    backbone: str,
    neck: str,
    heads: int = 1,
    infer_heads: int = 1,
    detector: str = "onenet",
) -> Network:
    return Network(detector, backbone, neck, 64, heads, infer_heads, _size(size_hw))


def our_frames(
    network: Network, size_hw: tuple[int, int], device: str = "cpu", nms: bool = False
) -> Callable[[], object]:
    """A function that detects in one image, in the way an evaluation does."""
    keys = {"neck.channels": network.channels, "heads": network.heads, "device": device}
    keys |= {name: getattr(network, name) for name in ("detector", "backbone", "neck")}
    config = loader().compose([override(key, value) for key, value in keys.items()])
    model = for_inference(build.detector(config, CLASSES))
    peaks = DETECTORS[network.detector].peaks
    images = torch.zeros(1, 3, *pad_to_multiple(size_hw), dtype=torch.uint8, device=device)
    images[..., : size_hw[0], : size_hw[1]].random_(256)
    sizes_hw = torch.tensor([size_hw], device=device)

    @torch.inference_mode()
    def detect():
        output = model(normalize(images), sizes_hw, num_heads=network.infer_heads)[-1]
        (detections,) = top_k(output, [size_hw], peaks=peaks)
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


def _clock(answers: list[Callable[[], object]], device: str) -> Callable[[], list[float]]:
    """A function that measures the frames a second of each answer, in turns, for one round."""

    def finished(answer: Callable[[], object]) -> Callable[[], object]:
        def run():
            answer()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    frames = [finished(answer) for answer in answers]
    once = sum(least_seconds(*frames, rounds=1, warmup=3))
    again = int(min(100, max(1, ENOUGH / once)))
    return lambda: [1 / s for s in least_seconds(*frames, rounds=again, warmup=0)]


def _speed(network: Network, device: str, rounds: list[list[float]], now: float) -> Speed:
    """`rounds`: of each the frames a second without and with NMS, or with it alone."""
    best = [max(of_all) for of_all in zip(*rounds, strict=True)]
    return Speed(
        network,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        dtype="float32",
        classes=CLASSES,
        fps=best[0] if len(best) == 2 else None,
        fps_nms=best[-1],
        rounds=tuple(round_[0] for round_ in rounds),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        measured=now,
    )


def _sides(network: Network) -> tuple[int, int]:
    height, width = map(int, network.size.split("x"))
    return height, width


def _size(size_hw: tuple[int, int]) -> str:
    return "{}x{}".format(*size_hw)
