"""The processes of `torchrun`, or the only one."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
from torch import distributed


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        device: of this process.
        rank: 0 .. count-1; 0 writes the files.
        count: 1 where there are no others.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: object) -> list:
        """`value` of all processes, in the order of their ranks; all have to call this."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Join the others where `torchrun` started this process: nccl on GPUs, gloo on the CPU."""
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
