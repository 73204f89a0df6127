"""Exact error sums that can be added over batches and ranks.

Shapes: B batch, H horizon, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from timellama_dist.errors import DataError

FloatArray = NDArray[np.floating]


def mean_errors(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Unweighted means over data sets, so that a small set counts as much as a large one."""
    return {key: sum(means[key] for means in errors) / len(errors) for key in errors[0]}


@dataclass
class ErrorSums:
    """Sums of squared and absolute errors over observed targets, by step and channel."""

    squared_HC: NDArray[np.float64]
    absolute_HC: NDArray[np.float64]
    count_HC: NDArray[np.float64]
    """Observed targets; float64, which counts exactly up to 2**53, to travel with the sums."""
    windows: int = field(default=0)
    """Windows the sums come from, those without any observed target too."""

    @classmethod
    def zeros(cls, horizon: int, num_channels: int) -> Self:
        """Sums over no window."""
        squared, absolute, count = np.zeros((3, horizon, num_channels))
        return cls(squared, absolute, count)

    def add(self, forecast_BHC: FloatArray, future_BHC: FloatArray, weight_B: FloatArray) -> None:
        """Add a batch; a target that is NaN, or in a window of weight 0, counts nothing."""
        kept = weight_B > 0
        future_BHC = future_BHC[kept]
        observed_BHC = ~np.isnan(future_BHC)
        error_BHC = forecast_BHC[kept].astype(np.float64) - future_BHC
        # Not by NaN errors: a forecast that is NaN must show in the sums.
        error_BHC = np.where(observed_BHC, error_BHC, 0.0)
        self.squared_HC += np.square(error_BHC).sum(axis=0)
        self.absolute_HC += np.abs(error_BHC).sum(axis=0)
        self.count_HC += observed_BHC.sum(axis=0)
        self.windows += int(kept.sum())

    def to_vector(self) -> NDArray[np.float64]:
        """All sums in one vector, to be added over ranks."""
        sums = np.stack([self.squared_HC, self.absolute_HC, self.count_HC])
        return np.append(sums, float(self.windows))

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64], horizon: int, num_channels: int) -> Self:
        """The inverse of `to_vector`."""
        squared, absolute, count = vector[:-1].reshape(3, horizon, num_channels)
        return cls(squared, absolute, count, int(vector[-1]))

    def detail(self) -> dict[str, dict[str, list[float | None]]]:
        """MSE and MAE by step of the horizon and by channel; None where no target is observed."""
        return {
            name: {
                "mse": _means(self.squared_HC.sum(axis=axis), self.count_HC.sum(axis=axis)),
                "mae": _means(self.absolute_HC.sum(axis=axis), self.count_HC.sum(axis=axis)),
            }
            for name, axis in (("by_step", 1), ("by_channel", 0))
        }

    def summary(self) -> dict[str, float]:
        """MSE and MAE over all observed targets.

        Raises:
            DataError: no target is observed.
        """
        count = self.count_HC.sum()
        if count == 0:
            raise DataError(
                f"every target of {self.windows} windows is missing: there is no error to measure"
            )
        return {
            "mse": float(self.squared_HC.sum() / count),
            "mae": float(self.absolute_HC.sum() / count),
        }


def _means(sums: FloatArray, counts: FloatArray) -> list[float | None]:
    return [
        float(total / count) if count else None for total, count in zip(sums, counts, strict=True)
    ]
