from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
    RunConfig,
    TrainSection,
)
from timellama_dist.data.prompts import task_prompt
from timellama_dist.errors import ConfigError
from timellama_dist.model.ablations import AttentionBlock
from timellama_dist.model.alignment import PromptAlignment
from timellama_dist.model.build import build_model, parameter_counts
from timellama_dist.model.normalization import InstanceNorm
from timellama_dist.model.timellama import TimeLlama

CHANNELS, CONTEXT, HORIZON = 3, 24, 8


@pytest.fixture
def config(tiny_llama: Path) -> RunConfig:
    return plain_run(
        data=plain(DataSection, context_len=CONTEXT, horizon=HORIZON),
        backbone=plain(BackboneSection, name=str(tiny_llama), num_blocks=2, quantization="none"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4, dropout=0.0),
    )


def build(config: RunConfig) -> TimeLlama:
    return build_model(
        config, Path(config.backbone.name), num_channels=CHANNELS, prompts=["the price of a b c"]
    ).eval()


def past(batch: int = 2) -> Tensor:
    return torch.randn(batch, CONTEXT, CHANNELS, generator=torch.Generator().manual_seed(1))


def test_instance_norm_equals_numpy_and_is_undone() -> None:
    window = past()
    norm = InstanceNorm(CHANNELS)
    normed, statistics, affine = norm(window)
    raw = window.double().numpy()
    expected = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(normed.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(norm.inverse(normed, statistics, affine), window)


def test_a_constant_window_stays_finite() -> None:
    normed, _, _ = InstanceNorm(CHANNELS)(torch.full((2, CONTEXT, CHANNELS), 7.0))
    assert torch.equal(normed, torch.zeros_like(normed))


def test_affine_parameters_are_undone_too() -> None:
    norm = InstanceNorm(CHANNELS, affine=True)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([2.0, 0.5, 3.0]))
        norm.shift.copy_(torch.tensor([1.0, -1.0, 0.0]))
    normed, statistics, affine = norm(past())
    torch.testing.assert_close(norm.inverse(normed, statistics, affine), past(), atol=1e-3, rtol=0)


def test_alignment_is_multi_head_cross_attention_as_numpy_computes_it() -> None:
    torch.manual_seed(0)
    prompt, tokens = torch.randn(5, 12), torch.randn(2, 3, 12)
    align = PromptAlignment(12, num_heads=4)
    torch.nn.init.normal_(align.out.weight)
    w = {name: p.detach().double().numpy() for name, p in align.named_parameters()}
    keys_in = prompt.double().numpy()
    keys_in = (keys_in - keys_in.mean(1, keepdims=True)) / np.sqrt(
        keys_in.var(1, keepdims=True) + 1e-5
    )
    x = tokens.double().numpy()
    query = x @ w["query.weight"].T + w["query.bias"]
    key = keys_in @ w["key.weight"].T
    value = keys_in @ w["value.weight"].T + w["value.bias"]
    heads = []
    for head in range(4):
        part = slice(3 * head, 3 * head + 3)
        scores = query[..., part] @ key[:, part].T / np.sqrt(3)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ value[:, part])
    mixed = np.concatenate(heads, -1) @ w["project.weight"].T + w["project.bias"]
    expected = (x + mixed) @ w["out.weight"].T + w["out.bias"]
    np.testing.assert_allclose(align(tokens, prompt).detach().numpy(), expected, atol=1e-5)


def test_heads_that_do_not_divide_the_hidden_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.alignment_heads must divide .* 12, got 5"):
        PromptAlignment(12, num_heads=5)


def test_more_of_one_prompt_token_changes_nothing_alignment_is_a_mean_over_tokens() -> None:
    torch.manual_seed(0)
    align = PromptAlignment(12, num_heads=4)
    tokens, once = torch.randn(2, 3, 12), torch.randn(3, 12)
    torch.testing.assert_close(align(tokens, once.repeat(4, 1)), align(tokens, once))


@pytest.mark.parametrize("num_heads", [1, 2, 64])
def test_any_divisor_of_the_hidden_size_may_be_the_number_of_heads(num_heads: int) -> None:
    align = PromptAlignment(64, num_heads=num_heads)
    assert align(torch.randn(2, 3, 64), torch.randn(5, 64)).shape == (2, 3, 64)


