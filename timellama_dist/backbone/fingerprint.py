"""Tells a frozen backbone from others of its shape: checkpoints and exported models hold none."""

from pathlib import Path

import torch
from transformers import LlamaModel

from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.backbone.weights import PretrainedWeights
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import CheckpointError
from timellama_dist.storage import Location


def backbone_fingerprint(config: RunConfig, folder: Path) -> str | None:
    """Hash what a run reads of its backbone's folder: the blocks used, the prompts' table.

    The hash is of the stored numbers, so device, precision and quantisation don't matter.

    Args:
        config: the run.
        folder: what `resolve_backbone` gave.

    Returns:
        None if nothing is read: no pretrained block, and no prompt in use.

    Raises:
        ConfigError: the folder's configuration cannot be used, see `read_config`.
        CheckpointError: a tensor is missing or unreadable.
    """
    names: list[str] = []
    if config.backbone.kind == "llama" and config.backbone.init == "pretrained":
        with torch.device("meta"):
            llama = LlamaModel(read_config(folder, config.backbone.num_blocks))
        names += [name for name, _ in llama.named_parameters() if not name.startswith("embed_")]
    if config.model.alignment or config.model.prefix:
        names.append("embed_tokens.weight")
    return PretrainedWeights(folder).sampled_sha256(names) if names else None


def check_backbone(
    config: RunConfig, folder: Path, expected: str | None, *, owner: str
) -> str | None:
    """Refuse another backbone than the one that something was trained with.

    Args:
        config: the run that trained it.
        folder: what `resolve_backbone` gave now.
        expected: what `backbone_fingerprint` gave then; None passes, as what is older has none.
        owner: what was trained, for the message.

    Returns:
        What `backbone_fingerprint` gives now.

    Raises:
        ConfigError: as `backbone_fingerprint`.
        CheckpointError: another backbone, or as `backbone_fingerprint`.
    """
    fingerprint = backbone_fingerprint(config, folder)
    if expected is not None and fingerprint != expected:
        raise CheckpointError(
            f"backbone.name: {config.backbone.name!r} has other weights now than those {owner} was "
            f"trained with: fingerprint {fingerprint}, not {expected} (read from {folder}); "
            "put the former ones back, or train anew"
        )
    return fingerprint


def find_backbone(config: RunConfig, expected: str | None, location: Location) -> Path:
    """Find the local folder of the backbone that an exported model was trained with.

    Args:
        config: the run that made it.
        expected: the fingerprint of its backbone, if it has one.
        location: the model's, for the message.

    Raises:
        CheckpointError: there is another backbone now.
        ConfigError: the backbone can't be had.
    """
    folder = resolve_backbone(config.backbone.name, config.backbone.revision)
    check_backbone(config, folder, expected, owner=f"the model in {location}")
    return folder
