"""Exact evaluation over the windows of a split, whatever the number of ranks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timellama_dist.data.windows.spans import Batch
from timellama_dist.evaluation.metrics import ErrorSums
from timellama_dist.evaluation.routing import RoutingSums
from timellama_dist.ranks import summed_over_ranks


def evaluate(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    horizon: int,
    num_channels: int,
    dataset: int = 0,
    shares: Sequence[float] = (1.0,),
) -> tuple[dict[float, ErrorSums], dict[str, Any] | None]:
    """Sum errors over this rank's batches and over all ranks; every rank must call.

    Every rank must be given the same number of batches (ZeRO-3 gathers weights in each forward);
    windows of weight 0 only fill them up.

    Args:
        module: a DeepSpeed engine or a plain model,
            `past (B, L, C), data set -> forecast (B, H, C)`.
        batches: with "past" (B, L, C), "future" (B, H, C) and "weight" (B,), on z-scored values,
            NaN where one is missing.
        horizon: H.
        num_channels: C.
        dataset: number of the data set that the windows are of.
        shares: of the LLM's correction of a frozen linear map, from none (0) to all (1); others
            than 1 need a model with such a map.

    Returns:
        The sums over all ranks by share, and what the routers chose (`RoutingSums.summary`).
    """
    sums_by_share = {share: ErrorSums.zeros(horizon, num_channels) for share in shares}
    routing = RoutingSums(module)
    parts = [share for share in shares if share != 1]
    model: Any = getattr(module, "module", module)

    def add(batch: Batch, forecast: Tensor) -> None:
        forecasts = {1.0: forecast.float()}
        if parts:
            past_BLC = torch.as_tensor(batch["past"], device=forecast.device)
            mapped_BHC = model.mapped(past_BLC, dataset)
            for share in parts:
                forecasts[share] = torch.lerp(mapped_BHC, forecasts[1.0], share)
        for share, sums in sums_by_share.items():
            sums.add(forecasts[share].cpu().numpy(), batch["future"], batch["weight"])
        routing.add(batch["weight"])

    _forward_all(module, batches, dataset, add)
    whole = {
        share: ErrorSums.from_vector(summed_over_ranks(sums.to_vector()), horizon, num_channels)
        for share, sums in sums_by_share.items()
    }
    return whole, routing.summary(summed_over_ranks(routing.to_vector()))


def absolute_errors(module: nn.Module, batches: Iterable[Batch], *, dataset: int = 0) -> np.ndarray:
    """Compute absolute errors of windows that are the same on all ranks; (N, H, C), float32.

    Missing targets stay NaN.
    """
    parts: list[np.ndarray] = []

    def keep(batch: Batch, forecast: Tensor) -> None:
        parts.append(np.abs(forecast.float().cpu().numpy() - batch["future"]))

    _forward_all(module, batches, dataset, keep)
    return np.concatenate(parts)


def forecast_windows(
    module: nn.Module, batches: Iterable[Batch], *, dataset: int = 0
) -> dict[str, np.ndarray]:
    """Forecast a few windows that are the same on all ranks, for pictures.

    Returns:
        "past", "future" and "forecast" of shape (N, steps, C); missing values stay NaN.
    """
    parts: dict[str, list[np.ndarray]] = {"past": [], "future": [], "forecast": []}

    def keep(batch: Batch, forecast: Tensor) -> None:
        kept = batch["weight"] > 0
        for key, value in (*batch.items(), ("forecast", forecast.float().cpu().numpy())):
            if key in parts:
                parts[key].append(value[kept])

    _forward_all(module, batches, dataset, keep)
    # Contiguous, because safetensors writes an array's memory as it lies.
    return {key: np.ascontiguousarray(np.concatenate(values)) for key, values in parts.items()}


def _forward_all(
    module: nn.Module,
    batches: Iterable[Batch],
    dataset: int,
    use: Callable[[Batch, Tensor], None],
) -> None:
    was_training = module.training
    module.eval()
    device = module_device(module)
    with torch.no_grad():
        for batch in batches:
            use(batch, module(torch.as_tensor(batch["past"], device=device), dataset))
    module.train(was_training)


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters."""
    return next(module.parameters()).device
