from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from tests.support.runs import plain, plain_run
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
    RunConfig,
)
from timellama_dist.model.build import build_model
from timellama_dist.model.inference import freeze_for_inference
from timellama_dist.model.timellama import TimeLlama

CHANNELS, CONTEXT, HORIZON = 3, 24, 8


@pytest.fixture
def config(tiny_llama: Path) -> RunConfig:
    return plain_run(
        data=plain(DataSection, context_len=CONTEXT, horizon=HORIZON),
        backbone=plain(BackboneSection, name=str(tiny_llama), num_blocks=2, quantization="nf4"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4),
    )


@pytest.fixture
def trained(config: RunConfig) -> Callable[..., TimeLlama]:
    """Builds the same model at each call, with every trained weight far from zero."""

    def build(**sections: Any) -> TimeLlama:
        changed = replace(
            config, **{n: replace(getattr(config, n), **s) for n, s in sections.items()}
        )
        model = build_model(
            changed,
            Path(changed.backbone.name),
            num_channels=CHANNELS,
            prompts=["the price of a b c", "d e of f"],
        )
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "dlora_" in name:
                parameter.data.normal_(std=0.3, generator=generator)
        return model.eval()

    return build


def past(batch: int = 4) -> Tensor:
    return torch.randn(batch, CONTEXT, CHANNELS, generator=torch.Generator().manual_seed(1))


def off(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("unpack", [True, False])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"backbone": {"attention": "causal", "quantization": "none"}},
        {"backbone": {"attention": "independent"}},
        {"backbone": {"attention": "independent"}, "model": {"prefix": True}},
        {"dlora": {"scope": "module", "top_n": 1, "gate": "binary"}},
        {"dlora": {"enabled": False}, "model": {"alignment": False}},
        {"backbone": {"kind": "attention"}, "dlora": {"enabled": False}},
    ],
)
def test_a_frozen_model_forecasts_what_the_plain_one_does(
    sections: dict[str, Any], unpack: bool, trained: Callable[..., TimeLlama]
) -> None:
    plain, frozen = trained(**sections), trained(**sections)
    freeze_for_inference(frozen, unpack=unpack)
    for dataset in (0, 1):
        with torch.no_grad():
            expected = plain(past(), dataset)
        actual = frozen(past(), dataset)
        assert off(actual, expected) < 1e-6
        assert not actual.requires_grad


def test_windows_that_choose_other_experts_go_through_in_one_pass(
    trained: Callable[..., TimeLlama],
) -> None:
    model = trained(dlora={"router_activation": "none"})
    freeze_for_inference(model, unpack=True)
    windows = past(8) * torch.logspace(-2, 2, CHANNELS)
    together = model(windows)
    assert model.dlora is not None
    chosen_B = [
        model.dlora.router_statistics(counted=counted).chosen for counted in torch.eye(8).bool()
    ]
    assert len({tuple(chosen.flatten().tolist()) for chosen in chosen_B}) > 1
    alone = torch.cat([model(windows[n : n + 1]) for n in range(8)])
    assert off(together, alone) < 1e-5


def test_unpacking_takes_memory_and_leaves_no_4_bit_matrix(
    trained: Callable[..., TimeLlama],
) -> None:
    packed, unpacked = trained(), trained()
    elements = sum(m.weight.quant_state.shape.numel() for m in fourbit(packed))
    freeze_for_inference(packed, unpack=False)
    freeze_for_inference(unpacked, unpack=True)
    assert len(fourbit(packed)) == 14
    assert not fourbit(unpacked)
    more = frozen_bytes(unpacked.backbone) - frozen_bytes(packed.backbone)
    assert 3.2 * elements < more < 3.5 * elements


def fourbit(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def test_a_token_that_sees_itself_alone_needs_neither_query_nor_key(
    trained: Callable[..., TimeLlama],
) -> None:
    model = trained(backbone={"attention": "independent"})
    freeze_for_inference(model, unpack=True)
    names = [name for name, _ in model.named_modules()]
    assert any("v_proj" in name for name in names)
    assert not any("q_proj" in name or "k_proj" in name for name in names)


def test_the_prompt_is_not_looked_at_again(trained: Callable[..., TimeLlama]) -> None:
    model = trained()
    freeze_for_inference(model, unpack=True)
    expected = model(past())
    model.get_buffer("prompt_0_PD").fill_(torch.nan)
    assert torch.equal(model(past()), expected)
