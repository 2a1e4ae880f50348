"""The device, precision and processes of a run."""

from dataclasses import dataclass

from onenet.system.distributed import ALONE, World


@dataclass(frozen=True)
class RunContext:
    """The settings of the config, with `auto` resolved for this machine."""

    device: str = "cpu"  # or cuda
    precision: str = "float32"  # of the network in training; or bf16
    world: World = ALONE  # the processes that share the run
    accumulate: int = 1  # micro-batches for each process and step


ON_CPU = RunContext()  # one process, float32
