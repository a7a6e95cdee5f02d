"""The gradient density of several processes: one all-reduce of M + 1 numbers per call."""

import torch
from torch import Tensor


def group_name(process_group: "torch.distributed.ProcessGroup | None") -> str | None:
    """Return the name of a group, which stands for it in the schemas of the operators.

    Raises:
        TypeError: `process_group` is not a process group that this process belongs to.
        RuntimeError: This PyTorch is built without torch.distributed.
    """
    if process_group is None:
        return None
    if not torch.distributed.is_available():
        raise RuntimeError("process_group must be None in a PyTorch built without torch.distributed, got a group")
    if not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup that this process belongs to, "
            f"got {process_group!r} of type {type(process_group).__name__}"
        )
    return process_group.group_name


def world() -> "torch.distributed.ProcessGroup | None":
    """Return the group of all processes, or None without an initialized torch.distributed."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.group.WORLD


def all_reduce(numbers: Tensor, group: str | None) -> Tensor:
    """Sum `numbers` in place over the processes of the group with the name `group`. None: leave them unchanged."""
    if group is not None:
        resolved = torch.distributed.distributed_c10d._resolve_process_group(group)
        torch.distributed.all_reduce(numbers, group=resolved)
    return numbers
