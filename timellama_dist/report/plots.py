"""Pictures of forecasts against truth, and of errors by step of the horizon."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MAX_CHANNELS = 4
_MAX_NAMES = 30


def plot_forecasts(
    examples: Mapping[str, np.ndarray],
    channels: Sequence[str],
    path: Path | BinaryIO,
    *,
    title: str,
    radii: Mapping[float, np.ndarray] | None = None,
) -> None:
    """Draw a few test windows: the end of the context, the truth, the forecast and its intervals.

    Args:
        examples: "past" (N, L, C), "future" and "forecast" (N, H, C), z-scored; a NaN is a gap.
        channels: C names.
        path: PNG to write.
        title: above the picture.
        radii: half the widths of intervals by level in percent, shape (H, C), z-scored.
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
            for level, radius_HC in (radii or {}).items():
                middle_H, half_H = examples["forecast"][column, :, row], radius_HC[:, row]
                axis.fill_between(
                    after,
                    middle_H - half_H,
                    middle_H + half_H,
                    color="tab:orange",
                    alpha=0.15,
                    linewidth=0,
                    label=f"{level:g} %",
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


def plot_by_step(errors: Mapping[str, Sequence[float]], path: Path, *, title: str) -> None:
    """Draw how the errors grow over the horizon.

    Args:
        errors: by kind ("mse", "mae", ...) one for each step.
        path: PNG to write.
        title: above the picture.
    """
    figure = Figure(figsize=(3.2 * len(errors), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    (axes,) = figure.subplots(1, len(errors), squeeze=False)
    for axis, (kind, values) in zip(axes, errors.items(), strict=True):
        steps = np.arange(1, len(values) + 1)
        axis.plot(steps, values, color="tab:orange", marker="." if len(steps) < 30 else "")
        axis.set_title(kind, fontsize=9)
        axis.set_xlabel("step of the horizon", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def plot_losses(history: Sequence[Mapping[str, Any]], path: Path | BinaryIO) -> None:
    """Draw the training and validation losses, the balance loss and the learning rate."""
    steps = [
        record for record in history if record["kind"] == "train" and record["loss"] is not None
    ]
    validations = [record for record in history if record["kind"] == "validation"]
    figure, axes = _figure(1, 3, height=2.8)
    at = [record["step"] for record in steps]
    axes[0][0].plot(at, [record["loss"] for record in steps], color="0.5", label="training")
    axes[0][0].plot(
        [record["step"] for record in validations],
        [record["mse"] for record in validations],
        color="tab:orange",
        marker="o",
        markersize=3,
        label="validation MSE",
    )
    axes[0][0].legend(fontsize=7)
    axes[0][1].plot(at, [record["balance_loss"] for record in steps], color="tab:blue")
    axes[0][2].plot(at, [record["learning_rate"] for record in steps], color="tab:green")
    for axis, name in zip(axes[0], ("loss", "balance loss", "learning rate"), strict=True):
        _label(axis, name, "step")
    figure.savefig(path, dpi=100)


def plot_errors(detail: Mapping[str, Any], channels: Sequence[str], path: Path | BinaryIO) -> None:
    """Draw MSE and MAE by step of the horizon and by channel."""
    figure, axes = _figure(1, 2, height=2.8)
    for kind, color in (("mse", "tab:orange"), ("mae", "tab:blue")):
        values = np.array(detail["by_step"][kind], float)
        axes[0][0].plot(np.arange(1, len(values) + 1), values, color=color, label=kind.upper())
    places = np.arange(len(channels))
    for shift, kind, color in ((-0.2, "mse", "tab:orange"), (0.2, "mae", "tab:blue")):
        axes[0][1].bar(
            places + shift, np.array(detail["by_channel"][kind], float), 0.4, color=color
        )
    if len(channels) <= _MAX_NAMES:
        axes[0][1].set_xticks(places, channels, rotation=45, ha="right")
    axes[0][0].legend(fontsize=7)
    axes[0][0].set_ylim(bottom=0)
    _label(axes[0][0], "test error by step of the horizon", "step")
    _label(axes[0][1], "test error by channel", "")
    figure.savefig(path, dpi=100)


def plot_routers(routers: Mapping[str, Any], modules: Sequence[str], path: Path | BinaryIO) -> None:
    """Draw how often each expert was chosen: a heat map a block, modules x experts."""
    share_LME = np.array(routers["chosen"], float) / routers["samples"]
    columns = min(4, len(share_LME))
    rows = -(-len(share_LME) // columns)
    figure, axes = _figure(rows, columns, height=2.2 * rows + 0.4)
    image: Any = None
    for block, axis in enumerate(axes.flat):
        if block >= len(share_LME):
            axis.set_axis_off()
            continue
        image = axis.imshow(share_LME[block], vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_yticks(np.arange(len(modules)), modules)
        axis.set_xticks(np.arange(share_LME.shape[2]))
        _label(axis, f"block {block}, entropy {routers['entropy'][block]:.2f}", "expert")
    figure.colorbar(image, ax=axes, label="share of samples")
    figure.savefig(path, dpi=100)


def plot_load(validations: Sequence[tuple[int, Mapping[str, Any]]], path: Path | BinaryIO) -> None:
    """Draw how each block's experts were used over time.

    Args:
        validations: the step, and what the routers chose then.
        path: PNG to write.
    """
    steps = [step for step, _ in validations]
    share_TLX = np.array(
        [
            np.reshape(routers["chosen"], (len(routers["chosen"]), -1)) / routers["samples"]
            for _, routers in validations
        ]
    )
    columns = min(4, share_TLX.shape[1])
    rows = -(-share_TLX.shape[1] // columns)
    figure, axes = _figure(rows, columns, height=2.2 * rows + 0.4)
    for block, axis in enumerate(axes.flat):
        if block >= share_TLX.shape[1]:
            axis.set_axis_off()
            continue
        axis.plot(steps, share_TLX[:, block], linewidth=0.8, marker=".", markersize=3)
        axis.set_ylim(-0.03, 1.03)
        _label(axis, f"block {block}: share of samples", "step")
    figure.savefig(path, dpi=100)


def _figure(rows: int, columns: int, *, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _label(axis: Any, title: str, below: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(below, fontsize=8)
    axis.tick_params(labelsize=7)
