"""The processes that `torchrun` started, or this process alone."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
from torch import distributed, nn


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process and its place among those that train together.

    Attributes:
        device: The device of this process.
        rank: 0 .. count-1. Rank 0 writes the files.
        count: The number of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def gather(self, value: object) -> list:
        """Return the `value` of each process, in the order of their ranks. Every process must call this."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. Every process must call this."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags.item())

    def broadcast(self, module: nn.Module) -> None:
        """Copy parameters and buffers of `module` from the first process to all. Every process must call this."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes if `torchrun` started this one, with NCCL on GPUs and Gloo on the CPU."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(device, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
