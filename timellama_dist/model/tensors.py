"""Reads named tensors from safetensors and copies them into a model; names damage and mismatch."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from timellama_dist.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def copy_tensors(
    parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: Path
) -> None:
    """Copy tensors by name into parameters, which must be the same set with the same shapes.

    Args:
        parameters: what is filled.
        tensors: what was read.
        source: the file, for the message.

    Raises:
        CheckpointError: names or shapes differ; nothing was copied then.
    """
    if odd := sorted(set(parameters) ^ set(tensors)):
        raise CheckpointError(
            f"{source} is of another configuration: {len(odd)} parameters are in only one of "
            f"file and model, first {odd[0]}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source} is of another configuration: {name} has shape "
                f"{tuple(tensors[name].shape)}, the model wants {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
