"""The linear map beside the LLM path: each data set's own map, plus what the LLM corrects of it.

Shapes: B batch, C channels, L context, H horizon.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from timellama_dist.config.schema import RunConfig
from timellama_dist.model.linear_map import LinearMap
from timellama_dist.model.timellama import TimeLlama


class LinearPlusLLM(TimeLlama):
    """A Time-LlaMA whose forecast is added to a linear map's.

        forecast = TimeLlama(X) + (X - centre) M

    with M the map of the window's data set and the centre that the instance normalisation
    subtracts. The LLM path starts at zero, at the centre in the data's unit, so that training
    begins with the map's forecast.

    A subclass and no module around a TimeLlama: weights keep the names that checkpoints and
    exported models hold (`head.weight`, `shortcuts.0.map_LH`), without a table that translates.

    Args:
        backbone: as TimeLlama's.
        prompts: as TimeLlama's.
        maps: the linear map of each data set; none leaves the forecast to the LLM.
        clip: values of a window beyond this bound, either way, count as the bound.
        options: the other arguments of TimeLlama.
    """

    def __init__(
        self,
        backbone: nn.Module,
        prompts: Sequence[Tensor],
        *,
        maps: Sequence[LinearMap] = (),
        clip: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, prompts, **options)
        self.clip = clip
        self.shortcuts = nn.ModuleList(maps)
        if maps:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        """Forecast as TimeLlama does, with the map's forecast added; shape (B, H, C)."""
        past_BLC = self._clip(past_BLC)
        normed_BLC, statistics, affine = self.norm(past_BLC)
        normed_BHC = self.forecast_normed(normed_BLC, dataset)
        forecast_BHC = self.norm.inverse(normed_BHC, statistics, affine)
        if self.shortcuts:
            forecast_BHC = forecast_BHC + self._linear_forecast(
                past_BLC, statistics.centre, dataset
            )
        return forecast_BHC

    def mapped(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        """Forecast by the linear map of a data set alone; shape (B, H, C)."""
        # A map gives any centre back, 0 too.
        forecast_BHC: Tensor = self.shortcuts[dataset](
            self._clip(past_BLC), torch.zeros_like(past_BLC[:, :1])
        )
        return forecast_BHC

    def _linear_forecast(self, past_BLC: Tensor, centre_B1C: Tensor, dataset: int) -> Tensor:
        """Forecast by the map, less the centre; shape (B, H, C)."""
        maps = self.shortcuts
        if not (self.training and isinstance(maps[dataset].map_LH, nn.Parameter)):
            forecast_BHC: Tensor = maps[dataset](past_BLC, centre_B1C)
            return forecast_BHC
        # The maps of all data sets take part in each training step: where a parameter has no
        # gradient, ZeRO-3 steps on the one it had before (DeepSpeed 0.19.8, zero/stage3.py).
        return torch.stack([linear_map(past_BLC, centre_B1C) for linear_map in maps])[dataset]

    def _clip(self, past_BLC: Tensor) -> Tensor:
        return past_BLC if self.clip is None else past_BLC.clamp(-self.clip, self.clip)


def path_shares(config: RunConfig) -> tuple[float, ...]:
    """List the shares of the LLM's correction that validation chooses from.

    The forecast is the linear map's plus a share of the LLM's correction, which may be right in
    kind and too large. Validation chooses the share: 1, 3/4, 1/2 or 1/4. There is only the whole
    without a map, with a map that trains too, and with `affine`, where the forecast isn't linear in
    the head.
    """
    divisible = config.model.shortcut == "frozen" and not config.model.affine
    return (1.0, 0.75, 0.5, 0.25) if divisible else (1.0,)


def with_path_share(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Scale trained weights, by name, so that the LLM corrects by that share of what it did."""
    return {
        name: weight * share if name.startswith("head.") else weight
        for name, weight in weights.items()
    }
