"""The processes of one run, each with a part of every batch (DistributedDataParallel).

`torchrun` starts them. A run with one process is ALONE and sends nothing.
"""

import os
import socket
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onenet.system.torchrun import started_by_torchrun

LOST_TRIES = 20  # 0.1 s apart
TIMEOUT = timedelta(hours=2)  # the first process scores evaluations while the others wait


@dataclass(frozen=True)
class World:
    """The rank of this process, and the other processes of the run."""

    rank: int = 0
    size: int = 1
    neighbours: tuple[int, ...] = ()  # process ids of the others on this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sums in place over all processes; each of them gets the sum."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return bool(self.sum(torch.tensor(int(flag))))

    def gather(self, value) -> list:
        """Returns the picklable values of all processes, by rank, on the first one; an empty list
        on the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value):
        """Returns the first process's picklable value, on all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def broadcast_weights(self, model: nn.Module) -> None:
        """Copies the first process's parameters and buffers to all processes."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def has_lost_process(self) -> bool:
        """Whether another process of the run on this machine has ended. Waits a little for that.

        The others do not end because of an error here: they notice it only when this process ends.
        """
        for _ in range(LOST_TRIES if self.neighbours else 0):
            if not all(map(_is_alive, self.neighbours)):
                return True
            time.sleep(0.1)
        return False

    def parallel(self, model: nn.Module, sync_bn: bool) -> nn.Module:
        """Wraps the model so that its backward pass averages gradients over all processes.

        `sync_bn`: BatchNorm over the images of all processes, which needs CUDA. Otherwise each
        process normalises its own images, as in the paper, and the first one's statistics are kept.
        """
        if self.size == 1:
            return model
        if sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with warnings.catch_warnings():  # not every version has the argument's new name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False)


ALONE = World()


def join(device: str = "cpu") -> World:
    """Joins the other processes of the run if `torchrun` started this one. `device`: cpu, cuda."""
    if not started_by_torchrun():
        return ALONE
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    this_host, this_pid = socket.gethostname(), os.getpid()
    processes: list = [None] * dist.get_world_size()
    dist.all_gather_object(processes, (this_host, this_pid))
    neighbours = tuple(pid for host, pid in processes if host == this_host and pid != this_pid)
    return World(dist.get_rank(), dist.get_world_size(), neighbours)


def is_first_process() -> bool:
    """Like `World.first`, but works even if joining the other processes has failed."""
    return os.environ.get("RANK", "0") == "0"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def without_sync(model: nn.Module):
    """Returns a context in which backward passes accumulate gradients without sending them."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
