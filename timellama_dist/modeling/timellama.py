"""Time-LlaMA: channels become tokens, a frozen LLaMA with D-LoRA encodes them, a head forecasts.

Shapes: B batch, C channels, L context, H horizon, D hidden, P prompt tokens.
"""

import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from timellama_dist.config.schema import DLoraSection, RunConfig
from timellama_dist.dlora import DLoraConfig, DLoraModel
from timellama_dist.dlora.config import LLAMA_LINEARS
from timellama_dist.modeling.alignment import PromptAlignment
from timellama_dist.modeling.backbone import embedding_rows, load_backbone, load_tokenizer
from timellama_dist.modeling.normalization import InstanceNorm


class TimeLlama(nn.Module):
    """The forecaster (eq. 2-4).

    Args:
        backbone: a transformers LlamaModel without embedding table, alone or wrapped by PEFT;
            called with `inputs_embeds` only.
        prompt_PD: frozen embeddings of the prompt's tokens, shape (P, D).
        num_channels: C; any number may be forecast unless `affine`.
        context_len: L.
        horizon: H.
        attention: "causal" (as pretrained), "full" (every channel sees every other) or
            "independent" (each channel alone).
        alignment_heads: heads of the alignment to the prompt; None leaves the alignment out.
        dropout: on the tokens before the backbone and on its output.
        affine: learned scale and shift per channel in the instance normalisation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        prompt_PD: Tensor,
        *,
        num_channels: int,
        context_len: int,
        horizon: int,
        attention: str = "full",
        alignment_heads: int | None = 8,
        dropout: float = 0.0,
        affine: bool = False,
    ) -> None:
        super().__init__()
        hidden_size = prompt_PD.shape[1]
        self.attention = attention
        self.norm = InstanceNorm(num_channels, affine=affine)
        self.tokenize = nn.Linear(context_len, hidden_size)
        self.align = (
            PromptAlignment(prompt_PD, num_heads=alignment_heads) if alignment_heads else None
        )
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, horizon)

    def forward(self, past_BLC: Tensor) -> Tensor:
        """Forecast the steps after each window.

        Args:
            past_BLC: context, shape (B, L, C), in any unit; float32.

        Returns:
            The forecast in the same unit, shape (B, H, C), float32.
        """
        normed_BLC, statistics, affine = self.norm(past_BLC)
        # The weights' dtype may be bf16; the statistics stay in the input's.
        token_BCD = self.tokenize(normed_BLC.transpose(1, 2).to(self.tokenize.weight.dtype))
        if self.align is not None:
            token_BCD = self.align(token_BCD)
        hidden_BCD = self._encode(self.dropout(token_BCD))
        forecast_BHC = self.head(self.dropout(hidden_BCD)).transpose(1, 2)
        return self.norm.inverse(forecast_BHC.to(past_BLC.dtype), statistics, affine)

    def balance_loss(self) -> Tensor:
        """The routers' load-balance loss in the last forward pass; 0 without D-LoRA."""
        dlora = self.dlora
        if dlora is None:
            return torch.zeros((), device=self.tokenize.weight.device)
        return dlora.balance_loss()

    @property
    def dlora(self) -> DLoraModel | None:
        """The adapter's tuner, if there is one."""
        tuner = self.backbone.base_model if isinstance(self.backbone, PeftModel) else None
        return tuner if isinstance(tuner, DLoraModel) else None

    def _encode(self, token_BCD: Tensor) -> Tensor:
        if self.attention == "independent":
            alone = token_BCD.flatten(0, 1)[:, None]
            return self.backbone(inputs_embeds=alone).last_hidden_state.view_as(token_BCD)
        output = self.backbone(inputs_embeds=token_BCD, is_causal=self.attention == "causal")
        return output.last_hidden_state


def build_model(
    config: RunConfig,
    backbone: Path,
    *,
    num_channels: int,
    prompt: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> TimeLlama:
    """Time-LlaMA as a configuration describes it, with a backbone read from a local folder.

    The seed decides every trained weight; the frozen ones come from the folder.

    Args:
        config: the run.
        backbone: folder of a LLaMA-architecture model (`resolve_backbone`).
        num_channels: C of the data.
        prompt: the whole prompt (`task_prompt`).
        dtype: of the frozen norms and of the 4-bit matrices' products.
        device: where the model is built.

    Raises:
        ConfigError: the configuration doesn't fit the backbone.
        CheckpointError: the folder lacks a tensor.
    """
    tokens = load_tokenizer(backbone).encode(prompt)
    prompt_PD = embedding_rows(backbone, tokens).to(device)
    llama = load_backbone(
        backbone,
        num_blocks=config.backbone.num_blocks,
        quantization=config.backbone.quantization,
        dtype=dtype,
        device=device,
        init=config.backbone.init,
        seed=config.train.seed,
    )
    torch.manual_seed(config.train.seed)
    if config.train.gradient_checkpointing:
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    adapted: nn.Module = llama
    if config.dlora.enabled:
        with warnings.catch_warnings():
            # PEFT asks transformers by a name that transformers 6 will drop.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(llama, dlora_config(config.dlora))
    model = TimeLlama(
        adapted,
        prompt_PD,
        num_channels=num_channels,
        context_len=config.data.context_len,
        horizon=config.data.horizon,
        attention=config.backbone.attention,
        alignment_heads=config.model.alignment_heads if config.model.alignment else None,
        dropout=config.model.dropout,
        affine=config.model.affine,
    )
    return model.to(device)


def dlora_config(section: DLoraSection) -> DLoraConfig:
    """The adapter's configuration in PEFT's form.

    Raises:
        ConfigError: a value out of bounds, named by its key.
    """
    targets = section.target_modules or list(LLAMA_LINEARS)
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
        target_modules=targets,
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
    return int(state.shape.numel()) if state is not None else parameter.numel()
