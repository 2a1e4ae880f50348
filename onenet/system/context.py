"""Where and how a run computes."""

from dataclasses import dataclass

from onenet.system.distributed import ALONE, World


@dataclass(frozen=True)
class RunContext:
    """What the config asks for, with `auto` resolved for this machine."""

    device: str = "cpu"  # or cuda
    precision: str = "float32"  # of the network in training, or bf16
    world: World = ALONE  # the processes that share the run
    accumulate: int = 1  # forward passes in which each process works through its part of a batch


ON_CPU = RunContext()  # one process, float32
