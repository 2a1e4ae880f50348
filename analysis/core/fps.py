"""Frames a second: measured by `analysis/benchmark.py fps`, kept in a file of the runs root, joined
by the tables. They depend on the network, not on the run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.core.formats import Block
from onenet.config.schema import Config
from onenet.data.sizes import ImageSize
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec
from onenet.system.files import read_json, write_json

FILE = "fps.json"


@dataclass(frozen=True)
class Network:
    """What decides how long an image takes, beside the machine."""

    detector: str
    backbone: str
    neck: str
    channels: int  # of the neck
    heads: int  # in training
    infer_heads: int
    size: str  # of the image: shortest side × longest, as "512x853"


@dataclass(frozen=True)
class Speed:
    """Of network and post-processing, one image at a time."""

    network: Network
    device: str  # "cpu", or the name of the GPU
    dtype: str
    classes: int
    fps: float | None  # None: the detector has no answer without NMS
    fps_nms: float  # with NMS
    threads: int  # of the processor
    torch: str  # version
    measured: float  # seconds since 1970, the same for what was measured together
    rounds: tuple[float, ...] = ()  # fps in each round of measuring it

    @property
    def key(self) -> str:
        n = self.network
        words = [n.detector, n.backbone, f"{n.neck}-{n.channels}", n.size]
        return " ".join([*words, f"heads {n.infer_heads}/{n.heads}", self.device, self.dtype])


def network_of(config: Config, spec: EvalSpec) -> Network:
    """That of a run, as this evaluation uses it."""
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
    """Adds to what is known; what was measured before on the same device gives way."""
    file = runs_root / FILE
    rows = {}
    for speed in speeds:
        numbers = asdict(speed)
        rows[speed.key] = numbers.pop("network") | numbers
    write_json(file, read_json(file) | rows)
    return file


def read(runs_root: Path) -> list[Speed]:
    """Empty where nothing was measured. Raises UserError."""
    speeds, file = [], runs_root / FILE
    try:
        for row in read_json(file).values():
            network = Network(**{name: row.pop(name) for name in Network.__dataclass_fields__})
            row["rounds"] = tuple(row.get("rounds", ()))
            speeds.append(Speed(network, **row))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: move it away; python analysis/benchmark.py fps measures anew."
        ) from error
    return speeds


def rounds_of(speeds: list[Speed], networks: list[Network]) -> list[tuple[float, ...]]:
    """The frames a second of each network, round by round, all on the device that `of_networks`
    takes. Empty if they were not measured together."""
    known, found = _by_device(speeds, networks), []
    if known:
        of_device = known[max(known, key=lambda device: _rank(known[device]))]
        found = [of_device[network] for network in networks if network in of_device]
    together = len(found) == len(networks) and len({speed.measured for speed in found}) == 1
    return [speed.rounds for speed in found] if together else [()] * len(networks)


def of_networks(
    speeds: list[Speed], networks: list[Network]
) -> tuple[list[float | None], str | None]:
    """The frames a second of each network without NMS, all on the same device, and which that is:
    the one on which most of them were measured, of several the last one used."""
    known = _by_device(speeds, networks)
    if not known:
        return [None] * len(networks), None
    device = max(known, key=lambda device: _rank(known[device]))
    found = known[device]
    classes, threads = (
        ", ".join(map(str, sorted({getattr(speed, name) for speed in found.values()})))
        for name in ("classes", "threads")
    )
    where = f"{device} (threads: {threads}; classes: {classes})"
    return [found[n].fps if n in found else None for n in networks], where


def _by_device(speeds: list[Speed], networks: list[Network]) -> dict[str, dict[Network, Speed]]:
    known: dict[str, dict[Network, Speed]] = {}
    for speed in speeds:
        if speed.network in networks and speed.dtype == "float32" and speed.fps:
            known.setdefault(speed.device, {})[speed.network] = speed
    return known


def _rank(found: dict[Network, Speed]) -> tuple[int, float]:
    return len(found), max(speed.measured for speed in found.values())


def block(speeds: list[Speed]) -> Block:
    """The grid that is printed after measuring."""
    names = ("device", "dtype", "classes", "threads")
    header = [*Network.__dataclass_fields__, *names, "FPS", "FPS with NMS"]
    rows = []
    for speed in speeds:
        number = "" if speed.fps is None else f"{speed.fps:.3g}"
        values = [*asdict(speed.network).values(), *(getattr(speed, name) for name in names)]
        rows.append([*map(str, values), number, f"{speed.fps_nms:.3g}"])
    return Block(header, rows, left=3)
