"""How many targets of the test part lie in a model's prediction intervals.

    python -m benchmarks.coverage --model RUN/model --data RUN/data

Every window of the test part counts, every step and channel; each interval follows the errors of
the forecasts whose truth its cut-off has seen, as `TimeLlamaForecaster.predict(level=...)` does.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from timellama_dist import TimeLlamaForecaster
from timellama_dist.config.schema import RunConfig
from timellama_dist.data.prepared.history import SeriesReader
from timellama_dist.data.tables.series import Series
from timellama_dist.model.intervals import cutoffs_before, radius, tracked_radius

BATCH = 256


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="coverage", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="an exported model: RUN/model")
    parser.add_argument("--data", required=True, help="its prepared data: RUN/data, of one series")
    parser.add_argument("--level", type=float, nargs="+", default=[80, 95])
    arguments = parser.parse_args(argv)
    forecaster = TimeLlamaForecaster.load(arguments.model)
    known = forecaster.dataset(None)
    reader = SeriesReader(arguments.data)
    config = RunConfig.from_dict(forecaster.card.config)
    rows, horizon, context_len = (
        int(reader.num_rows[0]),
        known.card.horizon,
        config.data.context_len,
    )
    whole = reader.read(0, 0, rows)
    begin, end = reader.manifest.split_rule.borders(rows, context_len)["test"]
    first, last = begin + context_len, end - horizon
    seen = np.arange(cutoffs_before(first, horizon)[0], last + 1)
    error_NHC = errors(forecaster, whole, seen, horizon)
    error_NHC /= known.scaler(whole.unique_id, whole.values).std
    for level in arguments.level:
        kept = radius(known.quantile_KHC, level)
        hits, fixed = [], []
        for start in range(first, last + 1, BATCH):
            cutoffs = np.arange(start, min(start + BATCH, last + 1))
            # Of the forecasts whose whole truth the cut-off has seen.
            places = cutoffs_before(cutoffs[:, None], horizon) - seen[0]
            followed = tracked_radius(kept, error_NHC[places], level)
            truth = error_NHC[cutoffs - seen[0]]
            hits.append(truth <= followed)
            fixed.append(truth <= kept)
        print(
            f"{level:g} %: {100 * np.concatenate(hits).mean():.2f} % of the targets of "
            f"{last + 1 - first} windows x {horizon} steps x {kept.shape[1]} channels; "
            f"{100 * np.concatenate(fixed).mean():.2f} % with the validation part's errors alone"
        )
    return 0


def errors(
    forecaster: TimeLlamaForecaster, whole: Series, seen: np.ndarray, horizon: int
) -> np.ndarray:
    """Absolute errors of the forecast at each cut-off, in the data's units, shape (N, H, C)."""
    found = []
    for start in range(0, len(seen), BATCH):
        cutoffs = seen[start : start + BATCH]
        pasts = [
            Series(whole.unique_id, whole.timestamps[:rows], whole.values[:rows])
            for rows in cutoffs
        ]
        truth = np.stack([whole.values[rows : rows + horizon] for rows in cutoffs])
        found.append(np.abs(forecaster.forecast_series(pasts) - truth))
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
