"""Makes a model from a run's configuration and a backbone's folder, and counts its parameters."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from timellama_dist.backbone.load import (
    embedding_rows,
    load_backbone,
    load_tokenizer,
    num_elements,
)
from timellama_dist.compat.peft import wrap_with_adapter
from timellama_dist.config.schema import DLoraSection, RunConfig
from timellama_dist.dlora import DLoraConfig
from timellama_dist.model.ablations import AttentionBlock, NoBackbone
from timellama_dist.model.linear_map import LinearMap
from timellama_dist.model.linear_plus_llm import LinearPlusLLM
from timellama_dist.model.timellama import TimeLlama


def build_model(
    config: RunConfig,
    backbone: Path,
    *,
    num_channels: int,
    prompts: Sequence[str],
    shortcuts: Sequence[Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_block: Callable[[int, LlamaDecoderLayer], None] | None = None,
) -> TimeLlama:
    """Build Time-LlaMA as a configuration describes it, on a backbone in a local folder.

    The seed decides every trained weight; the frozen ones come from the folder.

    Args:
        config: the run.
        backbone: folder of a LLaMA-architecture model (`resolve_backbone`).
        num_channels: C of the data; it matters to what is learnt per channel only.
        prompts: the whole prompt of each data set (`task_prompt`).
        shortcuts: the linear map of each data set (`model.linear_fit`), if `model.shortcut`; zeros
            if not given, for weights that are read later.
        dtype: of the frozen norms and of the 4-bit matrices' products.
        device: where the model is built.
        on_block: as in `load_backbone`.

    Returns:
        A `LinearPlusLLM` where a linear map or `model.clip` is configured, else a `TimeLlama`.

    Raises:
        ConfigError: the configuration doesn't fit the backbone.
        CheckpointError: the folder lacks a tensor.
    """
    tokenizer = load_tokenizer(backbone)
    embedded = [embedding_rows(backbone, tokenizer.encode(prompt)).to(device) for prompt in prompts]
    if config.backbone.kind == "llama":
        encoder = _adapted_llama(config, backbone, dtype=dtype, device=device, on_block=on_block)
    else:
        encoder = _stand_in(config, hidden_size=embedded[0].shape[1])
    options: dict[str, Any] = {
        "num_channels": num_channels,
        "context_len": config.data.context_len,
        "horizon": config.data.horizon,
        "attention": config.backbone.attention,
        "alignment_heads": config.model.alignment_heads if config.model.alignment else None,
        "prefix": config.model.prefix,
        "dropout": config.model.dropout,
        "affine": config.model.affine,
        "centre": config.model.centre,
    }
    if config.model.shortcut == "none" and config.model.clip is None:
        return TimeLlama(encoder, embedded, **options).to(device)
    maps = _linear_maps(config, len(prompts), num_channels, shortcuts)
    model = LinearPlusLLM(encoder, embedded, maps=maps, clip=config.model.clip, **options)
    return model.to(device)


def _adapted_llama(
    config: RunConfig,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    on_block: Callable[[int, LlamaDecoderLayer], None] | None,
) -> nn.Module:
    llama = load_backbone(
        folder,
        num_blocks=config.backbone.num_blocks,
        quantization=config.backbone.quantization,
        dtype=dtype,
        device=device,
        init=config.backbone.init,
        seed=config.train.seed,
        on_block=on_block,
    )
    torch.manual_seed(config.train.seed)
    if config.train.gradient_checkpointing:
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.dlora.enabled:
        return llama
    return wrap_with_adapter(llama, dlora_config(config.dlora))


def _stand_in(config: RunConfig, *, hidden_size: int) -> nn.Module:
    torch.manual_seed(config.train.seed)
    if config.backbone.kind == "none":
        return NoBackbone()
    return AttentionBlock(hidden_size, num_heads=config.model.alignment_heads)


def _linear_maps(
    config: RunConfig, num_datasets: int, num_channels: int, maps: Sequence[Tensor] | None
) -> list[LinearMap]:
    if config.model.shortcut == "none":
        return []
    shape = (config.data.context_len, config.data.horizon)
    trainable = config.model.shortcut == "trainable"
    per_channel = [num_channels] if config.model.shortcut_per_channel else []
    return [
        LinearMap(map_LH, shape, trainable=trainable)
        for map_LH in maps or [torch.zeros(*per_channel, *shape)] * num_datasets
    ]


def dlora_config(section: DLoraSection) -> DLoraConfig:
    """Convert the adapter's configuration to PEFT's form."""
    return DLoraConfig(
        num_experts=section.num_experts,
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        top_n=section.top_n,
        scope=section.scope,
        gate=section.gate,
        pooling=section.pooling,
        router_activation=section.router_activation,
        target_modules=section.targets,
    )


def parameter_counts(model: TimeLlama) -> dict[str, int]:
    """Count trainable, frozen and active parameters (trainable ones that act on one input).

    Packed 4-bit matrices count their elements, not their bytes.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(_num_weights(p) for p in model.parameters() if not p.requires_grad)
    active = trainable
    if model.dlora is not None:
        adapter = sum(p.numel() for n, p in model.named_parameters() if "dlora_" in n)
        active += model.dlora.active_parameters() - adapter
    return {"trainable": trainable, "frozen": frozen, "active": active}


def _num_weights(parameter: nn.Parameter) -> int:
    """Count a parameter's weights, of a packed 4-bit matrix too."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else num_elements(parameter)
