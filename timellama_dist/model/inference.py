"""Makes a trained model ready to forecast and no more: computes once what stays the same.

Nothing is rounded that the plain pass doesn't round, so the forecasts stay what they are.

Shapes: B batch, D hidden.
"""

from typing import Any, TypeVar

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention

from timellama_dist.model.timellama import TimeLlama

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def freeze_for_inference(model: TimeLlama, *, unpack: bool) -> None:
    """Fold prompts, unpack matrices and leave out what only training needs.

    Args:
        model: whole, on its device; changed in place.
        unpack: multiply by the 4-bit matrices as they are in the dtype they compute in, instead of
            unpacking them in each forward pass.
    """
    model.requires_grad_(False).eval()
    with torch.no_grad():
        model.fold_prompts()
        if model.sees_one_token:
            for name, attention in _all_of(model, LlamaAttention):
                model.set_submodule(name, LoneAttention(attention))
        if unpack:
            for name, packed in _all_of(model, Linear4bit):
                model.set_submodule(name, unpacked(packed))


def _all_of(model: nn.Module, kind: type[AnyModule]) -> list[tuple[str, AnyModule]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


def unpacked(linear: Any) -> nn.Linear:
    """Make the plain linear that a `Linear4bit` unpacks itself to in each forward pass."""
    weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.to(linear.compute_dtype), requires_grad=False)
    plain.bias = linear.bias
    return plain


class LoneAttention(nn.Module):
    """LLaMA's attention of a token that sees itself alone: its value, whatever query and key say.

    Args:
        attention: the block's own attention.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        self.groups = attention.num_key_value_groups
        self.v_proj = attention.v_proj
        self.o_proj = attention.o_proj

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Attend, shape (B, 1, D); the rest of what a block hands over changes nothing."""
        value = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        # A value stands for as many heads as share it.
        return self.o_proj(value.repeat_interleave(self.groups, dim=-2).flatten(-2)), None
