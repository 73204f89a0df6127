"""Time-LlaMA (arXiv 2502.13725): channels become tokens, a frozen LLaMA with D-LoRA encodes them.

The mathematics alone: `build` makes a model from a configuration, `linear_plus_llm` adds a linear
map beside it.

Shapes: B batch, C channels, L context, H horizon, D hidden, P prompt tokens, N sequences that the
backbone sees, T their tokens.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from timellama_dist.dlora import DLoraModel
from timellama_dist.model.alignment import PromptAlignment
from timellama_dist.model.normalization import InstanceNorm


class TimeLlama(nn.Module):
    """The forecaster of the paper.

    A window X of shape (L, C) is normalised, channel by channel. Then

        h = X^T W_tok + b_tok                        linear tokenization, eq. 2
        h' = alignment(h, prompt)                    attention to the prompt's embeddings, eq. 3
        y = LLaMA(h') W_head + b_head                backbone and head, eq. 4

    and the normalisation is undone on y.

    Args:
        backbone: a transformers LlamaModel without embedding table, alone or wrapped by PEFT;
            called with `inputs_embeds` only.
        prompts: frozen embeddings of the prompt's tokens of each data set, shape (P, D).
        num_channels: C; any number may be forecast unless `affine`.
        context_len: L.
        horizon: H.
        attention: "causal" (as pretrained), "full" (every channel sees every other) or
            "independent" (each channel alone).
        alignment_heads: heads of the alignment to the prompt; None leaves the alignment out.
        prefix: put the prompt before the tokens that the backbone sees.
        dropout: on the tokens before the backbone and on its output.
        affine: learned scale and shift per channel in the instance normalisation.
        centre: what the normalisation subtracts: "mean" of the window, or "last" value.
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
    ) -> None:
        super().__init__()
        hidden_size = prompts[0].shape[1]
        self.attention = attention
        self.prefix = prefix
        self.norm = InstanceNorm(num_channels, affine=affine, centre=centre)
        self.tokenize = nn.Linear(context_len, hidden_size)
        self.align = (
            PromptAlignment(hidden_size, num_heads=alignment_heads) if alignment_heads else None
        )
        used_prompts = prompts if self.align is not None or prefix else ()
        for dataset, prompt_PD in enumerate(used_prompts):
            self.register_buffer(f"prompt_{dataset}_PD", prompt_PD)
        self.num_prompts = len(used_prompts)
        self.folded = False
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, horizon)

    def forward(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        """Forecast the steps after each window's context.

        Args:
            past_BLC: context, shape (B, L, C), in any unit; float32. A missing value is NaN.
            dataset: number of the data set that the windows are of.

        Returns:
            The forecast in the same unit, shape (B, H, C), float32.
        """
        normed_BLC, statistics, affine = self.norm(past_BLC)
        normed_BHC = self.forecast_normed(normed_BLC, dataset)
        return self.norm.inverse(normed_BHC, statistics, affine)

    def forecast_normed(self, normed_BLC: Tensor, dataset: int) -> Tensor:
        """Forecast normalised windows, from tokens to head (eq. 2-4); shape (B, H, C)."""
        token_BCD = self.dropout(self._align(self._tokenize(normed_BLC), dataset))
        hidden_BCD = self.dropout(self._encode(token_BCD, dataset))
        normed_BCH = self.head(hidden_BCD)
        return normed_BCH.transpose(1, 2).to(normed_BLC.dtype)

    def balance_loss(self) -> Tensor:
        """Return the routers' load-balance loss of the last forward pass; 0 without D-LoRA."""
        if self.dlora is None:
            return torch.zeros((), device=self.tokenize.weight.device)
        return self.dlora.balance_loss()

    def forget_graph(self) -> None:
        """Free what the routers still hold of a forward pass, after its backward pass."""
        if self.dlora is not None:
            self.dlora.forget_graph()

    def fold_prompts(self) -> None:
        """Compute the alignment's keys and values of each prompt once, for weights that stay."""
        if self.align is None:
            return
        for dataset in range(self.num_prompts):
            key, value = self.align.keys_and_values(self._prompt(dataset))
            self.register_buffer(f"prompt_{dataset}_key", key, persistent=False)
            self.register_buffer(f"prompt_{dataset}_value", value, persistent=False)
        self.folded = True

    @property
    def sees_one_token(self) -> bool:
        """Whether the backbone sees each channel's token alone."""
        return self.attention == "independent" and not self.prefix

    @property
    def dlora(self) -> DLoraModel | None:
        """The adapter's tuner, if there is one."""
        tuner = self.backbone.base_model if isinstance(self.backbone, PeftModel) else None
        return tuner if isinstance(tuner, DLoraModel) else None

    def _tokenize(self, normed_BLC: Tensor) -> Tensor:
        """Make a token of each channel's window (eq. 2); shape (B, C, D)."""
        # The weights' dtype may be bf16; the window's statistics stay in the input's.
        normed_BCL = normed_BLC.transpose(1, 2).to(self.tokenize.weight.dtype)
        # Contiguous: else torch multiplies in another order when the weight is no longer trained.
        token_BCD: Tensor = self.tokenize(normed_BCL.contiguous())
        return token_BCD

    def _align(self, token_BCD: Tensor, dataset: int) -> Tensor:
        """Align tokens to their data set's prompt (eq. 3); shape (B, C, D)."""
        if self.align is None:
            return token_BCD
        if self.folded:
            key, value = (self.get_buffer(f"prompt_{dataset}_{part}") for part in ("key", "value"))
            return self.align.attend(token_BCD, key, value)
        aligned_BCD: Tensor = self.align(token_BCD, self._prompt(dataset))
        return aligned_BCD

    def _encode(self, token_BCD: Tensor, dataset: int) -> Tensor:
        """Encode tokens by the backbone (of eq. 4); shape (B, C, D)."""
        independent = self.attention == "independent"
        token_NTD = token_BCD.flatten(0, 1)[:, None] if independent else token_BCD
        num_tokens = token_NTD.shape[1]
        if self.prefix:
            prompt_NPD = self._prompt(dataset).to(token_NTD.dtype).expand(len(token_NTD), -1, -1)
            token_NTD = torch.cat([prompt_NPD, token_NTD], dim=1)
        output = self.backbone(inputs_embeds=token_NTD, is_causal=self.attention != "full")
        return output.last_hidden_state[:, -num_tokens:].reshape(token_BCD.shape)

    def _prompt(self, dataset: int) -> Tensor:
        return self.get_buffer(f"prompt_{dataset}_PD")
