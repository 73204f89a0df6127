"""Time-LlaMA: channels become tokens, a frozen LLaMA with D-LoRA encodes them, a head forecasts.

Shapes: B batch, C channels, L context, H horizon, D hidden, P prompt tokens.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from timellama_dist.backbone.load import (
    embedding_rows,
    load_backbone,
    load_tokenizer,
    num_elements,
)
from timellama_dist.config.schema import DLoraSection, RunConfig
from timellama_dist.dlora import DLoraConfig, DLoraModel
from timellama_dist.model.ablations import AttentionBlock, NoBackbone
from timellama_dist.model.alignment import PromptAlignment
from timellama_dist.model.linear_map import LinearShortcut
from timellama_dist.model.normalization import InstanceNorm


class TimeLlama(nn.Module):
    """The forecaster (eq. 2-4).

    Args:
        backbone: a transformers LlamaModel without embedding table, alone or wrapped by PEFT;
            called with `inputs_embeds` only.
        prompts: of each data set, the frozen embeddings of its prompt's tokens, shape (P, D).
        num_channels: C; any number may be forecast unless `affine`.
        context_len: L.
        horizon: H.
        attention: "causal" (as pretrained), "full" (every channel sees every other) or
            "independent" (each channel alone).
        alignment_heads: heads of the alignment to the prompt; None leaves the alignment out.
        prefix: put the prompt before the tokens that the backbone sees.
        dropout: on the tokens before the backbone and on its output.
        affine: learned scale and shift per channel in the instance normalisation.
        centre: what that subtracts: "mean" of the window, or "last" value.
        clip: take values of a window beyond this, either way, as this far.
        shortcuts: of each data set, the linear map that the LLM path adds to; that path starts at
            zero then.
    """

    def __init__(
        self,
        backbone: nn.Module,
        prompts: Sequence[Tensor],
        *,
        num_channels: int,
        context_len: int,
        horizon: int,
        attention: str = "full",
        alignment_heads: int | None = 8,
        prefix: bool = False,
        dropout: float = 0.0,
        affine: bool = False,
        centre: str = "mean",
        clip: float | None = None,
        shortcuts: Sequence[LinearShortcut] = (),
    ) -> None:
        super().__init__()
        hidden_size = prompts[0].shape[1]
        self.attention = attention
        self.prefix = prefix
        self.clip = clip
        self.norm = InstanceNorm(num_channels, affine=affine, centre=centre)
        self.tokenize = nn.Linear(context_len, hidden_size)
        self.align = (
            PromptAlignment(hidden_size, num_heads=alignment_heads) if alignment_heads else None
        )
        used = prompts if self.align is not None or prefix else ()
        for dataset, prompt_PD in enumerate(used):
            self.register_buffer(f"prompt_{dataset}_PD", prompt_PD)
        self.num_prompts = len(used)
        self.folded = False
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, horizon)
        self.shortcuts = nn.ModuleList(shortcuts)
        if shortcuts:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        """Forecast the steps after each window.

        Args:
            past_BLC: context, shape (B, L, C), in any unit; float32.
            dataset: number of the data set that the windows are of.

        Returns:
            The forecast in the same unit, shape (B, H, C), float32.
        """
        past_BLC = self._clipped(past_BLC)
        normed_BLC, statistics, affine = self.norm(past_BLC)
        # The weights' dtype may be bf16; the statistics stay in the input's.
        normed_BCL = normed_BLC.transpose(1, 2).to(self.tokenize.weight.dtype)
        # Contiguous: else torch multiplies in another order when the weight is no longer trained.
        token_BCD = self.tokenize(normed_BCL.contiguous())
        if self.align is not None:
            token_BCD = self._align(self.align, token_BCD, dataset)
        hidden_BCD = self._encode(self.dropout(token_BCD), dataset)
        normed_BHC = self.head(self.dropout(hidden_BCD)).transpose(1, 2).to(past_BLC.dtype)
        forecast_BHC = self.norm.inverse(normed_BHC, statistics, affine)
        if self.shortcuts:
            forecast_BHC = forecast_BHC + self._beyond(past_BLC, statistics.centre, dataset)
        return forecast_BHC

    def mapped(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        """What the linear map of a data set forecasts alone, shape (B, H, C)."""
        # The map gives any centre back.
        forecast_BHC: Tensor = self.shortcuts[dataset](
            self._clipped(past_BLC), torch.zeros_like(past_BLC[:, :1])
        )
        return forecast_BHC

    def balance_loss(self) -> Tensor:
        """The routers' load-balance loss in the last forward pass; 0 without D-LoRA."""
        dlora = self.dlora
        if dlora is None:
            return torch.zeros((), device=self.tokenize.weight.device)
        return dlora.balance_loss()

    def forget_graph(self) -> None:
        """Free what the routers still hold of a forward pass, after its backward pass."""
        if self.dlora is not None:
            self.dlora.forget_graph()

    def fold_prompts(self) -> None:
        """Compute once what the alignment makes of each prompt, for weights that stay."""
        if self.align is None:
            return
        for dataset in range(self.num_prompts):
            key, value = self.align.keys_and_values(self.get_buffer(f"prompt_{dataset}_PD"))
            self.register_buffer(f"prompt_{dataset}_key", key, persistent=False)
            self.register_buffer(f"prompt_{dataset}_value", value, persistent=False)
        self.folded = True

    @property
    def sees_one_token(self) -> bool:
        """Does the backbone see each channel's token alone?"""
        return self.attention == "independent" and not self.prefix

    @property
    def dlora(self) -> DLoraModel | None:
        """The adapter's tuner, if there is one."""
        tuner = self.backbone.base_model if isinstance(self.backbone, PeftModel) else None
        return tuner if isinstance(tuner, DLoraModel) else None

    def _beyond(self, past_BLC: Tensor, centre_B1C: Tensor, dataset: int) -> Tensor:
        """What the linear map of a data set forecasts beyond the centre, shape (B, H, C)."""
        each = self.shortcuts
        if not (self.training and isinstance(each[dataset].map_LH, nn.Parameter)):
            beyond_BHC: Tensor = each[dataset](past_BLC, centre_B1C)
            return beyond_BHC
        # All that trains takes part in each step: where a parameter has no gradient, ZeRO-3 steps
        # on the one it had before (DeepSpeed 0.19.8, zero/stage3.py).
        return torch.stack([one(past_BLC, centre_B1C) for one in each])[dataset]

    def _clipped(self, past_BLC: Tensor) -> Tensor:
        return past_BLC if self.clip is None else past_BLC.clamp(-self.clip, self.clip)

    def _align(self, align: PromptAlignment, token_BCD: Tensor, dataset: int) -> Tensor:
        if self.folded:
            key, value = (self.get_buffer(f"prompt_{dataset}_{part}") for part in ("key", "value"))
            return align.attend(token_BCD, key, value)
        aligned_BCD: Tensor = align(token_BCD, self.get_buffer(f"prompt_{dataset}_PD"))
        return aligned_BCD

    def _encode(self, token_BCD: Tensor, dataset: int) -> Tensor:
        alone = self.attention == "independent"
        seen_NTD = token_BCD.flatten(0, 1)[:, None] if alone else token_BCD
        num_tokens = seen_NTD.shape[1]
        if self.prefix:
            prompt_PD = self.get_buffer(f"prompt_{dataset}_PD").to(seen_NTD.dtype)
            prompt_NPD = prompt_PD.expand(len(seen_NTD), -1, -1)
            seen_NTD = torch.cat([prompt_NPD, seen_NTD], dim=1)
        output = self.backbone(inputs_embeds=seen_NTD, is_causal=self.attention != "full")
        return output.last_hidden_state[:, -num_tokens:].reshape(token_BCD.shape)


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
    """Time-LlaMA as a configuration describes it, with a backbone read from a local folder.

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

    Raises:
        ConfigError: the configuration doesn't fit the backbone.
        CheckpointError: the folder lacks a tensor.
    """
    tokenizer = load_tokenizer(backbone)
    embedded = [embedding_rows(backbone, tokenizer.encode(one)).to(device) for one in prompts]
    if config.backbone.kind == "llama":
        encoder = _adapted_llama(config, backbone, dtype=dtype, device=device, on_block=on_block)
    else:
        encoder = _stand_in(config, hidden_size=embedded[0].shape[1])
    model = TimeLlama(
        encoder,
        embedded,
        num_channels=num_channels,
        context_len=config.data.context_len,
        horizon=config.data.horizon,
        attention=config.backbone.attention,
        alignment_heads=config.model.alignment_heads if config.model.alignment else None,
        prefix=config.model.prefix,
        dropout=config.model.dropout,
        affine=config.model.affine,
        centre=config.model.centre,
        clip=config.model.clip,
        shortcuts=_shortcuts(config, len(prompts), num_channels, shortcuts),
    )
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
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that transformers 6 will drop.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(llama, dlora_config(config.dlora))


