"""Resolves a backbone's folder and reads its configuration, but no weight."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from timellama_dist.assets.catalog import BACKBONES
from timellama_dist.assets.fetch import fetch_backbone
from timellama_dist.assets.gguf import convert_gguf
from timellama_dist.errors import ConfigError

if TYPE_CHECKING:
    from transformers import LlamaConfig


def resolve_backbone(name: str, revision: str | None = None) -> Path:
    """Resolve a backbone's local folder; fetch or convert it if need be.

    Args:
        name: a known asset, a folder, a `.gguf` file or a hub name (`owner/name`).
        revision: branch, tag or commit; of a hub name only.

    Raises:
        ConfigError: the name is none of them, or its backbone cannot be fetched.
    """
    if name in BACKBONES:
        return fetch_backbone(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"backbone.name: no such file: {name}")
        return convert_gguf(path)
    accepted = f"a known backbone ({', '.join(sorted(BACKBONES))}), a folder, a .gguf file"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ConfigError(f"backbone.name: {name!r} is neither {accepted} nor a hub name")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            # No pickle (.bin): loading one runs whatever code it holds.
            allow_patterns=["model*.safetensors", "*.json", "tokenizer*"],
        )
    except Exception as error:  # the hub's client raises from several unrelated families
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"backbone.name: {name!r} is neither {accepted}, and could not be fetched from the hub"
            f"{f' at revision {revision!r}' if revision else ''}: {reason[0]}"
        ) from error
    return Path(folder)


def read_config(folder: str | Path, num_blocks: int | None = None) -> "LlamaConfig":
    """Read and check a backbone's configuration; no weight is read.

    Args:
        folder: what `resolve_backbone` gave.
        num_blocks: if given, the configuration is that of the first so many blocks.

    Raises:
        ConfigError: no unquantised model of the LLaMA architecture, or one of fewer blocks.
    """
    file = Path(folder) / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"backbone.name: no config.json in {folder}") from None
    except ValueError as error:
        raise ConfigError(f"backbone.name: {file} is not JSON: {error}") from None
    if raw.get("model_type") != "llama":
        raise ConfigError(
            f"backbone.name: {folder} has the architecture {raw.get('model_type')!r}; only 'llama' "
            "is supported"
        )
    if "quantization_config" in raw:
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(
            f"backbone.name: the weights in {folder} are quantised already ({method}); give the "
            "unquantised checkpoint and set backbone.quantization"
        )
    from transformers import LlamaConfig

    from timellama_dist.compat.transformers import forget_origin

    config = LlamaConfig.from_pretrained(folder)
    forget_origin(config)
    if num_blocks is not None:
        if not 1 <= num_blocks <= config.num_hidden_layers:
            most = config.num_hidden_layers
            raise ConfigError(
                key="backbone.num_blocks",
                must=f"be between 1 and {most} (the blocks of {Path(folder).name})",
                got=num_blocks,
            )
        config.num_hidden_layers = num_blocks
    return config
