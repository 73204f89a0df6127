"""The formulas against models that are really built, to the parameter and to the byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.runs import PLAIN
from timellama_dist.backbone.load import frozen_bytes, load_tokenizer
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError
from timellama_dist.model.build import build_model, parameter_counts
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.planning.estimate import Estimate, estimate
from timellama_dist.planning.hardware import GPUS, find_hardware
from timellama_dist.planning.policy import POLICIES
from timellama_dist.planning.shape import LlamaShape

CHANNELS, PROMPT = 3, "the a of b c d"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {"backbone.quantization": "none"},
    "two-sizes": {"dlora.num_experts": 2, "dlora.rank": 8, "dlora.top_n": 5},
    "by-module": {"dlora.scope": "module", "dlora.top_n": 2, "dlora.pooling": "attention"},
    "some-linears": {"dlora.target_modules": ["q_proj", "mlp.up_proj"], "dlora.top_n": 3},
    "no-linears-said": {"dlora.target_modules": []},
    "no-adapter": {"dlora.enabled": False},
    "no-alignment": {"model.alignment": False, "model.affine": True},
    "recomputed": {"train.gradient_checkpointing": True},
    "alone": {"backbone.attention": "independent", "dlora.dropout": 0.1},
}


def run_config(llama: Path, **keys: Any) -> RunConfig:
    base = {"backbone.name": str(llama), "backbone.num_blocks": 2, "model.alignment_heads": 4}
    base |= {"data.context_len": 24, "data.horizon": 8, "dlora.top_n": 4}
    return config_from_flat(
        PLAIN | base | {"train.micro_batch_size": 8, "train.batch_size": 16} | keys
    )


def build(config: RunConfig, llama: Path) -> TimeLlama:
    return build_model(config, llama, num_channels=CHANNELS, prompts=[PROMPT])


def plan(config: RunConfig, llama: Path, policy: str = "stage0", **changes: Any) -> Estimate:
    tokens = len(load_tokenizer(llama).encode(PROMPT))
    settings: dict[str, Any] = {
        "policy": POLICIES[policy],
        "world_size": 2,
        "hardware": find_hardware("cpu", 2),
        "num_channels": CHANNELS,
        "prompt_tokens": tokens,
    }
    return estimate(config, LlamaShape.from_file(llama / "config.json"), **settings | changes)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_frozen_bytes_are_those_of_the_built_model(
    name: str, tiny_llama: Path
) -> None:
    config = run_config(tiny_llama, **VARIANTS[name])
    actual, model = plan(config, tiny_llama), build(config, tiny_llama)
    assert actual.parameters == parameter_counts(model)
    held = actual.memory.held
    assert held.frozen + held.quantisation_state == frozen_bytes(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert held.trained == sum(p.nbytes for p in trained)


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_autograd_saves_within_5_percent(name: str, tiny_llama: Path) -> None:
    config = run_config(tiny_llama, **VARIANTS[name])
    model = build(config, tiny_llama).train()
    held = [*model.parameters(), *model.buffers()]
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in places:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    past = torch.randn(8, 24, CHANNELS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.nn.functional.mse_loss(model(past), torch.randn(8, 8, CHANNELS))
        loss = loss + model.balance_loss()
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    predicted = plan(config, tiny_llama).memory.moments["backward pass"].activations
    predicted -= 8 * CHANNELS * (24 + 8) * 4  # the batch itself
    if config.train.gradient_checkpointing:
        # While one block is recomputed, all of its activations are there as well.
        plain = replace(config, train=replace(config.train, gradient_checkpointing=False))
        whole = plan(plain, tiny_llama).memory.moments["backward pass"].activations
        assert measured < predicted < whole
    else:
        assert predicted == pytest.approx(measured, rel=0.05)


def test_zero_3_shards_what_stage_0_holds_whole(tiny_llama: Path) -> None:
    config = run_config(tiny_llama)
    whole = plan(config, tiny_llama).memory.held
    held = plan(config, tiny_llama, "zero3").memory.held
    assert whole.frozen / 2 <= held.frozen < 0.6 * whole.frozen
    assert held.quantisation_state == whole.quantisation_state


def test_what_is_offloaded_leaves_the_gpu(tiny_llama: Path) -> None:
    config, gpu = run_config(tiny_llama), GPUS["a100-80g"]
    here = plan(config, tiny_llama, "zero3", hardware=gpu).memory
    away = plan(config, tiny_llama, "zero3_offload", hardware=gpu).memory
    assert (here.host.total, away.held.optimizer) == (0, 0)
    assert away.host.optimizer == here.held.optimizer
    assert away.host.frozen + away.held.frozen == here.held.frozen


def test_a_checkpointed_run_lets_zero_3_free_the_blocks_of_a_70b(tiny_llama: Path) -> None:
    shape = LlamaShape(
        hidden_size=8192,
        intermediate_size=28672,
        num_blocks=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
    )
    actual = {}
    for recompute in (False, True):
        config = run_config(
            tiny_llama,
            **{"backbone.num_blocks": 80, "train.gradient_checkpointing": recompute},
        )
        actual[recompute] = estimate(
            config,
            shape,
            policy=POLICIES["zero3"],
            world_size=2,
            hardware=GPUS["a100-80g"],
            num_channels=CHANNELS,
        ).memory
    linears = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert actual[False].peak.gathered > linears / 2 > 10 * actual[True].peak.gathered


def test_traffic_is_what_a_ring_sends(tiny_llama: Path) -> None:
    config = run_config(tiny_llama)
    trained = 4 * plan(config, tiny_llama).parameters["trainable"]
    assert plan(config, tiny_llama).communication.sent_bytes == trained
    assert plan(config, tiny_llama, "zero2").communication.sent_bytes == 1.5 * trained
    alone = plan(
        run_config(tiny_llama, **{"scaling.num_workers": 1}), tiny_llama, "zero3", world_size=1
    )
    assert alone.communication.sent_bytes == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backbone.num_blocks": 3}, r"backbone\.num_blocks must be between 1 and 2 .* got 3"),
        ({"model.alignment_heads": 7}, r"model\.alignment_heads must divide .* 64, got 7"),
        (
            {"dlora.target_modules": ["q_proj", "head"]},
            r"dlora\.target_modules must name linears .* got 'head'",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_the_backbone_is_refused(
    keys: dict[str, Any], message: str, tiny_llama: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(run_config(tiny_llama, **keys), tiny_llama)
