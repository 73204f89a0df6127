"""Forecasts from an exported model and a data frame; needs neither Ray nor DeepSpeed.

from timellama_dist import TimeLlamaForecaster

forecast = TimeLlamaForecaster.load("RUN/model").predict(frame)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from timellama_dist.config.schema import RunConfig
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.columns import ID_COLUMN
from timellama_dist.data.tables.frames import Frame, like, to_pandas
from timellama_dist.data.tables.frequency import same_step
from timellama_dist.data.tables.long_form import future_times, long_form
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.data.tables.table import table_from_frame
from timellama_dist.errors import ConfigError, DataError, UserError, require_at_least
from timellama_dist.model.card import (
    DatasetCard,
    ModelCard,
    local_folder,
    read_quantiles,
    scalers_file,
)
from timellama_dist.model.exported import load_model
from timellama_dist.model.intervals import (
    RECENT,
    check_levels,
    cutoffs_before,
    radius,
    tracked_radius,
)
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.storage import Location

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A data set that the model was trained on."""

    number: int
    card: DatasetCard
    scalers: dict[str, Scaler]
    """By `unique_id`, of the training part."""
    short_series: str
    """Was it trained on series shorter than a window ("pad"), or not ("skip")?"""
    quantile_KHC: np.ndarray | None = None
    """Of its errors, see `intervals`."""

    @property
    def least_rows(self) -> int:
        """Rows that a forecast must see."""
        return 1 if self.short_series == "pad" else self.card.context_len

    def scaler(self, unique_id: str, past_LC: np.ndarray) -> Scaler:
        """The series' scaler; one that training didn't see is scaled by what the model sees of it,
        so that its forecast is the same however much of its past is there."""
        return self.scalers.get(unique_id) or Scaler.fit(past_LC)


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
        self._sets = {
            one.name: KnownSet(
                number=number,
                card=one,
                scalers=known,
                short_series=part.short_series,
                quantile_KHC=quantiles[number] if quantiles else None,
            )
            for number, (one, known, part) in enumerate(
                zip(card.datasets, scalers, data.parts, strict=True)
            )
        }

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
            path: where it is.
            device: where it shall run.
            dtype: of its weights, see `load_model`.
            unpack: its 4-bit matrices when it is loaded, see `load_model`.

        Raises:
            CheckpointError: missing, damaged, or of an unknown schema version.
            ConfigError: its backbone can't be had.
            DataError: the storage refuses.
        """
        with local_folder(path) as folder:
            model, card = load_model(folder, device=device, dtype=dtype, unpack=unpack)
            files = [folder / scalers_file(number) for number, _ in enumerate(card.datasets)]
            scalers = [_read_scalers(file) for file in files]
            return cls(model, card, scalers, read_quantiles(folder))

    @classmethod
    def fit(cls, frame: Frame, run_dir: Path | str, **keys: Any) -> Self:
        """Train on a frame as `ray_jobs/train.py` does, with Ray and DeepSpeed, and load the model.

        Args:
            frame: as in `predict`; it is written beside the run directory, with `.parquet` added,
                where nothing else may be.
            run_dir: where the run goes; missing or empty.
            keys: keys of the configuration, such as `**{"data.horizon": 24}`.

        Raises:
            ConfigError: the configuration can't be run, or the frame's place is taken.
            DataError: the frame can't be used.
        """
        # Who only forecasts needs none of it.
        from timellama_dist.config.load import config_from_flat
        from timellama_dist.train.driver import train

        path = Path(f"{run_dir}.parquet").absolute()
        config = config_from_flat({"data.path": str(path), "run.dir": str(run_dir), **keys})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(to_pandas(frame), preserve_index=False), sink)
        content, new = sink.getvalue().to_pybytes(), not path.exists()
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            raise ConfigError(
                f"run_dir: the frame goes to {path}, which holds something else; choose another "
                f"run_dir, got {str(run_dir)!r}"
            )
        try:
            return cls.load(train(config).run_dir / "model")
        except UserError:
            if new and not Path(run_dir).exists():
                path.unlink()
            raise

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets it was trained on, in order."""
        return list(self._sets)

    @property
    def channels(self) -> list[str]:
        """The channels it forecasts, in order, if it was trained on one data set.

        Raises:
            ConfigError: it was trained on several, each with channels of its own.
        """
        return list(self.known(None).card.channels)

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
                data set is meant, or the model knows nothing of intervals.
            DataError: the frame lacks a channel, rows or values, has another frequency, or holds
                what `read_table` refuses.
        """
        known = self.known(dataset)
        most = known.card.horizon
        steps = most if horizon is None else horizon
        if steps < 1 or (steps > most and not roll):
            raise ConfigError(
                f"horizon must be between 1 and {most}, got {steps}; roll=True forecasts further, "
                "from its own forecasts"
            )
        if steps > most and level:
            raise ConfigError(f"level can't be given with a horizon above {most}, got {steps}")
        require_at_least(0, {"recent": recent})
        levels, name = check_levels(level), known.card.name
        table = self.table(to_pandas(frame), table_options(known.card), name)
        lasts = table.timestamps[table.first_rows[1:] - 1]
        times_BH = future_times(lasts, known.card.frequency, steps)
        yhat_BHC = self._rolled(table.series, times_BH, known)
        values = {"yhat": yhat_BHC}
        for one, radius_BHC in self.radii(table.series, levels, name, recent=recent).items():
            values[f"yhat-lo-{one:g}"] = yhat_BHC - radius_BHC[:, :steps]
            values[f"yhat-hi-{one:g}"] = yhat_BHC + radius_BHC[:, :steps]
        return like(frame, long_form(table.unique_ids, times_BH, table.channels, values))

    def table(
        self,
        frame: pd.DataFrame,
        options: TableOptions,
        dataset: str | None = None,
        origin: Origin | None = None,
    ) -> Table:
        """A frame's series, which have passed all checks.

        Args:
            frame: as in `predict`.
            options: how it is read, see `table_options`.
            dataset: as in `predict`.
            origin: what messages call the frame and its rows.

        Raises:
            ConfigError: it isn't clear which data set is meant.
            DataError: as `predict`.
        """
        known = self.known(dataset)
        place = origin.place if origin else "frame"
        step = known.card.frequency if known.least_rows == 1 else None
        table = table_from_frame(frame, options, origin, step=step)
        if ID_COLUMN not in frame.columns or options.series == "channels":
            ids = self.known_ids(table.unique_ids, known.card.name)
            table = replace(table, unique_ids=tuple(ids))
        check_table(known.card, table.channels, str(table.frequency), place)
        for series in table.series:
            if len(series.values) < known.least_rows:
                raise DataError(
                    f"{place}: series {series.unique_id!r} has {len(series.values)} rows, the "
                    f"model needs the last {known.card.context_len}"
                )
        return table

    def radii(
        self,
        series: Sequence[Series],
        levels: Sequence[float],
        dataset: str | None = None,
        *,
        recent: int = RECENT,
    ) -> dict[float, np.ndarray]:
        """Half the widths of the intervals around `forecast_series`, by level in percent.

        Args:
            series: with as much of their past as is to be looked back at.
            levels: in percent.
            dataset: as in `predict`.
            recent: as in `predict`.

        Returns:
            In the data's units, shape (series, horizon, C).

        Raises:
            ConfigError: the model knows nothing of intervals.
        """
        known = self.known(dataset)
        if not levels:
            return {}
        if known.quantile_KHC is None:
            raise ConfigError("level: the model was exported without what intervals are made of")
        horizon = known.card.horizon
        shape = (recent, horizon, len(known.card.channels))
        error_BTHC = np.full((len(series), *shape), np.nan)
        std_BC = np.empty((len(series), shape[-1]))
        for number, one in enumerate(series):
            std_BC[number] = known.scaler(one.unique_id, self._context(one, known)).std
            seen = cutoffs_before(len(one.values), horizon, recent)
            kept = seen >= known.least_rows
            pasts = [_first_rows(one, int(rows)) for rows in seen[kept]]
            if pasts:
                truth_THC = np.stack([one.values[rows : rows + horizon] for rows in seen[kept]])
                forecast_THC = self.forecast_series(pasts, dataset=known.card.name)
                error_BTHC[number, kept] = np.abs(truth_THC - forecast_THC) / std_BC[number]
        quantile_KHC = known.quantile_KHC[:, :horizon]
        return {
            level: tracked_radius(radius(quantile_KHC, level), error_BTHC, level) * std_BC[:, None]
            for level in levels
        }

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
        known = self.known(dataset)
        batches = [series[n : n + batch_size] for n in range(0, len(series), batch_size)]
        found = [self._forecast(batch, known) for batch in batches]
        return np.concatenate(found)[:, : known.card.horizon]

    def known_ids(self, unique_ids: Sequence[str], dataset: str | None = None) -> Sequence[str]:
        """Names of a wide table's series, which have none of their own, as the model knows them."""
        known = self.known(dataset)
        return list(known.scalers) if len(unique_ids) == len(known.scalers) == 1 else unique_ids

    def _rolled(
        self, series: Sequence[Series], times_BH: np.ndarray, known: KnownSet
    ) -> np.ndarray:
        """Forecasts of any number of steps: what is beyond the horizon sees forecasts."""
        found: list[np.ndarray] = []
        steps, done = times_BH.shape[1], 0
        while done < steps:
            found.append(self.forecast_series(series, dataset=known.card.name))
            done += known.card.horizon
            if done < steps:
                series = [
                    Series(
                        one.unique_id,
                        np.append(one.timestamps, times[done - known.card.horizon : done]),
                        np.concatenate([one.values, yhat_HC]),
                    )
                    for one, times, yhat_HC in zip(series, times_BH, found[-1], strict=True)
                ]
        return np.concatenate(found, axis=1)[:, :steps]

    @staticmethod
    def _context(series: Series, known: KnownSet) -> np.ndarray:
        return series.values[-known.card.context_len :]

    def known(self, dataset: str | None) -> KnownSet:
        """What the model knows of a data set.

        Raises:
            ConfigError: it knows none of that name, or several and none was named.
        """
        return self._sets[self.card.named(dataset).name]

    def _forecast(self, batch: Sequence[Series], known: KnownSet) -> np.ndarray:
        # What a series or its data set has no rows for is missing.
        past_BLC = np.full((len(batch), self.context_len, len(known.card.channels)), np.nan)
        scalers = []
        for past_LC, series in zip(past_BLC, batch, strict=True):
            rows = self._context(series, known)
            scalers.append(known.scaler(series.unique_id, rows))
            past_LC[self.context_len - len(rows) :] = scalers[-1].transform(rows)
        device = next(self.model.parameters()).device
        past = torch.as_tensor(past_BLC, dtype=torch.float32, device=device)
        with torch.inference_mode():
            forecast_BHC = self.model(past, known.number)
        scaled = forecast_BHC.double().cpu().numpy()
        return np.stack([s.inverse(one) for s, one in zip(scalers, scaled, strict=True)])


