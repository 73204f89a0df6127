"""Defaults that keys had before version 0.2.

A configuration that an older version stored lacks the keys that came later; what such a key did
then is its former default.
"""

from collections.abc import Mapping
from typing import Any

TABLE: Mapping[str, Any] = {
    "duplicates": "refuse",
    "gaps": "refuse",
    "missing": "refuse",
    "short_series": "skip",
}
"""Of each data set."""

SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "data": {**TABLE, "fit_context": False, "horizon": 96},
    "backbone": {"num_blocks": 4, "attention": "full"},
    "model": {"shortcut": "none", "centre": "mean", "dropout": 0.1},
    "train": {
        "loss": "mse",
        "learning_rate": 1e-3,
        "warmup_fraction": 0.05,
        "batch_size": 64,
        "micro_batch_size": 32,
        "fit_channels": False,
        "epochs": 2,
        "max_steps": None,
        "validate_every": None,
        "patience": 3,
        "average_steps": 0,
    },
}
"""Of the other keys, by section."""


def complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Give each key that a stored configuration lacks the default it had when that was written.

    Args:
        stored: nested sections, as `config.yaml` or an exported model holds them.
    """
    completed = dict(stored)
    for name, former in SECTIONS.items():
        completed[name] = {**former, **stored.get(name, {})}
    data = completed["data"]
    if data.get("mixture") is not None:
        data["mixture"] = [{**TABLE, **part} for part in data["mixture"]]
    return completed
