"""The data sets that a model was trained on, as its forecasts need them.

Shapes: L context, H horizon, C channels, K levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from timellama_dist.config.schema import RunConfig
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.series import Series
from timellama_dist.model.card import DatasetCard, ModelCard


@dataclass(frozen=True, kw_only=True)
class TrainedDataset:
    """A data set that a model was trained on."""

    number: int
    """Its place among the model's data sets."""
    card: DatasetCard
    scalers: dict[str, Scaler]
    """By `unique_id`, of the training part."""
    short_series: str
    """Whether series shorter than a window were padded ("pad") or left out ("skip")."""
    quantile_KHC: np.ndarray | None = None
    """Quantiles of the model's errors, see `model.intervals`; None if it was exported without."""

    @property
    def least_rows(self) -> int:
        """Rows that a forecast must see."""
        return 1 if self.short_series == "pad" else self.card.context_len

    def context(self, series: Series) -> np.ndarray:
        """Cut the rows that the model sees from the end of a series, shape (at most L, C)."""
        return series.values[-self.card.context_len :]

    def scaler(self, unique_id: str, past_LC: np.ndarray) -> Scaler:
        """Return the scaler of a series.

        A series that training didn't see is scaled by what the model sees of it, so that its
        forecast is the same however much of its past is there.
        """
        return self.scalers.get(unique_id) or Scaler.fit(past_LC)

    def names_of(self, unique_ids: Sequence[str]) -> Sequence[str]:
        """Name a wide table's series, which have no names of their own, as training did."""
        both_alone = len(unique_ids) == len(self.scalers) == 1
        return list(self.scalers) if both_alone else unique_ids


def trained_datasets(
    card: ModelCard, scalers: Sequence[dict[str, Scaler]], quantiles: Sequence[np.ndarray]
) -> dict[str, TrainedDataset]:
    """Join what an exported model holds of its data sets, by name.

    Args:
        card: the model's card.
        scalers: of each data set by `unique_id`.
        quantiles: of each data set's errors; empty if the model was exported without.
    """
    parts = RunConfig.from_dict(card.config).data.parts
    return {
        dataset.name: TrainedDataset(
            number=number,
            card=dataset,
            scalers=own_scalers,
            short_series=part.short_series,
            quantile_KHC=quantiles[number] if quantiles else None,
        )
        for number, (dataset, own_scalers, part) in enumerate(
            zip(card.datasets, scalers, parts, strict=True)
        )
    }


def read_scalers(file: Path) -> dict[str, Scaler]:
    """Read the scalers of a data set, by `unique_id`, from an exported model's file."""
    rows = pq.read_table(file, columns=["unique_id", "mean", "std"])
    return {
        str(row["unique_id"]): Scaler(np.array(row["mean"]), np.array(row["std"]))
        for row in rows.to_pylist()
    }
