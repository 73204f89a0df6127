"""The exported model: a folder that loads with neither Ray nor DeepSpeed.

It holds `config.json` (the run's configuration with the backbone's name and revision, that
backbone's fingerprint, each data set's channels, frequency and prompt, a sha256 per file),
`timellama.safetensors` (the trained parts around the backbone), `adapter/` (D-LoRA in PEFT's own
format), `series-<n>.parquet` for data set n (the scaler of each series) and `intervals.safetensors`
(how far forecasts were from the truth). The frozen backbone is not in it.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import CheckpointError, ConfigError
from timellama_dist.modeling.backbone_folder import resolve_backbone
from timellama_dist.modeling.fingerprint import check_backbone
from timellama_dist.modeling.inference import freeze_for_inference
from timellama_dist.modeling.tensors import copy_tensors, read_tensors
from timellama_dist.modeling.timellama import TimeLlama, build_model
from timellama_dist.storage import Location, copy_tree, open_place

SCHEMA_VERSION = 2
_WEIGHTS = "timellama.safetensors"
_INTERVALS = "intervals.safetensors"
_ADAPTER = "adapter/adapter_model.safetensors"
_BACKBONE = "backbone."


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """What an exported model says of one data set it was trained on."""

    name: str
    context_len: int
    """Steps of its own past, at most the model's; the model takes what is before as missing."""
    horizon: int
    """Steps of its own forecasts, at most the model's."""
    channels: list[str]
    """Names of the channels, in the model's order."""
    frequency: str
    """Length of a step as a pandas offset alias."""
    prompt: str
    """The whole prompt."""
    season_len: int
    """Steps of the data's main season."""
    options: dict[str, Any]
    """How its table was read, and what was done about what was wrong with it."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What an exported model says of itself beside its weights."""

    config: dict[str, Any]
    """The run's configuration (`RunConfig.to_dict`)."""
    datasets: list[DatasetCard]
    """In the order of the numbers that the model is called with."""
    backbone: str | None = None
    """`backbone_fingerprint` of what it was trained with; older models have none."""

    def named(self, dataset: str | None) -> DatasetCard:
        """The data set of a name, or the only one if none is given.

        Raises:
            ConfigError: it knows none of that name, or several and none was named.
        """
        cards = {one.name: one for one in self.datasets}
        names = ", ".join(cards)
        if dataset is None and len(cards) > 1:
            raise ConfigError(f"dataset must be given, for the model knows several: {names}")
        name = next(iter(cards)) if dataset is None else dataset
        if name not in cards:
            raise ConfigError(f"dataset must be one of {names}, got {name!r}")
        return cards[name]


def scalers_file(dataset: int) -> str:
    """Where in the folder the scalers of a data set are."""
    return f"series-{dataset}.parquet"


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
        quantiles: of each data set's errors (`error_quantiles`), for intervals.

    Raises:
        CheckpointError: a weight is empty (a shard was handed in for a whole).
    """
    for name, weight in weights.items():
        if weight.numel() == 0:
            raise CheckpointError(f"cannot export {name}: it is empty (not gathered)")
    folder.mkdir(parents=True, exist_ok=True)
    around = {n: w for n, w in weights.items() if not _in_adapter(model, n)}
    whole = {n: w.contiguous().cpu() for n, w in (around | _frozen_maps(model)).items()}
    save_file(whole, folder / _WEIGHTS)
    files = [_WEIGHTS]
    for dataset, place in enumerate(scalers):
        files.append(scalers_file(dataset))
        (folder / files[-1]).write_bytes(open_place(place).read_bytes())
    if quantiles:
        named = {str(number): torch.from_numpy(one) for number, one in enumerate(quantiles)}
        save_file(named, folder / _INTERVALS)
        files.append(_INTERVALS)
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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no exported model: {error}") from error
    version = content.pop("schema_version", None) if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}/config.json: schema_version must be {SCHEMA_VERSION}, got {version!r}; "
            "load it with the version of timellama_dist that exported it"
        )
    try:
        hashes: dict[str, str] = dict(content.pop("sha256"))
        datasets = [DatasetCard(**one) for one in content.pop("datasets")]
        card = ModelCard(**content, datasets=datasets)
        files = [_WEIGHTS, *map(scalers_file, range(len(datasets)))]
        files += [_ADAPTER] if card.config["dlora"]["enabled"] else []
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {error}") from error
    if absent := [name for name in files if name not in hashes]:
        raise CheckpointError(f"{folder}/config.json lacks the sha256 of {absent[0]}")
    for name, expected in hashes.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}/config.json names a file outside of it: {name}")
        found = _sha256(folder / name)
        if found != expected:
            raise CheckpointError(f"{folder / name} is damaged: sha256 {found}, not {expected}")
    return card


def find_backbone(card: ModelCard, location: Location) -> Path:
    """The local folder of the backbone that an exported model was trained with.

    Args:
        card: the model's.
        location: the model's, for the message.

    Raises:
        CheckpointError: there is another backbone now.
        ConfigError: it can't be had.
    """
    config = RunConfig.from_dict(card.config)
    folder = resolve_backbone(config.backbone.name, config.backbone.revision)
    check_backbone(config, folder, card.backbone, owner=f"the model in {location}")
    return folder


def read_quantiles(folder: Path) -> list[np.ndarray]:
    """Quantiles of each data set's errors; none where the model was exported without.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / _INTERVALS).exists():
        return []
    found = read_tensors(folder / _INTERVALS)
    return [found[str(number)].numpy() for number in range(len(found))]


