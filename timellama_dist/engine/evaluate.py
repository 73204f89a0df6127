"""Exact evaluation over the windows of a split, whatever the number of ranks."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from timellama_dist.engine.metrics import ErrorSums

Batch = Mapping[str, np.ndarray]


def evaluate(
    module: nn.Module, batches: Iterable[Batch], *, horizon: int, num_channels: int
) -> ErrorSums:
    """Sum errors over this rank's batches and over all ranks; every rank must call.

    Every rank must be given the same number of batches (ZeRO-3 gathers weights in each forward);
    windows of weight 0 only fill them up.

    Args:
        module: a DeepSpeed engine or a plain model, `past (B, L, C) -> forecast (B, H, C)`.
        batches: with "past" (B, L, C), "future" (B, H, C) and "weight" (B,), on z-scored values.
        horizon: H.
        num_channels: C.

    Returns:
        The sums over all ranks.
    """
    sums = ErrorSums.zeros(horizon, num_channels)

    def add(batch: Batch, forecast: Tensor) -> None:
        sums.add(forecast.float().cpu().numpy(), batch["future"], batch["weight"])

    _forward_all(module, batches, add)
    return _summed_over_ranks(sums, horizon, num_channels)


def forecast_windows(module: nn.Module, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Forecasts of a few windows that every rank is given alike, for pictures.

    Returns:
        "past", "future" and "forecast" of shape (N, steps, C).
    """
    parts: dict[str, list[np.ndarray]] = {"past": [], "future": [], "forecast": []}

    def keep(batch: Batch, forecast: Tensor) -> None:
        kept = batch["weight"] > 0
        for key, value in (*batch.items(), ("forecast", forecast.float().cpu().numpy())):
            if key in parts:
                parts[key].append(value[kept])

    _forward_all(module, batches, keep)
    # Contiguous, because safetensors writes an array's memory as it lies.
    return {key: np.ascontiguousarray(np.concatenate(values)) for key, values in parts.items()}


def _forward_all(
    module: nn.Module, batches: Iterable[Batch], use: Callable[[Batch, Tensor], None]
) -> None:
    was_training = module.training
    module.eval()
    device = module_device(module)
    with torch.no_grad():
        for batch in batches:
            use(batch, module(torch.as_tensor(batch["past"], device=device)))
    module.train(was_training)


def module_device(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device


def _summed_over_ranks(sums: ErrorSums, horizon: int, num_channels: int) -> ErrorSums:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    # NCCL reduces what is on the GPU only.
    backend = torch.distributed.get_backend()
    vector = torch.from_numpy(sums.to_vector()).to("cuda" if "nccl" in backend else "cpu")
    torch.distributed.all_reduce(vector)
    return ErrorSums.from_vector(vector.cpu().numpy(), horizon, num_channels)
