"""Exact error sums that can be added over batches and ranks.

Shapes: B batch, H horizon, C channels.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass
class ErrorSums:
    """Sums of squared and absolute errors by step and channel, and the windows they come from."""

    squared_HC: NDArray[np.float64]
    absolute_HC: NDArray[np.float64]
    windows: int = field(default=0)

    @classmethod
    def zeros(cls, horizon: int, num_channels: int) -> Self:
        """Sums over no window."""
        shape = (horizon, num_channels)
        return cls(np.zeros(shape), np.zeros(shape))

    def add(self, forecast_BHC: FloatArray, future_BHC: FloatArray, weight_B: FloatArray) -> None:
        """Add a batch; a window of weight 0 only fills the batch up and counts nothing."""
        kept = weight_B > 0
        error = forecast_BHC[kept].astype(np.float64) - future_BHC[kept]
        self.squared_HC += np.square(error).sum(axis=0)
        self.absolute_HC += np.abs(error).sum(axis=0)
        self.windows += int(kept.sum())

    def to_vector(self) -> NDArray[np.float64]:
        """All sums in one vector, to be added over ranks."""
        return np.concatenate(
            [self.squared_HC.ravel(), self.absolute_HC.ravel(), [float(self.windows)]]
        )

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64], horizon: int, num_channels: int) -> Self:
        """The inverse of `to_vector`."""
        squared, absolute, windows = np.split(vector, [horizon * num_channels, len(vector) - 1])
        shape = (horizon, num_channels)
        return cls(squared.reshape(shape), absolute.reshape(shape), int(windows[0]))

    def summary(self) -> dict[str, float]:
        """MSE and MAE over all windows, steps and channels."""
        values = self.windows * self.squared_HC.size
        return {
            "mse": float(self.squared_HC.sum() / values),
            "mae": float(self.absolute_HC.sum() / values),
        }
