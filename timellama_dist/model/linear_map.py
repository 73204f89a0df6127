"""The linear map as a module: from context to horizon, fitted before training by `linear_fit`.

`linear_plus_llm` adds the LLM path to it.

Shapes: B batch, C channels, L context, H horizon.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class LinearMap(nn.Module):
    """Forecasts windows less their centre by a linear map.

    Args:
        map_LH: the map, shape (L, H), or each channel's, shape (C, L, H); of windows and forecasts
            that are shorter than the model's, the model's last rows and first columns.
        shape: the model's (L, H).
        trainable: let the map train; else it stays, in float32 whatever the rest is in.
    """

    def __init__(self, map_LH: Tensor, shape: tuple[int, int], *, trainable: bool = False) -> None:
        super().__init__()
        context_len, horizon = map_LH.shape[-2:]
        whole_LH = torch.zeros(*map_LH.shape[:-2], *shape)
        whole_LH[..., shape[0] - context_len :, :horizon] = map_LH
        if trainable:
            self.map_LH = nn.Parameter(whole_LH)
        else:
            self.register_buffer("map_LH", whole_LH)

    def forward(self, past_BLC: Tensor, centre_B1C: Tensor) -> Tensor:
        """Forecast windows less their centres, shape (B, H, C).

        The map's columns add up to 1, so that the centre itself would come back as it is.

        Args:
            past_BLC: contexts; a missing value (NaN) is filled with the last value before it.
            centre_B1C: what is subtracted from them.
        """
        centred_CBL = (fill_forward(past_BLC) - centre_B1C).permute(2, 0, 1)
        forecast_CBH = centred_CBL.to(self.map_LH.dtype) @ self.map_LH
        return forecast_CBH.to(past_BLC.dtype).permute(1, 2, 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device, but keep a frozen map's precision.

        DeepSpeed casts whole modules to bf16, in which a ridge loses its small weights.
        """
        if isinstance(self.map_LH, nn.Parameter):
            moved: Any = super()._apply(fn, recurse)
            return moved
        self.map_LH = self.map_LH.to(fn(self.map_LH[:0]).device)
        return self


def fill_forward(past_BLC: Tensor) -> Tensor:
    """Fill gaps as `linear_fit.fill_missing` does, without a branch: every rank runs one graph."""
    observed_BLC = ~past_BLC.isnan()
    first_B1C = observed_BLC.int().argmax(dim=1, keepdim=True)
    steps_L1 = torch.arange(past_BLC.shape[1], device=past_BLC.device)[:, None]
    source_BLC = torch.where(observed_BLC, steps_L1, first_B1C).cummax(dim=1).values
    filled_BLC = past_BLC.gather(1, source_BLC)
    return torch.where(filled_BLC.isnan(), 0.0, filled_BLC)
