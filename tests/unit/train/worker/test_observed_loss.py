"""The training loss with missing targets, against a loop over the observed ones alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from timellama_dist.train.worker.steps import LOSSES, observed_loss

BY_HAND: dict[str, Callable[[float], float]] = {
    "mse": lambda error: error**2,
    "mae": abs,
    "huber": lambda error: 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5,
}
SLOPES: dict[str, Callable[[float], float]] = {
    "mse": lambda error: 2 * error,
    "mae": np.sign,
    "huber": lambda error: float(np.clip(error, -1, 1)),
}


def batch(seed: int, share: float) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    forecast, future = 2 * rng.normal(size=(2, 3, 4, 2))
    future[rng.random(future.shape) < share] = np.nan
    return torch.from_numpy(forecast).requires_grad_(), torch.from_numpy(future)


def loss_and_gradient(name: str, forecast: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
    loss = observed_loss(LOSSES[name], forecast, future)
    (gradient,) = torch.autograd.grad(loss, forecast)
    return loss.detach(), gradient


def test_every_loss_is_compared_with_one_by_hand() -> None:
    assert BY_HAND.keys() == SLOPES.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.1, 0.5, 0.95]))
def test_loss_and_gradient_are_those_of_a_loop_over_observed_targets(
    name: str, seed: int, share: float
) -> None:
    forecast, future = batch(seed, share)
    observed = [place for place in np.ndindex(future.shape) if not future[place].isnan()]
    errors = {place: (forecast[place] - future[place]).item() for place in observed}
    count = max(len(errors), 1)
    expected = torch.zeros_like(future)
    for place, error in errors.items():
        expected[place] = SLOPES[name](error) / count
    loss, gradient = loss_and_gradient(name, forecast, future)
    assert loss.item() == pytest.approx(sum(map(BY_HAND[name], errors.values())) / count)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_no_observed_target_gives_loss_0_and_gradient_0(name: str) -> None:
    loss, gradient = loss_and_gradient(name, *batch(0, 1.0))
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(
    ("name", "plain"),
    [("mse", functional.mse_loss), ("mae", functional.l1_loss), ("huber", functional.huber_loss)],
)
def test_without_missing_targets_every_bit_is_that_of_the_plain_loss(
    name: str, plain: Callable[[Tensor, Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    forecast = torch.randn(7, 96, 3, generator=generator).requires_grad_()
    future = torch.randn(7, 96, 3, generator=generator)
    loss, gradient = loss_and_gradient(name, forecast, future)
    expected = plain(forecast, future)
    assert torch.equal(loss, expected.detach())
    assert torch.equal(gradient, torch.autograd.grad(expected, forecast)[0])


def test_a_forecast_that_is_not_finite_still_shows_in_the_loss() -> None:
    forecast, future = batch(0, 0.0)
    with torch.no_grad():
        forecast[0, 0, 0] = torch.nan
    assert loss_and_gradient("mse", forecast, future)[0].isnan()
