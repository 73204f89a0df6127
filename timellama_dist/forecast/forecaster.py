"""Forecasts from an exported model and a data frame; needs neither Ray nor DeepSpeed.

    from timellama_dist import TimeLlamaForecaster

    forecast = TimeLlamaForecaster.load("RUN/model").predict(frame)

Shapes: B series, H horizon, C channels.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from timellama_dist.config.schema import RunConfig
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.frames import Frame, like, to_pandas
from timellama_dist.data.tables.long_form import future_times, long_form
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.errors import ConfigError, require_at_least
from timellama_dist.forecast.contexts import forecast_batch, roll_forecasts
from timellama_dist.forecast.datasets import TrainedDataset, read_scalers, trained_datasets
from timellama_dist.forecast.fitting import train_on_frame
from timellama_dist.forecast.intervals import interval_radii
from timellama_dist.forecast.tables import read_frame, table_options
from timellama_dist.model.card import ModelCard, local_folder, read_quantiles, scalers_file
from timellama_dist.model.exported import load_model
from timellama_dist.model.intervals import RECENT, check_levels
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.storage import Location

_BATCH = 64


class TimeLlamaForecaster:
    """A trained Time-LlaMA that forecasts the next steps of the series in a frame.

    Args:
        model: the model, in evaluation mode.
        card: what it was trained on.
        scalers: of each data set by `unique_id`, of the training part.
        quantiles: of each data set's errors on its validation part, for intervals.
    """

    def __init__(
        self,
        model: TimeLlama,
        card: ModelCard,
        scalers: Sequence[dict[str, Scaler]],
        quantiles: Sequence[np.ndarray] = (),
    ) -> None:
        self.model = model
        self.card = card
        data = RunConfig.from_dict(card.config).data
        self.context_len = data.context_len
        self.horizon = data.horizon
        self._datasets = trained_datasets(card, scalers, quantiles)

    @classmethod
    def load(
        cls,
        path: Location,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        unpack: bool | None = None,
    ) -> Self:
        """Load an exported model, the folder `model` of a run, from a local path or a URI.

        Args:
            path: where the model is.
            device: where it shall run.
            dtype: of its weights, see `load_model`.
            unpack: whether to unpack its 4-bit matrices, see `load_model`.

        Raises:
            CheckpointError: missing, damaged, or of an unknown schema version.
            ConfigError: the model's backbone can't be had.
            DataError: the storage refuses.
        """
        with local_folder(path) as folder:
            model, card = load_model(folder, device=device, dtype=dtype, unpack=unpack)
            files = [folder / scalers_file(number) for number, _ in enumerate(card.datasets)]
            scalers = [read_scalers(file) for file in files]
            return cls(model, card, scalers, read_quantiles(folder))

    @classmethod
    def fit(cls, frame: Frame, run_dir: Path | str, **keys: Any) -> Self:
        """Train on a frame as `timellama train` does, with Ray and DeepSpeed; load the model.

        Example:
            import pandas as pd
            from timellama_dist import TimeLlamaForecaster

            frame = pd.read_csv("sales.csv", parse_dates=["ds"])  # unique_id, ds, sales
            forecaster = TimeLlamaForecaster.fit(
                frame, "runs/sales", **{"data.horizon": 14, "train.max_steps": 200}
            )
            forecast = forecaster.predict(frame, level=[80])

            # Later, without training:
            forecaster = TimeLlamaForecaster.load("runs/sales/model")

        Args:
            frame: as in `predict`; it is written beside the run directory, with `.parquet` added,
                where nothing else may be.
            run_dir: where the run goes; missing or empty.
            keys: keys of the configuration.

        Raises:
            ConfigError: the configuration can't be run, or the frame's place is taken.
            DataError: the frame can't be used.
        """
        return cls.load(train_on_frame(frame, run_dir, keys))

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that the model was trained on, in order."""
        return list(self._datasets)

    @property
    def channels(self) -> list[str]:
        """The channels that the model forecasts, in order, if it was trained on one data set.

        Raises:
            ConfigError: it was trained on several, each with channels of its own.
        """
        return list(self.dataset(None).card.channels)

    def predict(
        self,
        frame: Frame,
        horizon: int | None = None,
        *,
        dataset: str | None = None,
        level: Sequence[float] = (),
        recent: int = RECENT,
        roll: bool = False,
    ) -> Frame:
        """Forecast the steps after the last row of every series.

        Args:
            frame: of pandas, polars or pyarrow; wide (`date, <channel>...`) or long (`unique_id,
                ds, <value>...`), laid out as the table the model was trained on, with at least
                `context_len` rows a series (one row if it was trained with data.short_series=pad);
                columns that the model doesn't know are not read. Values may be missing if the model
                was trained with data.missing=mask; a channel whose whole context is missing is
                forecast at about the mean of its training part.
            horizon: steps to forecast, at most those it was trained for; all if not given.
            dataset: which of the data sets it was trained on the frame is of; may be left out if
                there is but one.
            level: percents, such as [80, 95], of prediction intervals.
            recent: the intervals follow the errors of that many forecasts of the frame's own past,
                4 rows apart, each one more forecast to make; 0 keeps to the validation part's
                errors.
            roll: let the horizon be longer: forecasts are then made from forecasts.

        Returns:
            Long form, of the frame's kind: `unique_id, ds, channel, yhat`, and for each level
            `yhat-lo-80, yhat-hi-80`, in the frame's units.

        Raises:
            ConfigError: the horizon, a level or `recent` is out of bounds, it isn't clear which
                data set is meant, or the model has no quantiles for intervals.
            DataError: the frame lacks a channel, rows or values, has another frequency, or holds
                what `read_table` refuses.
        """
        card = self.dataset(dataset).card
        steps = _steps(horizon, card.horizon, level, roll=roll)
        require_at_least(0, {"recent": recent})
        levels = check_levels(level)
        table = self.table(to_pandas(frame), table_options(card), card.name)
        times_BH = future_times(table.timestamps[table.first_rows[1:] - 1], card.frequency, steps)
        forecast = partial(self.forecast_series, dataset=card.name)
        yhat_BHC = roll_forecasts(forecast, table.series, times_BH, card.horizon)
        radii = self.radii(table.series, levels, card.name, recent=recent)
        columns = with_bounds(yhat_BHC, radii)
        return like(frame, long_form(table.unique_ids, times_BH, table.channels, columns))

    def table(
        self,
        frame: pd.DataFrame,
        options: TableOptions,
        dataset: str | None = None,
        origin: Origin | None = None,
    ) -> Table:
        """Read a frame's series and check them, see `read_frame`.

        Raises:
            ConfigError: it isn't clear which data set is meant.
            DataError: as `predict`.
        """
        return read_frame(self.dataset(dataset), frame, options, origin)

    def radii(
        self,
        series: Sequence[Series],
        levels: Sequence[float],
        dataset: str | None = None,
        *,
        recent: int = RECENT,
    ) -> dict[float, np.ndarray]:
        """Compute half the widths of the intervals around `forecast_series`, by level in percent.

        Args:
            series: with as much of their past as is to be looked back at.
            levels: in percent.
            dataset: as in `predict`.
            recent: as in `predict`.

        Returns:
            In the data's units, shape (series, horizon, C).

        Raises:
            ConfigError: the model was exported without quantiles of its errors.
        """
        trained = self.dataset(dataset)
        forecast = partial(self.forecast_series, dataset=trained.card.name)
        return interval_radii(trained, forecast, series, levels, recent)

    def forecast_series(
        self, series: Sequence[Series], *, dataset: str | None = None, batch_size: int = _BATCH
    ) -> np.ndarray:
        """Forecast the steps after the last row of each series, which have passed all checks.

        Args:
            series: of the data set's channels and step, in the data's units; only the last
                `context_len` rows of each count.
            dataset: as in `predict`.
            batch_size: series per forward pass.

        Returns:
            In the data's units, shape (series, horizon, C), float64.

        Raises:
            ConfigError: it isn't clear which data set is meant.
        """
        trained = self.dataset(dataset)
        batches = [series[n : n + batch_size] for n in range(0, len(series), batch_size)]
        parts = [forecast_batch(self.model, self.context_len, trained, batch) for batch in batches]
        return np.concatenate(parts)[:, : trained.card.horizon]

    def dataset(self, name: str | None) -> TrainedDataset:
        """Find a data set that the model was trained on; the only one if no name is given.

        Raises:
            ConfigError: none has that name, or there are several and no name is given.
        """
        return self._datasets[self.card.named(name).name]


