"""Windows with missing values (NaN): normalisation alone, and the whole model around it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
    RunConfig,
)
from timellama_dist.model.build import build_model
from timellama_dist.model.normalization import InstanceNorm
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.train.worker.steps import LOSSES, observed_loss

CONTEXT, HORIZON, CHANNELS = 24, 8, 3


def window_with_gaps(seed: int, share: float, shape: tuple[int, int, int]) -> Tensor:
    """Noise around 100 in which about `share` of the values is missing."""
    rng = np.random.default_rng(seed)
    values = rng.normal(100, 3, shape)
    return torch.from_numpy(np.where(rng.random(shape) < share, np.nan, values))


def by_numpy(raw: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Normalised window, mean and standard deviation, one channel after the other."""
    normed = np.zeros_like(raw)
    mean, std = np.zeros((2, len(raw), 1, raw.shape[2]))
    for sample, channel in np.ndindex(len(raw), raw.shape[2]):
        values = raw[sample, :, channel]
        seen = ~np.isnan(values)
        variance = 0.0
        if seen.any():
            mean[sample, 0, channel] = np.nanmean(values)
            variance = np.nanvar(values)
        std[sample, 0, channel] = np.sqrt(variance + 1e-5)
        normed[sample, seen, channel] = (values[seen] - mean[sample, 0, channel]) / std[
            sample, 0, channel
        ]
    return normed, mean, std


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]),
    steps=st.integers(1, 40),
)
def test_statistics_are_those_of_the_observed_values(seed: int, share: float, steps: int) -> None:
    window = window_with_gaps(seed, share, (2, steps, CHANNELS))
    normed, statistics, _ = InstanceNorm(CHANNELS)(window)
    expected, mean, std = by_numpy(window.numpy())
    np.testing.assert_allclose(statistics.mean.numpy(), mean, rtol=1e-12, atol=1e-12)
    # A single observed value has no variance but what rounding leaves of it.
    np.testing.assert_allclose(statistics.std.numpy(), std, rtol=1e-9)
    np.testing.assert_allclose(normed.numpy(), expected, rtol=1e-8, atol=1e-8)
    assert (normed[window.isnan()] == 0).all()


def test_a_channel_without_observed_values_has_mean_0_and_is_0() -> None:
    normed, statistics, _ = InstanceNorm(CHANNELS)(torch.full((1, CONTEXT, CHANNELS), torch.nan))
    assert torch.equal(normed, torch.zeros_like(normed))
    assert torch.equal(statistics.mean, torch.zeros(1, 1, CHANNELS))
    torch.testing.assert_close(statistics.std, torch.full((1, 1, CHANNELS), 1e-5).sqrt())


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 97, 5), (32, 512, 7), (2, 49, 321)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e3, 1e6), (1e-4, 3.0)])
def test_without_missing_values_every_bit_is_that_of_the_plain_formula(
    shape: tuple[int, int, int], scale: float, shift: float
) -> None:
    window = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale + shift
    normed, statistics, _ = InstanceNorm(shape[2])(window)
    mean = window.mean(dim=1, keepdim=True)
    std = torch.sqrt(window.var(dim=1, keepdim=True, unbiased=False) + 1e-5)
    assert torch.equal(statistics.mean, mean)
    assert torch.equal(statistics.std, std)
    assert torch.equal(normed, (window - mean) / std)


