"""Forecasts from an exported model and a data frame; needs neither Ray nor DeepSpeed.

from timellama_dist import TimeLlamaForecaster

forecast = TimeLlamaForecaster.load("RUN/model").predict(frame)
"""

from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from timellama_dist.data.scaling import Scaler
from timellama_dist.data.table import Series, SeriesLayout, Table, table_from_frame
from timellama_dist.errors import ConfigError, DataError
from timellama_dist.modeling.exported import SCALERS, ModelCard, load_model
from timellama_dist.modeling.timellama import TimeLlama

_BATCH = 64


class TimeLlamaForecaster:
    """A trained Time-LlaMA that forecasts the next steps of the series in a frame.

    Args:
        model: the model, in evaluation mode.
        card: what it was trained on.
        scalers: by `unique_id`, of the training part.
    """

    def __init__(self, model: TimeLlama, card: ModelCard, scalers: dict[str, Scaler]) -> None:
        self.model = model
        self.card = card
        self._scalers = scalers
        data = card.config["data"]
        self.context_len: int = data["context_len"]
        self.horizon: int = data["horizon"]

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Load an exported model, the folder `model` of a run.

        Raises:
            CheckpointError: missing, damaged, or of an unknown schema version.
            ConfigError: its backbone can't be had.
        """
        model, card = load_model(path, device=device)
        rows = pq.read_table(Path(path) / SCALERS, columns=["unique_id", "mean", "std"])
        scalers = {
            str(row["unique_id"]): Scaler(np.array(row["mean"]), np.array(row["std"]))
            for row in rows.to_pylist()
        }
        return cls(model, card, scalers)

    @property
    def _only(self) -> str:
        return next(iter(self._scalers))

    @property
    def channels(self) -> list[str]:
        """The channels it forecasts, in order."""
        return list(self.card.channels)

    def predict(self, frame: pd.DataFrame, horizon: int | None = None) -> pd.DataFrame:
        """Forecast the steps after the last row of every series.

        Args:
            frame: wide (`date, <channel>...`) or long (`unique_id, ds, <value>...`), laid out as
                the table the model was trained on, with at least `context_len` rows a series;
                columns that the model doesn't know are not read.
            horizon: steps to forecast, at most those it was trained for; all if not given.

        Returns:
            Long form: `unique_id, ds, channel, yhat`, in the frame's units.

        Raises:
            ConfigError: the horizon is out of bounds.
            DataError: the frame lacks a channel or rows, has another frequency, or holds what
                `read_table` refuses.
        """
        steps = self.horizon if horizon is None else horizon
        if not 1 <= steps <= self.horizon:
            raise ConfigError(f"horizon must be between 1 and {self.horizon}, got {steps}")
        table = self._table(frame)
        parts = []
        for first in range(0, len(table.series), _BATCH):
            batch = table.series[first : first + _BATCH]
            yhat_BHC = self._forecast(batch)[:, :steps]
            parts += [
                self._long_form(series, yhat_HC)
                for series, yhat_HC in zip(batch, yhat_BHC, strict=True)
            ]
        return pd.concat(parts, ignore_index=True)

    def _table(self, frame: pd.DataFrame) -> Table:
        data = self.card.config["data"]
        layout: SeriesLayout = data["series"] or "separate"
        # As columns of one series the channels carry the ids; else they are the frame's columns.
        columns = data["columns"] if layout == "channels" else self.channels
        table = table_from_frame(
            frame, series=layout, timestamps=data["timestamps"], columns=columns
        )
        if len(table.series) == len(self._scalers) == 1:
            # A wide frame has no name of its own.
            table = replace(table, series=(replace(table.series[0], unique_id=self._only),))
        if list(table.channels) != self.channels:
            raise DataError(
                f"frame: the model forecasts {self.channels}, the frame holds "
                f"{list(table.channels)}"
            )
        if table.frequency != self.card.frequency:
            raise DataError(
                f"frame: the model's step is {self.card.frequency!r}, the frame's "
                f"{table.frequency!r}"
            )
        for series in table.series:
            if len(series.values) < self.context_len:
                raise DataError(
                    f"frame: series {series.unique_id!r} has {len(series.values)} rows, the model "
                    f"needs the last {self.context_len}"
                )
        return table

    def _forecast(self, batch: tuple[Series, ...]) -> np.ndarray:
        scalers = [self._scaler(series) for series in batch]
        past_BLC = np.stack(
            [
                scaler.transform(series.values[-self.context_len :])
                for scaler, series in zip(scalers, batch, strict=True)
            ]
        )
        device = next(self.model.parameters()).device
        with torch.no_grad():
            forecast_BHC = self.model(torch.as_tensor(past_BLC, dtype=torch.float32, device=device))
        scaled = forecast_BHC.double().cpu().numpy()
        return np.stack([s.inverse(one) for s, one in zip(scalers, scaled, strict=True)])

    def _scaler(self, series: Series) -> Scaler:
        known = self._scalers.get(series.unique_id)
        # A series that training didn't see brings its own scale.
        return known or Scaler.fit(series.values)

    def _long_form(self, series: Series, yhat_HC: np.ndarray) -> pd.DataFrame:
        steps, num_channels = yhat_HC.shape
        times = pd.date_range(series.timestamps[-1], periods=steps + 1, freq=self.card.frequency)
        return pd.DataFrame(
            {
                "unique_id": series.unique_id,
                "ds": np.tile(times[1:], num_channels),
                "channel": np.repeat(self.channels, steps),
                "yhat": yhat_HC.T.ravel(),
            }
        )
