"""A two-block random LLaMA made in code, plain or in NF4, and D-LoRA adapters on it."""

from collections.abc import Callable

import bitsandbytes as bnb
import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from tests.support.adapters import plain_config

HIDDEN = 32


def make_llama(*, causal_lm: bool = False, nf4: bool = False, num_blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = (LlamaForCausalLM if causal_lm else LlamaModel)(config)
    if nf4:
        blocks = model.model.layers if causal_lm else model.layers
        linears = [
            (parent, name, child)
            for parent in blocks.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Linear)
        ]
        for parent, name, child in linears:
            quantised = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=False,
                compute_dtype=torch.float32,
                quant_type="nf4",
            )
            quantised.weight = bnb.nn.Params4bit(
                child.weight.data, requires_grad=False, quant_type="nf4"
            )
            # bitsandbytes' packing for AVX512-BF16 needs wider linears than these.
            quantised.support_avx512bf16_for_cpu = False
            setattr(parent, name, quantised.to("cpu"))
    return model


def make_dlora(*, causal_lm: bool = False, nf4: bool = False, **config: object) -> peft.PeftModel:
    """An adapter whose B and routers are far from zero, so that every part shows."""
    base = make_llama(causal_lm=causal_lm, nf4=nf4)
    model = peft.get_peft_model(base, plain_config(**config))
    scramble(model)
    return model


def scramble(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "dlora_B" in name or "dlora_score" in name or "dlora_pool" in name:
            parameter.data.normal_(std=0.3, generator=generator)


@pytest.fixture
def llama() -> Callable[..., nn.Module]:
    return make_llama


@pytest.fixture
def dlora() -> Callable[..., peft.PeftModel]:
    return make_dlora


@pytest.fixture
def hidden_BTD() -> torch.Tensor:  # noqa: N802 (shape suffix)
    return torch.randn(5, 4, HIDDEN, generator=torch.Generator().manual_seed(7))
