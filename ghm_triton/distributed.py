"""The gradient density of several processes: one all-reduce of M + 1 numbers a call."""

import torch
from torch import Tensor


def group_name(process_group: "torch.distributed.ProcessGroup | None") -> str | None:
    """What operators take for a group: its name.

    Raises:
        TypeError: `process_group` is no process group.
        RuntimeError: This PyTorch has no distributed package, or this process is none of the group's.
    """
    if process_group is None:
        return None
    if not torch.distributed.is_available():
        raise RuntimeError("process_group needs a PyTorch that is built with torch.distributed")
    if not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup that this process belongs to, "
            f"got {process_group!r} of type {type(process_group).__name__}"
        )
    return process_group.group_name


def world(sync: bool) -> "torch.distributed.ProcessGroup | None":
    """The group of all processes, or None where there is one process only."""
    if not (sync and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.group.WORLD


def all_reduce(numbers: Tensor, group: str | None) -> Tensor:
    """Adds `numbers` up over the processes of the group named `group`, in place; None leaves them as they are."""
    if group is not None:
        resolved = torch.distributed.distributed_c10d._resolve_process_group(group)
        torch.distributed.all_reduce(numbers, group=resolved)
    return numbers
