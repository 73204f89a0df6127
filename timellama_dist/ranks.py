"""Values that the ranks of a process group exchange; every rank must make each call."""

from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


def gathered(value: Any) -> list[Any]:
    """One value per rank, in the order of ranks; only this one's where there is no group."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def from_first_rank(value: T, device: torch.device | str) -> T:
    """The first rank's value.

    Args:
        value: this rank's; only the first one's counts.
        device: this rank's, on which NCCL sends.
    """
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, device=torch.device(device))
    return values[0]


def summed_over_ranks(sums: np.ndarray) -> np.ndarray:
    """The sum of a vector over all ranks; the vector itself where there is no group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    # NCCL reduces what is on the GPU only.
    backend = torch.distributed.get_backend()
    vector = torch.from_numpy(sums).to("cuda" if "nccl" in backend else "cpu")
    torch.distributed.all_reduce(vector)
    return vector.cpu().numpy()