def test_each_data_set_is_aligned_to_its_own_prompt(config: RunConfig) -> None:
    def forecasts(*prompts: str) -> list[Tensor]:
        model = build_model(
            config, Path(config.backbone.name), num_channels=CHANNELS, prompts=prompts
        ).eval()
        with torch.no_grad():
            return [model(past(), dataset) for dataset, _ in enumerate(prompts)]

    prices, loads = "the price of a b c", "d e f g"
    together = forecasts(prices, loads)
    assert torch.equal(together[0], forecasts(prices)[0])
    assert torch.equal(together[1], forecasts(loads)[0])
    assert not torch.equal(*together)


def test_data_sets_may_have_different_numbers_of_channels(config: RunConfig) -> None:
    model = build_model(
        config, Path(config.backbone.name), num_channels=CHANNELS, prompts=["a", "b"]
    )
    assert model(torch.randn(2, CONTEXT, 5), 1).shape == (2, HORIZON, 5)


def test_independent_forecasts_equal_those_of_each_channel_alone(config: RunConfig) -> None:
    config = replace(config, backbone=replace(config.backbone, attention="independent"))
    model = build(config)
    with torch.no_grad():
        together = model(past())
        alone = [model(past()[:, :, [channel]]) for channel in range(CHANNELS)]
    torch.testing.assert_close(together, torch.cat(alone, dim=2))


