"""An exported model's card and its folder's files; read without torch.

The folder holds `config.json` (the run's configuration with the backbone's name and revision, that
backbone's fingerprint, each data set's channels, frequency and prompt, a sha256 per file),
`timellama.safetensors` (the trained parts around the backbone), `adapter/` (D-LoRA in PEFT's own
format), `series-<n>.parquet` for data set n (the scaler of each series) and `intervals.safetensors`
(how far forecasts were from the truth). The frozen backbone is not in it.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from timellama_dist.errors import CheckpointError, ConfigError
from timellama_dist.storage import Location, copy_tree, open_place

SCHEMA_VERSION = 2
WEIGHTS = "timellama.safetensors"
INTERVALS = "intervals.safetensors"
ADAPTER = "adapter/adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """One data set that an exported model was trained on."""

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
    """What belongs to an exported model's weights: its configuration, data sets and backbone."""

    config: dict[str, Any]
    """The run's configuration (`RunConfig.to_dict`)."""
    datasets: list[DatasetCard]
    """In the order of the numbers that the model is called with."""
    backbone: str | None = None
    """`backbone_fingerprint` of what it was trained with; older models have none."""

    def named(self, dataset: str | None) -> DatasetCard:
        """Find a data set by name; the only one if no name is given.

        Raises:
            ConfigError: none has that name, or there are several and no name is given.
        """
        cards = {dataset.name: dataset for dataset in self.datasets}
        names = ", ".join(cards)
        if dataset is None and len(cards) > 1:
            raise ConfigError(key="dataset", must=f"be given, for the model knows several: {names}")
        name = next(iter(cards)) if dataset is None else dataset
        if name not in cards:
            raise ConfigError(key="dataset", must=f"be one of {names}", got=name)
        return cards[name]


def scalers_file(dataset: int) -> str:
    """Name the file of a data set's scalers."""
    return f"series-{dataset}.parquet"


def read_card(folder: Path) -> ModelCard:
    """Read an exported model's card and check its files' hashes.

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
        datasets = [DatasetCard(**fields) for fields in content.pop("datasets")]
        card = ModelCard(**content, datasets=datasets)
        files = [WEIGHTS, *map(scalers_file, range(len(datasets)))]
        files += [ADAPTER] if card.config["dlora"]["enabled"] else []
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {error}") from error
    if absent := [name for name in files if name not in hashes]:
        raise CheckpointError(f"{folder}/config.json lacks the sha256 of {absent[0]}")
    for name, expected in hashes.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}/config.json names a file outside of it: {name}")
        actual = file_sha256(folder / name)
        if actual != expected:
            raise CheckpointError(f"{folder / name} is damaged: sha256 {actual}, not {expected}")
    return card


def read_quantiles(folder: Path) -> list[np.ndarray]:
    """Read the quantiles of each data set's errors; none where the model was exported without.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / INTERVALS).exists():
        return []
    try:
        tensors = load_file(folder / INTERVALS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / INTERVALS}: {error}") from error
    return [tensors[str(number)] for number in range(len(tensors))]


def model_fingerprint(folder: Path) -> str:
    """Hash an exported model's card, which holds its files' hashes: no other model has the same."""
    return file_sha256(folder / "config.json")[:16]


@contextmanager
def local_folder(location: Location) -> Iterator[Path]:
    """Give an exported model's folder on this machine: itself, or a copy until the block ends.

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


def file_sha256(path: Path) -> str:
    """Hash a file.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
