"""What the benchmarks share: facts about the machine, paired ratios, one JSON file a run."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timellama_dist.config.schema import RunConfig
from timellama_dist.launch.train import versions


def base_config(backbone: str, num_blocks: int) -> RunConfig:
    """The default run, with another backbone or number of blocks."""
    config = RunConfig()
    return replace(config, backbone=replace(config.backbone, name=backbone, num_blocks=num_blocks))


def spread(values: Sequence[float]) -> str:
    """Median, and least and largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def alternate(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every variant once a round, in turn, so that a drifting machine is fair to all."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, measure in variants.items():
            found[name].append(measure())
    return found


def paired(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def write_results(path: str | None, benchmark: str, facts: dict[str, Any]) -> None:
    """Write every single measurement with what it was taken on."""
    if path is None:
        return
    machine = {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()}
    content = {"benchmark": benchmark, "machine": machine, "versions": versions(), **facts}
    Path(path).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
