"""Frames per second (FPS) of networks: `analysis/benchmark.py fps` measures them and writes them to
a file in the runs root, from which the tables read them. They depend on the network, not the run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from onenet.config.schema import Config
from onenet.data.sizes import ImageSize
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec
from onenet.system.files import read_json, write_json

FILE = "fps.json"


@dataclass(frozen=True)
class Network:
    """Everything that the time per image depends on, except the machine."""

    detector: str
    backbone: str
    neck: str
    channels: int  # of the neck
    heads: int  # in training
    infer_heads: int
    size: str  # of the image: shortest side × longest side, such as "512x853"


@dataclass(frozen=True)
class Speed:
    """The FPS of a network with its post-processing, at batch size 1."""

    network: Network
    device: str  # "cpu", or the name of the GPU
    dtype: str
    classes: int
    fps: float | None  # without NMS; None if the detector always needs NMS
    fps_nms: float  # with NMS
    threads: int  # of the CPU
    torch: str  # version
    measured: float  # seconds since 1970, equal for networks that were measured together
    rounds: tuple[float, ...] = ()  # fps in each round of measurement

    @property
    def key(self) -> str:
        n = self.network
        names = [n.detector, n.backbone, f"{n.neck}-{n.channels}", n.size]
        return " ".join([*names, f"heads {n.infer_heads}/{n.heads}", self.device, self.dtype])


def network_of(config: Config, spec: EvalSpec) -> Network:
    """Returns a run's network as this evaluation uses it."""
    return Network(
        detector=config.detector,
        backbone=config.backbone.name,
        neck=config.neck.name,
        channels=config.neck.channels,
        heads=config.heads,
        infer_heads=spec.infer_heads,
        size=f"{spec.short}x{ImageSize(spec.short, spec.ratio).longest}",
    )


def write(runs_root: Path, speeds: list[Speed]) -> Path:
    """Adds the speeds to the file, and replaces older ones with the same key. Returns the file."""
    file = runs_root / FILE
    rows = {}
    for speed in speeds:
        numbers = asdict(speed)
        rows[speed.key] = numbers.pop("network") | numbers
    write_json(file, read_json(file) | rows)
    return file


def read(runs_root: Path) -> list[Speed]:
    """Reads the speeds; empty if none were measured. Raises UserError if the file is damaged."""
    speeds, file = [], runs_root / FILE
    try:
        for row in read_json(file).values():
            network = Network(**{name: row.pop(name) for name in Network.__dataclass_fields__})
            row["rounds"] = tuple(row.get("rounds", ()))
            speeds.append(Speed(network, **row))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: move it away, and measure again: python analysis/benchmark.py fps"
        ) from error
    return speeds


def rounds_of(speeds: list[Speed], networks: list[Network]) -> list[tuple[float, ...]]:
    """Returns the FPS of each network, round by round, on the device that `lookup` chooses. Empty
    if the networks were not measured together."""
    measured = _on_one_device(speeds, networks)
    together = len({speed.measured for speed in measured.values()}) == 1
    if not together or any(network not in measured for network in networks):
        return [()] * len(networks)
    return [measured[network].rounds for network in networks]


def lookup(speeds: list[Speed], networks: list[Network]) -> tuple[list[float | None], str | None]:
    """Returns the FPS of each network without NMS, all on one device, and a description of it. The
    device is the one on which most of the networks were measured, or the most recent of several."""
    measured = _on_one_device(speeds, networks)
    if not measured:
        return [None] * len(networks), None
    every = pd.DataFrame(measured.values())
    threads, classes = (
        ", ".join(map(str, sorted({*every[name]}))) for name in ("threads", "classes")
    )
    numbers = [measured[n].fps if n in measured else None for n in networks]
    return numbers, f"{every.device[0]} (threads: {threads}; classes: {classes})"


def _on_one_device(speeds: list[Speed], networks: list[Network]) -> dict[Network, Speed]:
    devices: dict[str, dict[Network, Speed]] = {}
    for speed in speeds:
        if speed.network in networks and speed.dtype == "float32" and speed.fps:
            devices.setdefault(speed.device, {})[speed.network] = speed

    def rank(own: dict[Network, Speed]) -> tuple[int, float]:
        return len(own), max(speed.measured for speed in own.values())

    return max(devices.values(), key=rank, default={})


def printed(speeds: list[Speed]) -> pd.DataFrame:
    """The table that is printed after measuring, as text."""
    names = ("device", "dtype", "classes", "threads")
    rows = [
        {**asdict(speed.network), **{name: getattr(speed, name) for name in names},
         "FPS": "" if speed.fps is None else f"{speed.fps:.3g}",
         "FPS with NMS": f"{speed.fps_nms:.3g}"}
        for speed in speeds
    ]  # fmt: skip
    return pd.DataFrame(rows).astype(str).set_index(["detector", "backbone", "neck"])
