"""The table that a run ends with."""

from collections.abc import Mapping
from typing import Any


def results_table(metrics: Mapping[str, Any]) -> str:
    """Test errors of the model beside the baselines.

    Args:
        metrics: what `metrics.json` holds.
    """
    baselines = metrics["baselines"]
    rows = [
        ("Time-LlaMA (this run)", metrics["test"]),
        ("linear (ridge)", baselines["linear"]),
        ("seasonal naive", baselines["seasonal_naive"]),
    ]
    lines = [f"{'test part, z-scored':<24}{'MSE':>10}{'MAE':>10}"]
    lines += [f"{name:<24}{row['mse']:>10.4f}{row['mae']:>10.4f}" for name, row in rows]
    return "\n".join(lines)


def memory_line(metrics: Mapping[str, Any]) -> str:
    """What each rank holds of the frozen backbone, and its peak memory."""
    memory = metrics["memory"]
    alone = memory["frozen_bytes_unsharded"]
    held = ", ".join(
        f"{size / 2**20:.1f} MiB ({size / alone:.2f})" for size in memory["frozen_bytes_per_rank"]
    )
    peak = ", ".join(f"{size / 2**30:.2f} GiB" for size in memory["peak_rss_bytes_per_rank"])
    return (
        f"frozen bytes held by rank: {held} of {alone / 2**20:.1f} MiB unsharded; "
        f"peak memory by rank: {peak}"
    )
