"""Pictures of forecasts against truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MAX_CHANNELS = 4


def plot_forecasts(
    examples: Mapping[str, np.ndarray], channels: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw a few test windows: the end of the context, the truth and the forecast.

    Args:
        examples: "past" (N, L, C), "future" and "forecast" (N, H, C), z-scored.
        channels: C names.
        path: PNG to write.
        title: above the picture.
    """
    past_NLC, future_NHC = examples["past"], examples["future"]
    shown = range(min(_MAX_CHANNELS, len(channels)))
    horizon = future_NHC.shape[1]
    context_len = min(past_NLC.shape[1], 2 * horizon)
    figure = Figure(figsize=(4.2 * len(past_NLC), 1.9 * len(shown) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(past_NLC), squeeze=False, sharex=True)
    before, after = np.arange(-context_len, 0), np.arange(horizon)
    for column, _ in enumerate(past_NLC):
        for row in shown:
            axis = axes[row][column]
            axis.plot(before, past_NLC[column, -context_len:, row], color="0.45", linewidth=0.9)
            axis.plot(after, future_NHC[column, :, row], color="0.1", linewidth=1.1, label="truth")
            axis.plot(
                after,
                examples["forecast"][column, :, row],
                color="tab:orange",
                linewidth=1.3,
                label="forecast",
            )
            axis.axvline(0, color="0.8", linewidth=0.8)
            if column == 0:
                axis.set_ylabel(channels[row], fontsize=8)
            axis.tick_params(labelsize=7)
        axes[0][column].set_title(f"test window {column + 1}", fontsize=9)
        axes[-1][column].set_xlabel("steps from the forecast's start", fontsize=8)
    axes[0][0].legend(fontsize=7, loc="upper left")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
