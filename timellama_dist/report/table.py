"""Makes the table that a run ends with."""

from collections.abc import Mapping
from typing import Any


def results_table(metrics: Mapping[str, Any]) -> str:
    """Table the model's test errors beside the baselines'; several data sets' own below the means.

    Args:
        metrics: what `metrics.json` holds.
    """
    baselines = metrics["baselines"]
    rows = [
        ("Time-LlaMA (this run)", metrics["test"]),
        ("linear (ridge)", baselines["linear"]),
        ("seasonal naive", baselines["seasonal_naive"]),
    ]
    by_dataset = metrics["by_dataset"]
    if len(by_dataset) > 1:
        rows += [(f"this run on {name}", of_set["test"]) for name, of_set in by_dataset.items()]
    width = max(24, *(len(name) + 2 for name, _ in rows))
    lines = [f"{'test part, z-scored':<{width}}{'MSE':>10}{'MAE':>10}"]
    lines += [f"{name:<{width}}{row['mse']:>10.4f}{row['mae']:>10.4f}" for name, row in rows]
    return "\n".join(lines)


def memory_line(metrics: Mapping[str, Any]) -> str:
    """Write what each rank holds of the frozen backbone, and its peak memory."""
    memory = metrics["memory"]
    alone = memory["frozen_bytes_unsharded"]
    share_of = max(1, alone)  # Without a backbone there is nothing frozen.
    held = ", ".join(
        f"{size / 2**20:.1f} MiB ({size / share_of:.2f})"
        for size in memory["frozen_bytes_per_rank"]
    )
    peak = ", ".join(f"{size / 2**30:.2f} GiB" for size in memory["peak_rss_bytes_per_rank"])
    return (
        f"frozen bytes held by rank: {held} of {alone / 2**20:.1f} MiB unsharded; "
        f"peak memory by rank: {peak}"
    )
