"""The exported model: a folder that loads with neither Ray nor DeepSpeed.

It holds `config.json` (the run's configuration with the backbone's name and revision, the data's
channels, frequency and prompt, a sha256 per file), `timellama.safetensors` (the trained parts
around the backbone), `adapter/` (D-LoRA in PEFT's own format) and `series.parquet` (the scaler of
each series). The frozen backbone is not in it.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import CheckpointError
from timellama_dist.modeling.backbone import resolve_backbone
from timellama_dist.modeling.tensors import copy_tensors, read_tensors
from timellama_dist.modeling.timellama import TimeLlama, build_model

SCHEMA_VERSION = 1
SCALERS = "series.parquet"
_WEIGHTS = "timellama.safetensors"
_ADAPTER = "adapter/adapter_model.safetensors"
_BACKBONE = "backbone."


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What an exported model says of itself beside its weights."""

    config: dict[str, Any]
    """The run's configuration (`RunConfig.to_dict`)."""
    channels: list[str]
    """Names of the channels, in the model's order."""
    frequency: str
    """Length of a step as a pandas offset alias."""
    prompt: str
    """The whole prompt."""
    season_len: int
    """Steps of the data's main season."""


def save_model(
    model: TimeLlama, weights: Mapping[str, Tensor], folder: Path, card: ModelCard, scalers: Path
) -> None:
    """Write an exported model.

    Args:
        model: what was trained; only its structure is read, so it may be sharded.
        weights: every trained parameter, whole, by the model's names.
        folder: where to write; made if missing.
        card: what belongs to the weights.
        scalers: the prepared data's `series.parquet`, which is copied.

    Raises:
        CheckpointError: a weight is empty (a shard was handed in for a whole).
    """
    for name, weight in weights.items():
        if weight.numel() == 0:
            raise CheckpointError(f"cannot export {name}: it is empty (not gathered)")
    folder.mkdir(parents=True, exist_ok=True)
    around = {n: w.contiguous() for n, w in weights.items() if not n.startswith(_BACKBONE)}
    save_file(around, folder / _WEIGHTS)
    shutil.copyfile(scalers, folder / SCALERS)
    files = [_WEIGHTS, SCALERS]
    if isinstance(model.backbone, PeftModel):
        adapter = {
            n.removeprefix(_BACKBONE): w for n, w in weights.items() if n.startswith(_BACKBONE)
        }
        with warnings.catch_warnings():
            # PEFT looks for the base model's card at a hub; the base is ours to name.
            warnings.simplefilter("ignore")
            model.backbone.save_pretrained(str(folder / "adapter"), state_dict=adapter)
        # A template of a model card with nothing filled in.
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
        files.append(_ADAPTER)
    content = {
        "schema_version": SCHEMA_VERSION,
        **asdict(card),
        "sha256": {name: _sha256(folder / name) for name in files},
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_card(folder: Path) -> ModelCard:
    """What an exported model says of itself; its files' hashes are checked.

    Raises:
        CheckpointError: no exported model there, an unknown schema version, a damaged file.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} holds no exported model: {error}") from error
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}/config.json: schema_version must be {SCHEMA_VERSION}, got {version!r}"
        )
    for name, expected in content.pop("sha256").items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}/config.json names a file outside of it: {name}")
        found = _sha256(folder / name)
        if found != expected:
            raise CheckpointError(f"{folder / name} is damaged: sha256 {found}, not {expected}")
    return ModelCard(**content)


def load_model(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[TimeLlama, ModelCard]:
    """Rebuild an exported model, ready to forecast.

    Args:
        folder: what `save_model` wrote.
        device: where it shall run.
        dtype: of the frozen parts.

    Raises:
        CheckpointError: as `read_card`, or the weights are not this model's.
        ConfigError: its backbone can't be had.
    """
    folder = Path(folder)
    card = read_card(folder)
    config = RunConfig.from_dict(card.config)
    model = build_model(
        config,
        resolve_backbone(config.backbone.name, config.backbone.revision),
        num_channels=len(card.channels),
        prompt=card.prompt,
        dtype=dtype,
        device=device,
    )
    around = {
        n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(_BACKBONE)
    }
    copy_tensors(around, read_tensors(folder / _WEIGHTS), source=folder / _WEIGHTS)
    if isinstance(model.backbone, PeftModel):
        result: Any = set_peft_model_state_dict(model.backbone, read_tensors(folder / _ADAPTER))
        absent = [name for name in result.missing_keys if "dlora_" in name]
        if odd := [*absent, *result.unexpected_keys]:
            raise CheckpointError(f"{folder / _ADAPTER} is of another configuration: {odd[0]}")
    model.requires_grad_(False)
    return model.eval(), card


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
