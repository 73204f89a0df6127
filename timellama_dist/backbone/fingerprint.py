"""Tells a frozen backbone from any other of the same shape: checkpoints and models hold none."""

from pathlib import Path

import torch
from transformers import LlamaModel

from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.backbone.weights import Checkpoint
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import CheckpointError
from timellama_dist.storage import Location


def backbone_fingerprint(config: RunConfig, folder: Path) -> str | None:
    """A hash of what a run reads of its backbone's folder: the blocks used, the prompts' table.

    It is of the stored numbers, so device, precision and quantisation don't matter.

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
    return Checkpoint(folder).fingerprint(names) if names else None


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
    found = backbone_fingerprint(config, folder)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"backbone.name: {config.backbone.name!r} has other weights now than those {owner} was "
            f"trained with: fingerprint {found}, not {expected} (read from {folder}); put the "
            "former ones back, or train anew"
        )
    return found


def find_backbone(config: RunConfig, expected: str | None, location: Location) -> Path:
    """The local folder of the backbone that an exported model was trained with.

    Args:
        config: the run that made it.
        expected: the fingerprint of its backbone, if it has one.
        location: the model's, for the message.

    Raises:
        CheckpointError: there is another backbone now.
        ConfigError: it can't be had.
    """
    folder = resolve_backbone(config.backbone.name, config.backbone.revision)
    check_backbone(config, folder, expected, owner=f"the model in {location}")
    return folder
