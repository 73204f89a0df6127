"""What can be scored: functions from windows to forecasts, all in z-scores.

A forecaster takes a batch as `WindowReader.read` gives it and returns (B, H, C), without missing
values. It sees `past`, `series` and `start`, never `future`.

Shapes: B batch, L context, H horizon, C channels, N histories, T steps of a history.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spans import Batch
from timellama_dist.errors import ConfigError
from timellama_dist.evaluation.baselines import seasonal_naive
from timellama_dist.evaluation.naive2 import naive2
from timellama_dist.evaluation.windows import module_device
from timellama_dist.model.linear_fit import fill_missing, linear_forecast

FloatArray = NDArray[np.floating]
Forecaster = Callable[[Batch], FloatArray]


def model_forecaster(
    model: nn.Module, *, dataset: int, context_len: int, horizon: int
) -> Forecaster:
    """Forecast with a Time-LlaMA, on windows no longer than its own.

    Args:
        model: `past (B, L, C), data set -> forecast (B, H, C)`, in evaluation mode.
        dataset: which of its data sets the windows are of.
        context_len: the model's own context; what a window lacks of it is missing.
        horizon: the windows' horizon, at most the model's.
    """

    def forecast(batch: Batch) -> FloatArray:
        past_BLC = batch["past"]
        before = context_len - past_BLC.shape[1]
        past_BLC = np.pad(past_BLC, [(0, 0), (before, 0), (0, 0)], constant_values=np.nan)
        with torch.no_grad():
            forecast_BHC = model(torch.as_tensor(past_BLC, device=module_device(model)), dataset)
        return forecast_BHC[:, :horizon].float().cpu().numpy()

    return forecast


def seasonal_naive_forecaster(*, horizon: int, season_len: int) -> Forecaster:
    """Forecast the last season of the context, repeated."""
    return lambda batch: seasonal_naive(_filled(batch), horizon=horizon, season_len=season_len)


def linear_forecaster(map_LH: FloatArray) -> Forecaster:
    """Forecast by one linear map for all channels; see `model.linear_fit`."""
    return lambda batch: linear_forecast(_filled(batch), map_LH)


def _filled(batch: Batch) -> FloatArray:
    return fill_missing(batch["past"].astype(np.float64))


class Naive2Forecaster:
    """The M4 competition's Naive2, in the data's units.

    Args:
        reader: reader of the windows.
        season_len: S.
        whole_past: see each series from its first row, not only the window's context.

    Attributes:
        history: reader of whole pasts, if they are seen.

    Raises:
        ConfigError: a whole past of series that belong to one part each.
    """

    def __init__(self, reader: WindowReader, *, season_len: int, whole_past: bool) -> None:
        self.reader = reader
        self.history = _whole_history(reader) if whole_past else None
        self._forecast = partial(naive2, horizon=reader.spec.horizon, season_len=season_len)

    def __call__(self, batch: Batch) -> NDArray[np.float64]:
        series = batch["series"]
        scaler = Scaler(self.reader.scaler.mean[series, None], self.reader.scaler.std[series, None])
        past_BTC = self._past(batch)
        num, length, num_channels = past_BTC.shape
        missing_BTC = np.isnan(past_BTC)
        # Of a past without any value the last step counts, as `fill_missing` fills it.
        begins_BC = np.where(missing_BTC.all(axis=1), length - 1, missing_BTC.argmin(axis=1))
        raw_BTC = scaler.inverse(fill_missing(past_BTC.astype(np.float64)))
        raw_NT = raw_BTC.transpose(0, 2, 1).reshape(-1, length)
        forecast_NH = np.empty((len(raw_NT), self.reader.spec.horizon))
        begins_N = begins_BC.ravel()
        for begin in np.unique(begins_N):
            chosen_N = begins_N == begin
            forecast_NH[chosen_N] = self._forecast(raw_NT[chosen_N, begin:])
        forecast_BHC = forecast_NH.reshape(num, num_channels, -1).transpose(0, 2, 1)
        return scaler.transform(forecast_BHC)

    def _past(self, batch: Batch) -> FloatArray:
        history = self.history
        if history is None:
            return batch["past"]
        index, series = history.index, batch["series"]
        # The windows whose targets begin in the same rows.
        starts = batch["start"] + self.reader.spec.context_len - history.spec.context_len
        window_ids = index.cumulative[series] + starts - index.first_start[series]
        return history.read(window_ids)["past"]


def _whole_history(reader: WindowReader) -> WindowReader:
    """Open a reader of the same split whose windows begin no later than their series.

    Raises:
        ConfigError: the split is by series, so that no rows come before a part.
    """
    if reader.manifest.split_by != "time":
        raise ConfigError(
            "protocol=m4 looks at the rows before each part, and "
            f"{reader.manifest.name!r} has data.split_by=series: use protocol=windows"
        )
    handle, longest = reader.handle, int(reader.num_rows.max())
    spec = replace(handle.spec, context_len=longest, train_fraction=1.0, short_series="pad")
    return WindowReader(handle.path, spec, cache_bytes=handle.cache_bytes)
