"""Times inference: our detectors against torchvision's one-stage detectors, which need NMS.

All weights are random. The time of a frame starts with the image as a tensor on the device.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torchvision.models import detection

from analysis.core.fps import Network, Speed, network_of
from analysis.core.settings import NETWORKS
from analysis.speed.timing import Timing, compare, least_seconds
from onenet import build
from onenet.config.compose import loader, override
from onenet.data.normalization import normalize
from onenet.data.sizes import pad_to_multiple
from onenet.detectors import DETECTORS
from onenet.ops.fusion import for_inference
from onenet.postprocess import nms_keep, top_k
from onenet.sweeps.experiments import expand
from onenet.system.plural import plural

CLASSES = 80
ROUNDS = 5  # each measures all networks
CLAIM_ROUNDS = 25  # for networks in claims: their intervals are wide on a shared machine
ROUND_SECONDS = 0.8  # per network
TABLES = ("table1", "table2", "table3", "table5")  # that show FPS
CLAIM_TABLES = ("table2", "table3")  # whose claims are about FPS
PAPER_SIZES = ((512, 640), (512, 853))
TORCHVISION = {
    "fcos": detection.fcos_resnet50_fpn,
    "retinanet": detection.retinanet_resnet50_fpn,
}


def rows() -> list[Timing]:
    size_hw = PAPER_SIZES[-1]
    ours = our_detector(our_network(size_hw, "resnet50", "deconv"))
    plain = torchvision_detector("fcos", size_hw)
    threads = plural(torch.get_num_threads(), "thread")
    return [compare("fcos", plain, ours, warmup=3, threads=threads)]


def fps(device: str = "cpu", compared: bool = False) -> list[Speed]:
    """Measures all networks of the tables, and torchvision's: a quarter of an hour on a CPU. With
    `compared`, only those that the claims about speed compare: minutes.

    Nothing else should run on the machine. `device`: cpu or cuda.
    """
    networks_in_claims = networks(CLAIM_TABLES, (NETWORKS,))
    detectors = {
        network: [our_detector(network, device, nms) for nms in (False, True)]
        for network in (networks_in_claims if compared else all_networks())
    }
    for name in () if compared else TORCHVISION:
        for size_hw in PAPER_SIZES:
            network = Network(name, "resnet50", "fpn", 256, 1, 1, _size(size_hw))
            detectors[network] = [torchvision_detector(name, size_hw, device)]
    timers = {network: _timer(each, device) for network, each in detectors.items()}
    rounds: dict[Network, list[list[float]]] = {network: [] for network in detectors}
    for number in range(CLAIM_ROUNDS):
        for network, measure in timers.items():
            if number < ROUNDS or network in networks_in_claims:
                rounds[network].append(measure())
    now = time.time()
    return [_speed(network, device, measured, now) for network, measured in rounds.items()]


def all_networks() -> list[Network]:
    """The networks of the paper's tables at both scales, and OneNet with every neck."""
    backbones, necks = ("resnet18", "resnet50", "resnet101"), ("deconv", "deconv_dcn", "fpn")
    onenets = [our_network(*each) for each in product(PAPER_SIZES, backbones, necks)]
    return list(dict.fromkeys([*onenets, *networks(TABLES, ((), NETWORKS))]))


def networks(tables: Sequence[str], scales: Sequence[tuple[str, ...]]) -> list[Network]:
    """The distinct networks of the tables, with the overrides of each scale."""
    every = (
        network_of(spec.config, spec.evaluation)
        for table in tables
        for scale in scales
        for spec in expand([f"+experiment={table}", "seed=0", *scale])
    )
    return list(dict.fromkeys(every))


def our_network(size_hw: tuple[int, int], backbone: str, neck: str, heads: int = 1) -> Network:
    return Network("onenet", backbone, neck, 64, heads, 1, _size(size_hw))


def our_detector(network: Network, device: str = "cpu", nms: bool = False) -> Callable[[], object]:
    """Returns a function that detects objects in one image as an evaluation does."""
    height, width = size_hw = tuple(map(int, network.size.split("x")))
    keys = {"neck.channels": network.channels, "heads": network.heads, "device": device}
    keys |= {name: getattr(network, name) for name in ("detector", "backbone", "neck")}
    config = loader().compose([override(key, value) for key, value in keys.items()])
    model = for_inference(build.detector(config, CLASSES))
    peaks = DETECTORS[network.detector].peaks
    images = torch.zeros(1, 3, *pad_to_multiple(size_hw), dtype=torch.uint8, device=device)
    images[..., :height, :width].random_(256)
    sizes_hw = torch.tensor([size_hw], device=device)

    @torch.inference_mode()
    def detect():
        output = model(normalize(images), sizes_hw, num_heads=network.infer_heads)[-1]
        (detections,) = top_k(output, [size_hw], peaks=peaks)
        return nms_keep(detections) if nms else detections

    return detect


def torchvision_detector(
    name: str, size_hw: tuple[int, int], device: str = "cpu"
) -> Callable[[], object]:
    """Returns a function that detects objects in one image as torchvision does."""
    torch.manual_seed(0)
    model = TORCHVISION[name](
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        score_thresh=0.0,
        min_size=min(size_hw),
        max_size=max(size_hw),
        _skip_resize=True,  # the image already has this size
    )
    model = model.eval().to(device)
    image = torch.rand(3, *size_hw, device=device)

    @torch.inference_mode()
    def detect():
        return model([image])

    return detect


def _timer(detectors: list[Callable[[], object]], device: str) -> Callable[[], list[float]]:
    """Returns a function that measures the FPS of each detector in one round, alternating."""

    def synchronized(detect: Callable[[], object]) -> None:
        detect()
        if device == "cuda":
            torch.cuda.synchronize()

    works = [partial(synchronized, detect) for detect in detectors]
    seconds = sum(least_seconds(*works, rounds=1, warmup=3))
    repeats = int(min(100, max(1, ROUND_SECONDS / seconds)))
    return lambda: [1 / s for s in least_seconds(*works, rounds=repeats, warmup=0)]


def _speed(network: Network, device: str, rounds: list[list[float]], now: float) -> Speed:
    """`rounds`: the FPS in each, without and with NMS, or only with NMS."""
    best = [max(values) for values in zip(*rounds, strict=True)]
    return Speed(
        network,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        dtype="float32",
        classes=CLASSES,
        fps=best[0] if len(best) == 2 else None,
        fps_nms=best[-1],
        rounds=tuple(measured[0] for measured in rounds),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        measured=now,
    )


def _size(size_hw: tuple[int, int]) -> str:
    return "{}x{}".format(*size_hw)