def test_full_attention_treats_channels_alike_when_they_change_places(config: RunConfig) -> None:
    # Without rotary positions, the only thing that tells one token's place from another's.
    config = replace(config, dlora=replace(config.dlora, enabled=False))
    model = build(config)
    model.backbone.rotary_emb.inv_freq.zero_()
    order = [2, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(
            model(past()[:, :, order]), model(past())[:, :, order], rtol=1e-4, atol=1e-5
        )


def test_a_sample_s_forecast_does_not_depend_on_its_batch(config: RunConfig) -> None:
    model = build(config)
    with torch.no_grad():
        torch.testing.assert_close(model(past())[1:], model(past()[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "earlier_sees_later", "later_sees_earlier"),
    [("full", True, True), ("causal", False, True), ("independent", False, False)],
)
def test_attention_decides_which_channels_see_which(
    attention: str, earlier_sees_later: bool, later_sees_earlier: bool, config: RunConfig
) -> None:
    config = replace(config, backbone=replace(config.backbone, attention=attention))
    config = replace(config, dlora=replace(config.dlora, enabled=False))
    model = build(config)
    window = past()
    first, last = window.clone(), window.clone()
    first[:, :, 0] = past(4)[2:, :, 0]
    last[:, :, -1] = past(4)[2:, :, -1]
    with torch.no_grad():
        base, with_first, with_last = model(window), model(first), model(last)
    assert (not torch.equal(base[..., 0], with_last[..., 0])) == earlier_sees_later
    assert (not torch.equal(base[..., -1], with_first[..., -1])) == later_sees_earlier


def test_the_forecast_follows_scale_and_shift_of_the_window(config: RunConfig) -> None:
    model = build(config)
    with torch.no_grad():
        base, moved = model(past()), model(past() * 50 + 1000)
    torch.testing.assert_close(moved, base * 50 + 1000, rtol=1e-3, atol=0.1)


def test_affine_parameters_train_too(config: RunConfig) -> None:
    config = replace(config, model=replace(config.model, affine=True, alignment=False))
    trained = {n for n, p in build(config).named_parameters() if p.requires_grad}
    around = {name for name in trained if not name.startswith("backbone")}
    assert around == {
        *("norm.scale", "norm.shift", "tokenize.weight", "tokenize.bias"),
        *("head.weight", "head.bias"),
    }


def test_only_the_parts_around_the_backbone_and_dlora_train(config: RunConfig) -> None:
    trained = {n for n, p in build(config).named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"tokenize", "align", "head", "backbone"}
    assert all("dlora_" in name for name in trained if name.startswith("backbone"))


def test_an_untrained_adapter_changes_nothing(config: RunConfig) -> None:
    bare = replace(config, dlora=replace(config.dlora, enabled=False))
    adapted, alone = build(config), build(bare)
    alone.load_state_dict(
        {k: v for k, v in adapted.state_dict().items() if not k.startswith("backbone.")},
        strict=False,
    )
    with torch.no_grad():
        assert torch.equal(adapted(past()), alone(past()))
    assert alone.balance_loss() == 0
    assert adapted.balance_loss() > 0


def test_the_seed_decides_the_trained_weights(config: RunConfig) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        model = build(replace(config, train=plain(TrainSection, seed=seed)))
        return {n: p for n, p in model.named_parameters() if p.requires_grad}

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tokenize.weight"], other["tokenize.weight"])


def test_gradient_checkpointing_gives_the_same_gradients(config: RunConfig) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        train = plain(TrainSection, gradient_checkpointing=checkpointing)
        model = build(replace(config, train=train)).train()
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "dlora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        (model(past()).square().mean() + 0.1 * model.balance_loss()).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    kept, recomputed = gradients(False), gradients(True)
    assert kept.keys() == recomputed.keys()
    for name in kept:
        torch.testing.assert_close(kept[name], recomputed[name])


def test_parameter_counts_equal_a_count_by_hand(config: RunConfig) -> None:
    counts = parameter_counts(build(config))
    hidden, kv, inner = 64, 32, 128
    linears = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    linears += [(hidden, inner), (hidden, inner), (inner, hidden)]
    frozen = 2 * (sum(a * b for a, b in linears) + 2 * hidden) + hidden
    pools = 2 * sum(4 * (a + b) for a, b in linears)
    routers = 2 * 14 * hidden
    tokenize = CONTEXT * hidden + hidden
    align = 5 * hidden * hidden + 4 * hidden
    head = hidden * HORIZON + HORIZON
    assert counts["frozen"] == frozen
    assert counts["trainable"] == pools + routers + tokenize + align + head
    assert counts["active"] == pooled_share(pools) + routers + tokenize + align + head


def pooled_share(pools: int) -> int:
    """5 of the block's 14 experts act on one input."""
    return round(pools * 5 / 14)


def test_a_4_bit_backbone_counts_elements_not_bytes(config: RunConfig) -> None:
    packed = replace(config, backbone=replace(config.backbone, quantization="nf4"))
    assert parameter_counts(build(packed)) == parameter_counts(build(config))


def test_the_prompt_names_data_and_task() -> None:
    prompt = task_prompt(" Loads of a transformer. ", context_len=96, horizon=24, frequency="h")
    assert prompt == (
        "Loads of a transformer. Task: forecast the next 24 steps from the previous 96 steps; "
        "one step is h."
    )


@pytest.mark.parametrize("attention", ["full", "causal", "independent"])
def test_a_prefix_is_the_prompt_before_the_tokens(config: RunConfig, attention: Any) -> None:
    config = replace(
        config,
        backbone=replace(config.backbone, attention=attention),
        model=replace(config.model, alignment=False, prefix=True),
    )
    model = build(config)
    normed, statistics, _ = model.norm(past())
    tokens_BCD = model.tokenize(normed.transpose(1, 2))
    prompt_PD = model.get_buffer("prompt_0_PD")
    groups = [[0], [1], [2]] if attention == "independent" else [[0, 1, 2]]
    for sample in range(2):
        for group in groups:
            seen = torch.cat([prompt_PD, tokens_BCD[sample, group]])[None]
            output = model.backbone(inputs_embeds=seen, is_causal=attention != "full")
            hidden = output.last_hidden_state[0, len(prompt_PD) :]
            expected = model.head(hidden) * statistics.std[sample, 0, group, None]
            expected = expected + statistics.mean[sample, 0, group, None]
            torch.testing.assert_close(
                model(past())[sample, :, group], expected.T, rtol=1e-4, atol=1e-4
            )


def test_without_a_backbone_the_head_reads_the_tokens(config: RunConfig) -> None:
    config = replace(
        config,
        backbone=replace(config.backbone, kind="none"),
        dlora=replace(config.dlora, enabled=False),
        model=replace(config.model, alignment=False),
    )
    model = build(config)
    assert parameter_counts(model)["frozen"] == 0
    normed, statistics, affine = model.norm(past())
    linear = model.head(model.tokenize(normed.transpose(1, 2))).transpose(1, 2)
    torch.testing.assert_close(model(past()), model.norm.inverse(linear, statistics, affine))


def test_an_attention_block_equals_torchs_own() -> None:
    torch.manual_seed(0)
    block, tokens = AttentionBlock(16, num_heads=4), torch.randn(2, 5, 16)
    peer = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(block.mix.weight)
        peer.out_proj.weight.copy_(block.project.weight)
    normed = tokens / (tokens.square().mean(-1, keepdim=True) + torch.finfo().eps).sqrt()
    for causal in (False, True):
        hidden = torch.ones(5, 5).triu(1).bool() if causal else None
        expected = tokens + peer(normed, normed, normed, attn_mask=hidden)[0]
        actual = block(inputs_embeds=tokens, is_causal=causal).last_hidden_state
        torch.testing.assert_close(actual, expected)


def test_adapters_without_a_llama_are_refused(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"dlora.enabled must be false beside .*kind=none"):
        replace(config, backbone=replace(config.backbone, kind="none"))