def fingerprint(folder: Path) -> str:
    """What tells an exported model from any other: a hash of its card, which has its files'."""
    return _sha256(folder / "config.json")[:16]


@contextmanager
def local_folder(location: Location) -> Iterator[Path]:
    """An exported model's folder on this machine: itself, or a copy for as long as the block lasts.

    Raises:
        CheckpointError: no exported model is there; or the block's, with the place's own name.
        DataError: the storage refuses.
    """
    place = open_place(location)
    if place.is_local:
        yield Path(place.path)
        return
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{place} holds no exported model: no config.json")
    with tempfile.TemporaryDirectory(prefix="timellama-model-") as scratch:
        copy_tree(place, open_place(scratch))
        try:
            yield Path(scratch)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(scratch, str(place))) from error


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
        device: where it shall run.
        dtype: of all weights and of what they compute; in bfloat16 forecasts are rounder.
        unpack: keep 4-bit matrices unpacked in memory, which takes eight times theirs (in bfloat16
            four times) and gives the same forecasts sooner; on a CPU only, if not given.
        prompts: whole prompts of data sets, by number, instead of those it was trained with.

    Raises:
        CheckpointError: as `read_card`, or the weights or the backbone are not this model's.
        ConfigError: its backbone can't be had.
        DataError: the storage refuses.
    """
    with local_folder(folder) as here:
        model, card = _load(here, device, dtype, prompts or {})
    on_cpu = torch.device(device).type == "cpu"
    freeze_for_inference(model, unpack=on_cpu if unpack is None else unpack)
    return model, card


def _load(
    folder: Path, device: torch.device | str, dtype: torch.dtype, prompts: Mapping[int, str]
) -> tuple[TimeLlama, ModelCard]:
    """The model as training left it, and what it says of itself."""
    card = read_card(folder)
    config = RunConfig.from_dict(card.config)
    if len(card.datasets) != len(config.data.parts):
        raise CheckpointError(
            f"{folder}/config.json is damaged: {len(card.datasets)} datasets, and "
            f"{len(config.data.parts)} in its configuration"
        )
    model = build_model(
        config,
        find_backbone(card, folder),
        num_channels=len(card.datasets[0].channels),
        prompts=[prompts.get(n, one.prompt) for n, one in enumerate(card.datasets)],
        dtype=dtype,
        device=device,
    )
    around = {
        n: p for n, p in model.named_parameters() if p.requires_grad and not _in_adapter(model, n)
    }
    copy_tensors(
        around | _frozen_maps(model), read_tensors(folder / _WEIGHTS), source=folder / _WEIGHTS
    )
    if isinstance(model.backbone, PeftModel):
        result: Any = set_peft_model_state_dict(model.backbone, read_tensors(folder / _ADAPTER))
        absent = [name for name in result.missing_keys if "dlora_" in name]
        if odd := [*absent, *result.unexpected_keys]:
            raise CheckpointError(f"{folder / _ADAPTER} is of another configuration: {odd[0]}")
    # The trained parts are made and read in float32.
    return model.to(dtype), card


def _in_adapter(model: TimeLlama, name: str) -> bool:
    """Is this trained parameter one of PEFT's, which have a file of their own?"""
    return isinstance(model.backbone, PeftModel) and name.startswith(_BACKBONE)


def _frozen_maps(model: TimeLlama) -> dict[str, Tensor]:
    """The linear shortcuts that aren't trained, by name."""
    return {f"shortcuts.{name}": map_LH for name, map_LH in model.shortcuts.named_buffers()}


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
