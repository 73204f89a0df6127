"""All errors of a forecaster over the windows of a split, as sums that can be added.

MSE and MAE are of z-scores; sMAPE, MASE and OWA of the data's own units, as the M4 competition
defines them. Every mean is over observed targets.

Shapes: B batch, H horizon, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from timellama_dist.evaluation.metrics import ErrorSums, mean_errors

FloatArray = NDArray[np.floating]


def smape_terms(forecast: FloatArray, target: FloatArray) -> NDArray[np.float64]:
    """200 |y - f| / (|y| + |f|) of each target, in percent; 0 where both are 0."""
    total = np.abs(target) + np.abs(forecast)
    return np.divide(
        200 * np.abs(target - forecast), total, out=np.zeros_like(total), where=total != 0
    )


def owa(smape: float, mase: float, naive2: Mapping[str, float]) -> float:
    """Mean of sMAPE and MASE, each relative to Naive2's; NaN where Naive2 has no error."""
    if not (naive2["smape"] and naive2["mase"]):
        return math.nan
    return (smape / naive2["smape"] + mase / naive2["mase"]) / 2


@dataclass
class RawSums:
    """Sums of errors in the data's own units, by step and channel."""

    smape_HC: NDArray[np.float64]
    mase_HC: NDArray[np.float64]
    """Absolute errors, each divided by its series' scale, where the scale isn't 0."""
    mase_count_HC: NDArray[np.float64]

    @classmethod
    def zeros(cls, horizon: int, num_channels: int) -> Self:
        """Sums over no window."""
        return cls(*np.zeros((3, horizon, num_channels)))

    def add(self, forecast_BHC: FloatArray, target_BHC: FloatArray, scale_BC: FloatArray) -> None:
        """Add a batch in the data's units; a target that is NaN counts nothing.

        Args:
            forecast_BHC: the forecast.
            target_BHC: the truth.
            scale_BC: the in-sample error of the window's series; not above 0 where it has none.
        """
        observed_BHC = ~np.isnan(target_BHC)
        terms_BHC = smape_terms(forecast_BHC, target_BHC)
        self.smape_HC += np.where(observed_BHC, terms_BHC, 0.0).sum(axis=0)
        scaled_BHC = observed_BHC & (scale_BC > 0)[:, None]
        error_BHC = np.abs(forecast_BHC - target_BHC) / np.where(scale_BC > 0, scale_BC, 1)[:, None]
        self.mase_HC += np.where(scaled_BHC, error_BHC, 0.0).sum(axis=0)
        self.mase_count_HC += scaled_BHC.sum(axis=0)

    def summary(self, count_HC: FloatArray, axis: Any = None) -> dict[str, Any]:
        """sMAPE and MASE over all targets, or over one axis; NaN where none counts."""
        with np.errstate(invalid="ignore", divide="ignore"):
            smape = self.smape_HC.sum(axis) / count_HC.sum(axis)
            mase = self.mase_HC.sum(axis) / self.mase_count_HC.sum(axis)
        return {"smape": smape.tolist(), "mase": mase.tolist()}


@dataclass
class Scores:
    """What a forecaster made of some windows, beside what Naive2 made of them."""

    errors: ErrorSums
    """Of z-scores."""
    raw: RawSums
    naive2: RawSums

    @classmethod
    def zeros(cls, horizon: int, num_channels: int) -> Self:
        """Scores of no window."""
        return cls(
            ErrorSums.zeros(horizon, num_channels),
            RawSums.zeros(horizon, num_channels),
            RawSums.zeros(horizon, num_channels),
        )

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(
            *(_added(getattr(self, part.name), getattr(other, part.name)) for part in fields(self))
        )

    def summary(self) -> dict[str, float]:
        """MSE, MAE, sMAPE, MASE and OWA over all targets.

        Raises:
            DataError: no target is observed.
        """
        errors = self.errors.summary()
        raw = self.raw.summary(self.errors.count_HC)
        return {**errors, **raw, "owa": owa(raw["smape"], raw["mase"], self.naive2_summary())}

    def naive2_summary(self) -> dict[str, float]:
        """Naive2's sMAPE and MASE on the same targets."""
        return self.naive2.summary(self.errors.count_HC)

    def by_step(self) -> dict[str, list[float]]:
        """Each error of each step of the horizon."""
        return self._along(1)

    def by_channel(self) -> dict[str, list[float]]:
        """Each error of each channel."""
        return self._along(0)

    def _along(self, axis: int) -> dict[str, list[float]]:
        errors = self.errors
        count = errors.count_HC.sum(axis)
        with np.errstate(invalid="ignore", divide="ignore"):
            mse, mae = errors.squared_HC.sum(axis) / count, errors.absolute_HC.sum(axis) / count
        return {
            "mse": mse.tolist(),
            "mae": mae.tolist(),
            **self.raw.summary(errors.count_HC, axis),
        }


def overall(scores: Sequence[Scores]) -> dict[str, float]:
    """The figures over several data sets.

    MSE and MAE are unweighted means. sMAPE and MASE are weighted by windows, of which M4 has one a
    series, and OWA is that of the weighted means, as the competition has it over its collections.
    """
    errors = mean_errors([dataset.errors.summary() for dataset in scores])
    weights = [dataset.errors.windows for dataset in scores]
    raw, reference = (
        {
            key: float(np.average([means[key] for means in by_dataset], weights=weights))
            for key in ("smape", "mase")
        }
        for by_dataset in (
            [dataset.raw.summary(dataset.errors.count_HC) for dataset in scores],
            [dataset.naive2_summary() for dataset in scores],
        )
    )
    return {**errors, **raw, "owa": owa(raw["smape"], raw["mase"], reference)}


def _added(first: Any, second: Any) -> Any:
    kind = type(first)
    return kind(**{f.name: getattr(first, f.name) + getattr(second, f.name) for f in fields(kind)})
