"""Builds the model of a run as a DeepSpeed engine, and restores it from a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from timellama_dist.backbone.fingerprint import check_backbone
from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.deepspeed import batch_sizes, precision
from timellama_dist.config.schema import RunConfig
from timellama_dist.model.build import build_model, parameter_counts
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.contents import load_optimizer, load_weights, read_best
from timellama_dist.train.checkpoint.position import Position, read_position
from timellama_dist.train.checkpoint.state import Weights
from timellama_dist.train.worker.data import RunData
from timellama_dist.train.worker.engine import block_sharder, initialize_engine
from timellama_dist.train.worker.spec import WorkerSpec


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model that DeepSpeed has taken over, with what can't be asked of it any more."""

    engine: Any
    parameters: dict[str, int]
    """Counts: "trainable", "frozen" and "active"."""
    frozen_bytes: int
    """Bytes that a process without sharding would hold of the frozen part."""
    backbone: str | None
    """Fingerprint of the backbone."""


def build(
    spec: WorkerSpec, config: RunConfig, data: RunData, device: torch.device, folder: Path | None
) -> BuiltModel:
    """Build the model and give it to DeepSpeed; every rank must call.

    Args:
        spec: what the driver has resolved.
        config: the run.
        data: its data sets.
        device: this rank's.
        folder: the checkpoint whose weights it gets; None for new ones.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model or backbone.
    """
    backbone = resolve_backbone(config.backbone.name, config.backbone.revision)
    expected = None if folder is None else read_position(folder).backbone
    fingerprint = check_backbone(config, backbone, expected, owner="this run")
    # An elastic run learns only now how many workers it has.
    ds_config = spec.deepspeed | batch_sizes(config, data.world_size)
    in_bf16 = precision(config, use_gpu=spec.use_gpu) == "bf16"
    model = build_model(
        config,
        backbone,
        num_channels=data.manifests[0].num_channels,
        prompts=[dataset.prompt for dataset in data.sets],
        shortcuts=_read_shortcuts(spec.shortcuts),
        dtype=torch.bfloat16 if in_bf16 else torch.float32,
        device=device,
        on_block=block_sharder(ds_config),
    )
    if folder is not None:
        load_weights(model, folder)
    counts, whole_bytes = parameter_counts(model), frozen_bytes(model, unsharded=True)
    return BuiltModel(
        engine=initialize_engine(model, ds_config),
        parameters=counts,
        frozen_bytes=whole_bytes,
        backbone=fingerprint,
    )


def restore(
    model: BuiltModel, config: RunConfig, data: RunData, folder: Path | None
) -> tuple[Position, Weights | None]:
    """Put a checkpoint's optimizer into the engine; every rank must call.

    Returns:
        Where the run stands, and its best weights so far; without a checkpoint the beginning.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    if folder is None:
        hashes = [manifest.content_hash for manifest in data.manifests]
        return Position(data=hashes, backbone=model.backbone), None
    micro = config.train.micro_batch_size
    shape = (micro, config.data.context_len, data.manifests[0].num_channels)
    load_optimizer(model.engine, folder, past_shape=shape)
    # An older checkpoint has no fingerprint.
    return replace(read_position(folder), backbone=model.backbone), read_best(folder)


def _read_shortcuts(file: str | None) -> list[Tensor] | None:
    """The linear maps of the data sets in their order, if there is a file of them."""
    if file is None:
        return None
    maps = load(open_place(file).read_bytes())
    return [maps[str(number)] for number in range(len(maps))]
