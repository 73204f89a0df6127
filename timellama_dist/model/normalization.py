"""Instance normalisation of each channel over its own context window (Figure 1 of the paper).

The paper takes a window's mean from it. Its last value instead (NLinear, arXiv 2205.13504) keeps
the forecast of a drifting series next to where that is.

Missing values are NaN; the statistics are those of the observed ones.

Shapes: B batch, L context, H horizon, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from timellama_dist.model.linear_map import fill_forward


class WindowStatistics(NamedTuple):
    """Statistics of each window's channels, of shape (B, 1, C), finite."""

    mean: Tensor
    std: Tensor
    centre: Tensor
    """What is subtracted."""


class InstanceNorm(nn.Module):
    """Normalises a window and undoes it on the forecast.

    Args:
        num_channels: C; needed for `affine` only.
        affine: learn a scale and a shift per channel, as RevIN does.
        centre: "mean", or "last": the last observed value.
        eps: added to the variance, so that a constant window stays finite.
    """

    def __init__(
        self, num_channels: int, *, affine: bool = False, centre: str = "mean", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.centre = centre
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.shift = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, past_BLC: Tensor) -> tuple[Tensor, WindowStatistics, tuple[Tensor, ...]]:
        """Return the normalised window, its statistics, and the affine parameters for `inverse`.

        A missing value becomes the window's mean; a channel without any observed value has mean and
        centre 0 and the standard deviation of a constant window.

        The affine parameters are handed on, not read again by `inverse`: ZeRO-3 holds a module's
        parameters only during its forward.
        """
        observed_BLC = ~past_BLC.isnan()
        count_B1C = observed_BLC.sum(dim=1, keepdim=True, dtype=past_BLC.dtype).clamp_min(1)
        # What stands in for a missing value adds nothing to either sum, so the plain reductions
        # over L steps need only this factor: exactly 1 where nothing is missing. No branch on the
        # data, so that every rank runs one graph.
        steps_per_observed_B1C = torch.full_like(count_B1C, past_BLC.shape[1]) / count_B1C
        zeroed_BLC = torch.where(observed_BLC, past_BLC, 0.0)
        mean = zeroed_BLC.mean(dim=1, keepdim=True) * steps_per_observed_B1C
        filled_BLC = torch.where(observed_BLC, past_BLC, mean)
        variance = filled_BLC.var(dim=1, keepdim=True, unbiased=False) * steps_per_observed_B1C
        std = torch.sqrt(variance + self.eps)
        centre = mean if self.centre == "mean" else fill_forward(past_BLC)[:, -1:]
        normed_BLC = (filled_BLC - centre) / std
        statistics = WindowStatistics(mean, std, centre)
        if self.scale is None or self.shift is None:
            return normed_BLC, statistics, ()
        # Clones, because ZeRO-3 frees the parameters themselves after this forward.
        scale, shift = self.scale.clone(), self.shift.clone()
        return normed_BLC * scale + shift, statistics, (scale, shift)

    def inverse(
        self, normed_BHC: Tensor, statistics: WindowStatistics, affine: tuple[Tensor, ...]
    ) -> Tensor:
        """Undo `forward` on a forecast."""
        if affine:
            scale, shift = affine
            normed_BHC = (normed_BHC - shift) / (scale + self.eps)
        return normed_BHC * statistics.std + statistics.centre