def table_options(card: DatasetCard) -> TableOptions:
    """How a table like the one a model was trained on is read."""
    options = TableOptions.of(card.options)
    # As columns of one series the channels carry the ids; else they are the table's columns.
    columns = options.columns if options.series == "channels" else tuple(card.channels)
    return replace(options, layout="auto", frequency=None, columns=columns)


def check_table(card: DatasetCard, channels: Sequence[str], frequency: str, place: str) -> None:
    """Refuse a table of other channels, or another step, than a model's.

    Raises:
        DataError: it is one.
    """
    if list(channels) != card.channels:
        raise DataError(
            f"{place}: the model forecasts {card.channels}, the {_kind(place)} holds "
            f"{list(channels)}"
        )
    if not same_step(frequency, card.frequency):
        raise DataError(
            f"{place}: the model's step is {card.frequency!r}, the {_kind(place)}'s {frequency!r}"
        )


def _kind(place: str) -> str:
    return "frame" if place == "frame" else "table"


def _first_rows(series: Series, count: int) -> Series:
    return Series(series.unique_id, series.timestamps[:count], series.values[:count])


def _read_scalers(file: Path) -> dict[str, Scaler]:
    rows = pq.read_table(file, columns=["unique_id", "mean", "std"])
    return {
        str(row["unique_id"]): Scaler(np.array(row["mean"]), np.array(row["std"]))
        for row in rows.to_pylist()
    }