def _stand_in(config: RunConfig, *, hidden_size: int) -> nn.Module:
    torch.manual_seed(config.train.seed)
    if config.backbone.kind == "none":
        return NoBackbone()
    return AttentionBlock(hidden_size, num_heads=config.model.alignment_heads)


def _shortcuts(
    config: RunConfig, num_datasets: int, num_channels: int, maps: Sequence[Tensor] | None
) -> list[LinearShortcut]:
    if config.model.shortcut == "none":
        return []
    shape = (config.data.context_len, config.data.horizon)
    trainable = config.model.shortcut == "trainable"
    each = [num_channels] if config.model.shortcut_per_channel else []
    return [
        LinearShortcut(map_LH, shape, trainable=trainable)
        for map_LH in maps or [torch.zeros(*each, *shape)] * num_datasets
    ]


def path_shares(config: RunConfig) -> tuple[float, ...]:
    """Shares of the LLM path that a run beside a linear map chooses from; else only the whole.

    What the path has learnt may be right in kind and too large: a part of it forecasts better then.
    Not of a map that trains with it, and not where `affine` keeps the path from being linear in the
    head.
    """
    divisible = config.model.shortcut == "frozen" and not config.model.affine
    return (1.0, 0.75, 0.5, 0.25) if divisible else (1.0,)


def with_path_share(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Trained weights with which the LLM path forecasts that share of what it did."""
    return {
        name: weight * share if name.startswith("head.") else weight
        for name, weight in weights.items()
    }


def dlora_config(section: DLoraSection) -> DLoraConfig:
    """The adapter's configuration in PEFT's form."""
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
    """Trained, frozen and active (trained ones acting on one input) numbers of parameters.

    Packed 4-bit matrices count their elements, not their bytes.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(_elements(p) for p in model.parameters() if not p.requires_grad)
    active = trainable
    if model.dlora is not None:
        adapter = sum(p.numel() for n, p in model.named_parameters() if "dlora_" in n)
        active += model.dlora.active_parameters() - adapter
    return {"trainable": trainable, "frozen": frozen, "active": active}


def _elements(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else num_elements(parameter)
