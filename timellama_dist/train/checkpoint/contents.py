"""Writes and reads a checkpoint's files: free of world size and ZeRO stage, no pickle.

A checkpoint folder holds `weights.safetensors` (fp32, by parameter name), `optimizer.safetensors`
(Adam's moments as `exp_avg.<name>` and `exp_avg_sq.<name>`), `best.safetensors` (the weights of the
best validation so far, so that every checkpoint holds the best and none is kept for it), with
`train.average_steps` also `average.safetensors` (the running mean, see `worker.average`), and
`state.json` (the position of the run, and the others' hashes: see `checkpoint.files`). The frozen
backbone is never saved, only its fingerprint. Random state, learning rate and place in the data
need no saving: they are functions of the position.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from timellama_dist.errors import CheckpointError
from timellama_dist.model.tensors import copy_tensors, read_tensors
from timellama_dist.train.checkpoint.files import seal
from timellama_dist.train.checkpoint.position import Position, read_position
from timellama_dist.train.checkpoint.state import (
    MOMENTS,
    TrainedState,
    Weights,
    make_moments,
    set_masters,
    set_optimizer_state,
    trained_parameters,
)

_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_BEST = "best.safetensors"


def write_checkpoint(
    folder: Path,
    state: TrainedState,
    position: Position,
    best: Weights | None,
    complete: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint into a folder of this machine; one rank calls.

    Args:
        folder: where to write; made if missing.
        state: what was gathered.
        position: the one that belongs to the weights.
        best: weights of the best validation so far.
        complete: writes further files that belong to the checkpoint.

    Raises:
        OSError, SafetensorError: the disk takes no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state.weights, folder / _WEIGHTS)
    save_file(state.moments, folder / _OPTIMIZER)
    if best is not None:
        save_file(best, folder / _BEST)
    if complete is not None:
        complete(folder)
    seal(folder, asdict(position))


def read_best(folder: Path) -> Weights | None:
    """The best weights that a checkpoint holds, if the run has seen a validation."""
    path = folder / _BEST
    return read_tensors(path) if path.exists() else None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model **before** DeepSpeed takes it over.

    Setting only the optimizer's masters afterwards would leave one forward pass on stale weights.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    path = folder / _WEIGHTS
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    copy_tensors(parameters, read_tensors(path), source=path)


def load_optimizer(engine: Any, folder: Path, *, past_shape: tuple[int, int, int]) -> None:
    """Put a checkpoint's masters, moments and step count into a fresh engine; every rank must call.

    In bf16 DeepSpeed has made its masters of rounded weights. ZeRO makes its moments at the first
    step, so one step with learning rate 0 on zeros comes first.

    Args:
        engine: made from a model that `load_weights` filled.
        folder: the checkpoint.
        past_shape: (B, L, C) of that step's input.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    path = folder / _OPTIMIZER
    moments = read_tensors(path)
    names = [f"{moment}.{name}" for name in trained_parameters(engine) for moment in MOMENTS]
    if lacking := [name for name in names if name not in moments]:
        raise CheckpointError(f"{path} lacks {lacking[0]}")
    updates = read_position(folder).updates
    if updates == 0:
        return
    make_moments(engine, past_shape)
    set_masters(engine, read_tensors(folder / _WEIGHTS))
    set_optimizer_state(engine, moments, updates)
