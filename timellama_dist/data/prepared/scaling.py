"""z-scores of each channel, by the mean and standard deviation of the training part."""

from dataclasses import dataclass
from typing import Any

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
        """Population statistics (ddof 0) of each column's observed values.

        A constant channel gets scale 1, so that it becomes 0 and not a division by zero; one
        without any observed value counts as a constant 0.

        Args:
            values: the training rows of one series, shape (rows, C), at least one row; NaN where a
                value is missing.

        Raises:
            DataError: values so large that their variance overflows.
        """
        rows = np.asarray(values, dtype=np.float64)
        observed: Any = True
        if np.isnan(rows).any():
            rows = np.where(np.isnan(rows).all(axis=0), 0.0, rows)
            observed = ~np.isnan(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = rows.mean(axis=0, where=observed)
            std = rows.std(axis=0, where=observed)
        _check_finite(std)
        # Not std == 0: rounding leaves the standard deviation of a constant 0.1 at 1e-17.
        largest = rows.max(axis=0, where=observed, initial=-np.inf)
        constant = (largest == rows.min(axis=0, where=observed, initial=np.inf)) | (std == 0)
        return cls(mean, np.where(constant, 1.0, std))

    @classmethod
    def fit_parts(
        cls,
        values: FloatArray,
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
        *,
        constant_scale: float = 1.0,
    ) -> "Scaler":
        """Statistics of many parts at once, each as `fit` gives them, over observed values.

        A channel without any observed value gets mean 0, and the scale of a constant one.

        Args:
            values: rows of parts one after the other, NaN where missing, shape (rows, C).
            begins: first row of each part, ascending, shape (parts,).
            ends: row after its last, at most the next part's first; at least one row a part.
            constant_scale: the scale of a constant channel.

        Returns:
            mean and std of shape (parts, C).

        Raises:
            DataError: values so large that their variance overflows.
        """
        # Pairs of begin and end: every second sum is of what lies between two parts.
        edges = np.stack([begins, ends], axis=1).ravel()
        edges = edges[:-1] if edges[-1] == len(values) else edges
        observed = np.isfinite(values)
        rows = np.where(observed, values, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            count = np.maximum(np.add.reduceat(observed, edges, axis=0, dtype=np.int64)[::2], 1)
            mean = np.add.reduceat(rows, edges, axis=0)[::2] / count
            part = np.searchsorted(begins, np.arange(len(values)), side="right") - 1
            centred = np.where(observed, values - mean[part], 0.0)
            std = np.sqrt(np.add.reduceat(np.square(centred), edges, axis=0)[::2] / count)
        _check_finite(std)
        gaps = np.where(observed, values, np.nan)
        low, high = (f.reduceat(gaps, edges, axis=0)[::2] for f in (np.fmin, np.fmax))
        return cls(mean, np.where((low == high) | (std == 0), constant_scale, std))

    def transform(self, values: FloatArray) -> NDArray[np.float64]:
        """z-scores of values of shape (..., C)."""
        return (np.asarray(values, dtype=np.float64) - self.mean) / self.std

    def inverse(self, scaled: FloatArray) -> NDArray[np.float64]:
        """Values of z-scores of shape (..., C)."""
        return np.asarray(scaled, dtype=np.float64) * self.std + self.mean


def _check_finite(std: NDArray[np.float64]) -> None:
    if (bad := ~np.isfinite(std)).any():
        channel = np.argwhere(bad)[0][-1] + 1
        raise DataError(
            f"values of channel {channel} are too large: their standard deviation overflows float64"
        )
