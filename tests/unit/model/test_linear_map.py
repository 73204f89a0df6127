"""The linear map as a module: its precision and how it fills missing values."""

import numpy as np
import torch

from timellama_dist.model.linear_fit import fill_missing
from timellama_dist.model.linear_map import LinearMap, fill_forward

CONTEXT, HORIZON = 12, 4


def test_a_frozen_map_keeps_its_precision_where_the_model_is_cast() -> None:
    map_LH = torch.rand(CONTEXT, HORIZON, generator=torch.Generator().manual_seed(0))
    frozen = LinearMap(map_LH, (CONTEXT, HORIZON)).bfloat16()
    assert torch.equal(frozen.map_LH, map_LH)
    trained = LinearMap(map_LH, (CONTEXT, HORIZON), trainable=True).bfloat16()
    assert trained.map_LH.dtype == torch.bfloat16
    past = torch.randn(2, CONTEXT, 3)
    assert trained(past, past.mean(dim=1, keepdim=True)).dtype == torch.float32


def test_missing_values_are_filled_as_the_linear_baseline_fills_them() -> None:
    rng = np.random.default_rng(0)
    past = rng.normal(size=(20, CONTEXT, 3))
    past[rng.random(past.shape) < 0.4] = np.nan
    past[3, :, 1] = np.nan
    np.testing.assert_array_equal(fill_forward(torch.from_numpy(past)).numpy(), fill_missing(past))