def with_bounds(yhat_BHC: np.ndarray, radii: dict[float, np.ndarray]) -> dict[str, np.ndarray]:
    """Name a forecast and its intervals' bounds: `yhat`, `yhat-lo-80`, `yhat-hi-80`.

    Args:
        yhat_BHC: the forecast.
        radii: half the widths by level in percent, of at least as many steps.
    """
    columns = {"yhat": yhat_BHC}
    for level, radius_BHC in radii.items():
        radius_BHC = radius_BHC[:, : yhat_BHC.shape[1]]
        columns[f"yhat-lo-{level:g}"] = yhat_BHC - radius_BHC
        columns[f"yhat-hi-{level:g}"] = yhat_BHC + radius_BHC
    return columns


def _steps(horizon: int | None, longest: int, level: Sequence[float], *, roll: bool) -> int:
    """Check a horizon and fill in the default.

    Raises:
        ConfigError: it is out of bounds, or above them with levels.
    """
    steps = longest if horizon is None else horizon
    if steps < 1 or (steps > longest and not roll):
        raise ConfigError(
            key="horizon",
            must=f"be between 1 and {longest}",
            got=steps,
            hint="roll=True forecasts further, from its own forecasts",
        )
    if steps > longest and level:
        raise ConfigError(f"level can't be given with a horizon above {longest}, got {steps}")
    return steps
