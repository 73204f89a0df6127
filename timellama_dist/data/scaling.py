"""z-scores of each channel, by the mean and standard deviation of the training part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from timellama_dist.errors import DataError

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and scale per channel, float64, as scikit-learn's StandardScaler computes them."""

    mean: NDArray[np.float64]
    """Shape (C,), or any shape that broadcasts against the values'."""
    std: NDArray[np.float64]
    """Same shape, never 0."""

    @classmethod
    def fit(cls, values: FloatArray) -> "Scaler":
        """Population statistics (ddof 0) of each column.

        A constant channel gets scale 1, so that it becomes 0 and not a division by zero.

        Args:
            values: the training rows of one series, shape (rows, C), at least one row.

        Raises:
            DataError: values so large that their variance overflows.
        """
        rows = np.asarray(values, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = rows.mean(axis=0), rows.std(axis=0)
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise DataError("values are too large: their standard deviation overflows float64")
        # Not std == 0: rounding leaves the standard deviation of a constant 0.1 at 1e-17.
        constant = (rows.max(axis=0) == rows.min(axis=0)) | (std == 0)
        return cls(mean, np.where(constant, 1.0, std))

    def transform(self, values: FloatArray) -> NDArray[np.float64]:
        """z-scores of values of shape (..., C)."""
        return (np.asarray(values, dtype=np.float64) - self.mean) / self.std

    def inverse(self, scaled: FloatArray) -> NDArray[np.float64]:
        """Values of z-scores of shape (..., C)."""
        return np.asarray(scaled, dtype=np.float64) * self.std + self.mean
