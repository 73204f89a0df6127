"""Modality alignment: series tokens attend to the prompt's frozen token embeddings (eq. 3).

Shapes: B batch, C channels, P prompt tokens, D hidden, K heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from timellama_dist.errors import ConfigError


class PromptAlignment(nn.Module):
    """Multi-head cross-attention, its output projection, the residual, then a linear map to D.

    Keys and values are the prompt's embeddings (the paper prints eq. 3 without V: a misprint).
    The prompt itself never enters the transformer blocks.

    Args:
        hidden_size: D.
        num_heads: K; must divide D.

    Raises:
        ConfigError: num_heads does not divide D.
    """

    def __init__(self, hidden_size: int, *, num_heads: int) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ConfigError(
                key="model.alignment_heads",
                must=f"divide the backbone's hidden size {hidden_size}",
                got=num_heads,
            )
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        # A bias would move all scores of a query alike: the softmax cancels it.
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.project = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        # Embeddings are small (a standard deviation near 0.1): without this, keys would be alike.
        self.prompt_norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        # Starts as the identity, so that alignment adds to the tokens rather than scrambling them.
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, token_BCD: Tensor, prompt_PD: Tensor) -> Tensor:
        """Align tokens to a prompt.

        Args:
            token_BCD: tokens, shape (B, C, D).
            prompt_PD: the frozen embedding rows of the prompt's tokens, shape (P, D).

        Returns:
            Aligned tokens, shape (B, C, D).
        """
        return self.attend(token_BCD, *self.keys_and_values(prompt_PD.to(token_BCD.dtype)))

    def keys_and_values(self, prompt_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values, which depend on the prompt alone; shape (1, K, P, D / K)."""
        prompt_1PD = self.prompt_norm(prompt_PD)[None]
        return self._heads(self.key(prompt_1PD)), self._heads(self.value(prompt_1PD))

    def attend(self, token_BCD: Tensor, key_1KPd: Tensor, value_1KPd: Tensor) -> Tensor:
        """Align tokens to a prompt by its keys and values."""
        query_BKCd = self._heads(self.query(token_BCD))
        # One prompt for the whole batch: its keys and values are broadcast.
        key = key_1KPd.expand(len(token_BCD), -1, -1, -1)
        value = value_1KPd.expand(len(token_BCD), -1, -1, -1)
        attended_BKCd = functional.scaled_dot_product_attention(query_BKCd, key, value)
        attended_BCD = attended_BKCd.transpose(1, 2).flatten(2)
        aligned_BCD: Tensor = self.out(token_BCD + self.project(attended_BCD))
        return aligned_BCD

    def _heads(self, x_BTD: Tensor) -> Tensor:
        """Split D into heads: (B, T, D) -> (B, K, T, D / K)."""
        return torch.unflatten(x_BTD, 2, (self.num_heads, -1)).transpose(1, 2)