def test_the_graph_has_no_branch_on_the_data() -> None:
    # Symbolic tracing fails at any Python branch on a tensor.
    for centre in ("mean", "last"):
        norm = InstanceNorm(CHANNELS, centre=centre)
        traced = torch.fx.symbolic_trace(norm)
        for share in (0.0, 0.5, 1.0):
            window = window_with_gaps(1, share, (2, CONTEXT, CHANNELS))
            assert torch.equal(traced(window)[0], norm(window)[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_around_the_last_observed_value_that_value_is_0_and_all_is_undone(share: float) -> None:
    window = window_with_gaps(3, share, (4, CONTEXT, CHANNELS))
    window[0, :, 0] = torch.nan
    norm = InstanceNorm(CHANNELS, centre="last")
    normed, statistics, affine = norm(window)
    plain, of_plain, _ = InstanceNorm(CHANNELS)(window)
    assert torch.equal(statistics.std, of_plain.std)
    for sample, channel in np.ndindex(4, CHANNELS):
        observed = (~window[sample, :, channel].isnan()).nonzero()
        last = window[sample, observed[-1, 0], channel] if len(observed) else torch.tensor(0.0)
        assert statistics.centre[sample, 0, channel] == last
        if len(observed):
            assert normed[sample, observed[-1, 0], channel] == 0
    undone = norm.inverse(normed, statistics, affine)
    filled = torch.where(window.isnan(), of_plain.mean, window)
    torch.testing.assert_close(undone, filled)
    torch.testing.assert_close(
        normed - plain,
        (of_plain.mean - statistics.centre) / of_plain.std + torch.zeros_like(plain),
        atol=1e-9,
        rtol=1e-9,
    )


def test_affine_parameters_get_the_missing_values_at_the_mean() -> None:
    norm = InstanceNorm(CHANNELS, affine=True).double()
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([2.0, 0.5, 3.0]))
        norm.shift.copy_(torch.tensor([1.0, -1.0, 0.0]))
    window = window_with_gaps(2, 0.4, (2, CONTEXT, CHANNELS))
    normed, statistics, affine = norm(window)
    missing = window.isnan()
    assert torch.equal(normed[missing], norm.shift.expand_as(normed)[missing])
    undone = norm.inverse(normed, statistics, affine)
    torch.testing.assert_close(undone[~missing], window[~missing], atol=1e-3, rtol=0)


@pytest.fixture
def config(tiny_llama: Path) -> RunConfig:
    return plain_run(
        data=plain(DataSection, context_len=CONTEXT, horizon=HORIZON, missing="mask"),
        backbone=plain(BackboneSection, name=str(tiny_llama), num_blocks=2, quantization="none"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4, dropout=0.0),
    )


def build(config: RunConfig) -> TimeLlama:
    model = build_model(
        config, Path(config.backbone.name), num_channels=CHANNELS, prompts=["the price of a b c"]
    )
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "dlora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def gappy_window() -> Tensor:
    """Three windows: with gaps, one channel gone, everything gone."""
    window = window_with_gaps(4, 0.3, (3, CONTEXT, CHANNELS)).float()
    window[1, :, 1] = torch.nan
    window[2] = torch.nan
    return window


@pytest.mark.parametrize("attention", ["full", "causal", "independent"])
@pytest.mark.parametrize("affine", [False, True])
def test_forecast_and_gradients_are_finite_whatever_is_missing(
    attention: str, affine: bool, config: RunConfig
) -> None:
    config = replace(config, backbone=replace(config.backbone, attention=attention))
    model = build(replace(config, model=replace(config.model, affine=affine)))
    forecast = model(gappy_window())
    assert forecast.isfinite().all()
    future = window_with_gaps(5, 0.5, (3, HORIZON, CHANNELS)).float()
    (observed_loss(LOSSES["mse"], forecast, future) + model.balance_loss()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_model_sees_missing_values_as_the_mean_of_the_observed(config: RunConfig) -> None:
    model, window = build(config), gappy_window()
    normed, mean, std = (
        torch.from_numpy(part).float() for part in by_numpy(window.double().numpy())
    )
    with torch.no_grad():
        actual = model(window)
        # The parts of the model one after the other, on what numpy normalised.
        token = model.align(model.tokenize(normed.transpose(1, 2)), model.get_buffer("prompt_0_PD"))
        hidden = model.backbone(inputs_embeds=token, is_causal=False).last_hidden_state
        expected = model.head(hidden).transpose(1, 2) * std + mean
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_what_stood_where_a_value_is_missing_does_not_matter(config: RunConfig) -> None:
    model, missing = build(config), gappy_window().isnan()
    seen = torch.randn(missing.shape, generator=torch.Generator().manual_seed(0))
    forecasts = []
    for hidden in (0.0, -1e30, torch.inf):
        before = torch.where(missing, hidden, seen)
        with torch.no_grad():
            forecasts.append(model(before.masked_fill(missing, torch.nan)))
    assert torch.equal(forecasts[0], forecasts[1])
    assert torch.equal(forecasts[0], forecasts[2])


def test_a_forecast_with_gaps_follows_scale_and_shift_of_the_window(config: RunConfig) -> None:
    model, window = build(config), gappy_window()[:1]
    with torch.no_grad():
        base, moved = model(window), model(window * 50 + 1000)
    torch.testing.assert_close(moved, base * 50 + 1000, rtol=1e-3, atol=0.1)


def test_a_gap_in_one_channel_changes_no_other_where_channels_are_independent(
    config: RunConfig,
) -> None:
    independent = replace(
        config,
        backbone=replace(config.backbone, attention="independent"),
        dlora=replace(config.dlora, enabled=False),
    )
    model = build(independent)
    whole = window_with_gaps(6, 0.0, (2, CONTEXT, CHANNELS)).float()
    gap = whole.clone()
    gap[:, 3:9, 1] = torch.nan
    with torch.no_grad():
        before, after = model(whole), model(gap)
    torch.testing.assert_close(after[..., [0, 2]], before[..., [0, 2]])
    assert not torch.equal(after[..., 1], before[..., 1])
