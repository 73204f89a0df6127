import numpy as np
import torch
from torch import Tensor, nn

from timellama_dist.evaluation.forecasters import model_forecaster


class Spy(nn.Module):
    """Forecasts 4 steps of each channel's last value times the data set's number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: Tensor | None = None

    def forward(self, past_BLC: Tensor, dataset: int) -> Tensor:
        self.seen = past_BLC
        return self.scale * dataset * past_BLC[:, -1:].repeat(1, 4, 1)


def test_windows_shorter_than_the_models_lack_the_past_before_them() -> None:
    past = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    model = Spy()
    forecast = model_forecaster(model, dataset=2, context_len=7, horizon=3)({"past": past})
    np.testing.assert_array_equal(forecast, np.repeat(2 * past[:, -1:], 3, axis=1))
    assert model.seen is not None
    np.testing.assert_array_equal(model.seen[:, 4:].numpy(), past)
    assert model.seen[:, :4].isnan().all()
