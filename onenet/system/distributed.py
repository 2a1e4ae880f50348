"""The processes that share one run, each with a part of every batch (DistributedDataParallel).

`torchrun` starts them. A run in one process is ALONE: nothing is sent then.
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

LOST_TRIES = 20  # tenths of a second
WAIT = timedelta(hours=2)  # for a process that scores while the others have nothing to do


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    neighbours: tuple[int, ...] = ()  # process ids of the others on this machine

    @property
    def first(self) -> bool:
        """The process that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them; in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Does it hold in any of the processes?"""
        return bool(self.sum(torch.tensor(int(flag))))

    def gather(self, value) -> list:
        """The picklable values of all processes in the order of their ranks, on the first one;
        nothing on the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def share(self, value):
        """The first process's picklable value, on all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def share_weights(self, model: nn.Module) -> None:
        """Gives every process the first one's parameters and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def has_lost_one(self) -> bool:
        """Has another process of the run on this machine ended? Waits a little for that: of an
        error here, the others see nothing before this process ends."""
        for _ in range(LOST_TRIES if self.neighbours else 0):
            if not all(map(_lives, self.neighbours)):
                return True
            time.sleep(0.1)
        return False

    def parallel(self, model: nn.Module, sync_bn: bool) -> nn.Module:
        """The model whose backward pass averages the gradients of all processes.

        `sync_bn`: BatchNorm over the images of all processes, needs CUDA. Else each process
        normalises its own images, as the paper's did, and the first one's statistics are kept.
        """
        if self.size == 1:
            return model
        if sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with warnings.catch_warnings():  # the argument's new name is not in all versions yet
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False)


ALONE = World()


def join(device: str = "cpu") -> World:
    """Finds the other processes of the run, if `torchrun` started this one. `device`: cpu, cuda."""
    if "LOCAL_RANK" not in os.environ:
        return ALONE
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=WAIT)
    else:
        dist.init_process_group("gloo", timeout=WAIT)
    here = (socket.gethostname(), os.getpid())
    others: list = [None] * dist.get_world_size()
    dist.all_gather_object(others, here)
    neighbours = tuple(pid for host, pid in others if host == here[0] and pid != here[1])
    return World(dist.get_rank(), dist.get_world_size(), neighbours)


def first_of_all() -> bool:
    """`World.first`, also where joining the others has failed."""
    return os.environ.get("RANK", "0") == "0"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def without_sync(model: nn.Module):
    """A context in which backward passes add to the gradients without sending them."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
