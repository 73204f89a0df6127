"""Writes and loads an exported model, with neither Ray nor DeepSpeed.

`card` owns what the model says of itself and its folder's layout; here are the weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from timellama_dist.backbone.fingerprint import find_backbone
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import CheckpointError
from timellama_dist.model.build import build_model
from timellama_dist.model.card import (
    ADAPTER,
    INTERVALS,
    SCHEMA_VERSION,
    WEIGHTS,
    ModelCard,
    file_sha256,
    local_folder,
    read_card,
    scalers_file,
)
from timellama_dist.model.inference import freeze_for_inference
from timellama_dist.model.tensors import copy_tensors, read_tensors
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.storage import Location, open_place

_BACKBONE = "backbone."
_MAPS = "shortcuts."


def save_model(
    model: TimeLlama,
    weights: Mapping[str, Tensor],
    folder: Path,
    card: ModelCard,
    scalers: Sequence[Location],
    quantiles: Sequence[np.ndarray] = (),
) -> None:
    """Write an exported model.

    Args:
        model: what was trained; only its structure is read, so it may be sharded.
        weights: every trained parameter, whole, by the model's names.
        folder: where to write; made if missing.
        card: what belongs to the weights.
        scalers: `series.parquet` of each prepared data set, which are copied.
        quantiles: quantiles of each data set's errors (`error_quantiles`), for intervals.

    Raises:
        CheckpointError: a weight is empty (a shard was handed in for a whole).
    """
    for name, weight in weights.items():
        if weight.numel() == 0:
            raise CheckpointError(f"cannot export {name}: it is empty (not gathered)")
    folder.mkdir(parents=True, exist_ok=True)
    files = [WEIGHTS]
    around = {n: w for n, w in weights.items() if not _in_adapter(model, n)}
    whole = {n: w.contiguous().cpu() for n, w in (around | _frozen_maps(model)).items()}
    save_file(whole, folder / WEIGHTS)
    for dataset, place in enumerate(scalers):
        files.append(scalers_file(dataset))
        (folder / files[-1]).write_bytes(open_place(place).read_bytes())
    if quantiles:
        files.append(INTERVALS)
        tensors = {str(n): torch.from_numpy(quantile) for n, quantile in enumerate(quantiles)}
        save_file(tensors, folder / INTERVALS)
    if isinstance(model.backbone, PeftModel):
        files.append(ADAPTER)
        adapter = {
            n.removeprefix(_BACKBONE): w for n, w in weights.items() if _in_adapter(model, n)
        }
        model.backbone.save_pretrained(str(folder / "adapter"), state_dict=adapter)
        # PEFT's template of a model card, with nothing filled in.
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
    content = {
        "schema_version": SCHEMA_VERSION,
        **asdict(card),
        "sha256": {name: file_sha256(folder / name) for name in files},
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def load_model(
    folder: Location,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    unpack: bool | None = None,
    prompts: Mapping[int, str] | None = None,
) -> tuple[TimeLlama, ModelCard]:
    """Rebuild an exported model, ready to forecast.

    Args:
        folder: what `save_model` wrote, a local path or a URI.
        device: where the model shall run.
        dtype: of all weights and of what they compute; in bfloat16 forecasts are rounder.
        unpack: keep 4-bit matrices unpacked in memory, which takes eight times theirs (in bfloat16
            four times) and gives the same forecasts sooner; on a CPU only, if not given.
        prompts: whole prompts of data sets, by number, instead of those of the training.

    Raises:
        CheckpointError: as `read_card`, or the weights or the backbone are not this model's.
        ConfigError: the model's backbone can't be had.
        DataError: the storage refuses.
    """
    with local_folder(folder) as local:
        model, card = _load(local, device, dtype, prompts or {})
    on_cpu = torch.device(device).type == "cpu"
    freeze_for_inference(model, unpack=on_cpu if unpack is None else unpack)
    return model, card


def _load(
    folder: Path, device: torch.device | str, dtype: torch.dtype, prompts: Mapping[int, str]
) -> tuple[TimeLlama, ModelCard]:
    """Rebuild the model as training left it."""
    card = read_card(folder)
    config = RunConfig.from_dict(card.config)
    if len(card.datasets) != len(config.data.parts):
        raise CheckpointError(
            f"{folder}/config.json is damaged: {len(card.datasets)} datasets, and "
            f"{len(config.data.parts)} in its configuration"
        )
    model = build_model(
        config,
        find_backbone(config, card.backbone, folder),
        num_channels=len(card.datasets[0].channels),
        prompts=[prompts.get(n, dataset.prompt) for n, dataset in enumerate(card.datasets)],
        dtype=dtype,
        device=device,
    )
    around = {
        n: p for n, p in model.named_parameters() if p.requires_grad and not _in_adapter(model, n)
    }
    copy_tensors(
        around | _frozen_maps(model), read_tensors(folder / WEIGHTS), source=folder / WEIGHTS
    )
    if isinstance(model.backbone, PeftModel):
        _load_adapter(model.backbone, folder / ADAPTER)
    # The trained parts are made and read in float32.
    return model.to(dtype), card


def _load_adapter(backbone: PeftModel, file: Path) -> None:
    result: Any = set_peft_model_state_dict(backbone, read_tensors(file))
    missing = [name for name in result.missing_keys if "dlora_" in name]
    if odd := [*missing, *result.unexpected_keys]:
        raise CheckpointError(f"{file} is of another configuration: {odd[0]}")


def _in_adapter(model: TimeLlama, name: str) -> bool:
    """Tell whether a trained parameter is one of PEFT's, which have a file of their own."""
    return isinstance(model.backbone, PeftModel) and name.startswith(_BACKBONE)


def _frozen_maps(model: TimeLlama) -> dict[str, Tensor]:
    """List the linear maps that aren't trained, by name."""
    return {name: buffer for name, buffer in model.named_buffers() if name.startswith(_MAPS)}
