"""Modules in the LLaMA's place, to measure what the LLaMA adds (arXiv 2406.16964).

`build` chooses between them by `backbone.kind`.

Shapes: B batch, T tokens, D hidden, K heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Encoded:
    """The part of transformers' output that is read."""

    last_hidden_state: Tensor


class NoBackbone(nn.Module):
    """Hands the tokens on to the head as they are."""

    def forward(self, inputs_embeds: Tensor, is_causal: bool = True) -> Encoded:
        """Take tokens of shape (B, T, D), as a LlamaModel does."""
        return Encoded(inputs_embeds)


class AttentionBlock(nn.Module):
    """One block of multi-head self-attention with its residual, trained from scratch.

    Args:
        hidden_size: D, a multiple of the heads.
        num_heads: K.
    """

    def __init__(self, hidden_size: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(hidden_size)
        self.mix = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.project = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, inputs_embeds: Tensor, is_causal: bool = True) -> Encoded:
        """Encode tokens of shape (B, T, D), as a LlamaModel does."""
        mixed_BT3D = self.mix(self.norm(inputs_embeds))
        heads_3BKTd = mixed_BT3D.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads_3BKTd.unbind()
        attended_BKTd = functional.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal
        )
        attended_BTD = attended_BKTd.transpose(1, 2).flatten(2)
        return Encoded(torch.add(inputs_embeds, self.project(attended_BTD)))
