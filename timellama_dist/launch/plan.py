"""Everything that can be decided, and refused, before an actor starts: reads, writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import DataSection, RunConfig
from timellama_dist.data.assets import DATASETS, fetch_dataset
from timellama_dist.data.manifest import MANIFEST_NAME, Manifest
from timellama_dist.data.prepare import DEFAULT_SPLIT, write_prepared
from timellama_dist.data.table import Table, read_table
from timellama_dist.data.windows import SPLIT_NAMES, WindowIndex
from timellama_dist.errors import ConfigError
from timellama_dist.modeling.backbone import read_config, resolve_backbone
from timellama_dist.modeling.prompts import task_prompt
from timellama_dist.modeling.timellama import dlora_config


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that has passed every check that needs no worker."""

    config: RunConfig
    """With a public data set's own layout filled in."""
    table: Table | None
    """The table to prepare; None if `config.data.path` is prepared already."""
    policy: Mapping[str, Any]
    """The DeepSpeed policy as its file says."""
    hidden_size: int
    """D of the backbone."""
    num_windows: Mapping[str, int]
    """By split."""

    def prepared_data(self, run_dir: Path) -> Path:
        """The prepared data, written into the run directory if there is only a table."""
        if self.table is None:
            return Path(self.config.data.path).resolve()
        data = self.config.data
        output = run_dir / "data"
        write_prepared(self.table, output, split=_split(data), prompt=data.prompt)
        return output

    def prompt(self, manifest: Manifest) -> str:
        """The whole prompt of the run."""
        data = self.config.data
        return task_prompt(
            data.prompt or manifest.prompt,
            context_len=data.context_len,
            horizon=data.horizon,
            frequency=manifest.frequency,
        )

    def deepspeed(self, *, use_gpu: bool) -> dict[str, Any]:
        """The resolved DeepSpeed configuration."""
        return resolve_deepspeed(
            self.policy,
            self.config,
            world_size=self.config.scaling.num_workers,
            hidden_size=self.hidden_size,
            use_gpu=use_gpu,
        )


def plan_run(config: RunConfig) -> RunPlan:
    """Check a configuration against its data, its backbone and its DeepSpeed policy.

    Raises:
        ConfigError: values that don't fit each other, the data or the backbone.
        DataError: the data can't be used.
    """
    policy = load_policy(config.deepspeed)
    # Cheap checks first: a public data set may have to be downloaded.
    if config.dlora.enabled:
        dlora_config(config.dlora)
    data, source = _with_asset(config.data)
    config = replace(config, data=data)
    table, num_rows, split = _open_data(data, source)
    num_windows = _count_windows(config.data, num_rows, split)
    backbone = resolve_backbone(config.backbone.name, config.backbone.revision)
    hidden_size = read_config(backbone, config.backbone.num_blocks).hidden_size
    if config.model.alignment and hidden_size % config.model.alignment_heads:
        raise ConfigError(
            f"model.alignment_heads must divide the backbone's hidden size {hidden_size}, "
            f"got {config.model.alignment_heads}"
        )
    plan = RunPlan(
        config=config,
        table=table,
        policy=policy,
        hidden_size=hidden_size,
        num_windows=num_windows,
    )
    plan.deepspeed(use_gpu=bool(config.scaling.use_gpu))
    return plan


def data_name(path: str) -> str:
    """What a data set is called: its file's or folder's name without suffix."""
    return Path(path.rstrip("/")).name.split(".")[0] or "data"


def _with_asset(data: DataSection) -> tuple[DataSection, Path]:
    """A public data set's own layout and description where the user gave none, and its file."""
    asset = DATASETS.get(data.path)
    if asset is None or Path(data.path).exists():
        # Absolute, so that config.yaml means the same from any folder.
        path = Path(data.path).expanduser().absolute()
        return (replace(data, path=str(path)) if path.exists() else data), path
    filled = replace(
        data,
        series=data.series or asset.series,
        columns=data.columns or list(asset.value_columns),
        split=data.split or asset.split,
        prompt=data.prompt or asset.prompt,
    )
    return filled, fetch_dataset(asset.name)


def _open_data(
    data: DataSection, source: Path
) -> tuple[Table | None, np.ndarray, tuple[float, ...]]:
    """The table, unless prepared; rows of each series; the split."""
    if not (source / MANIFEST_NAME).is_file():
        if not source.exists() and not source.suffix:
            raise ConfigError(
                f"data.path must be a prepared folder, a CSV or Parquet file, or one of "
                f"{', '.join(DATASETS)}; got {data.path!r}, which is none of them"
            )
        table = read_table(
            source,
            series=data.series or "separate",
            timestamps=data.timestamps,
            columns=data.columns,
            name=data_name(data.path),
        )
        return table, np.array([len(one.values) for one in table.series]), _split(data)
    manifest = Manifest.load(source)
    for key in ("split", "series", "columns"):
        if getattr(data, key) is not None:
            raise ConfigError(
                f"data.{key} was decided when {source} was prepared; leave it out, or prepare anew"
            )
    series = pq.read_table(source / manifest.series_file.path, columns=["num_rows"])
    return None, series["num_rows"].to_numpy(), manifest.split


def _split(data: DataSection) -> tuple[float, ...]:
    return data.split or DEFAULT_SPLIT


def _count_windows(
    data: DataSection, num_rows: np.ndarray, split: tuple[float, ...]
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in SPLIT_NAMES:
        index = WindowIndex.build(
            num_rows,
            split=split,
            name=name,
            context_len=data.context_len,
            horizon=data.horizon,
            train_fraction=data.train_fraction,
        )
        counts[name] = len(index)
        if len(index) == 0:
            raise ConfigError(
                f"data.context_len={data.context_len} + data.horizon={data.horizon} is longer than "
                f"the {name} part (data.split={list(split)}) of every series; the longest has "
                f"{int(num_rows.max())} rows in all"
            )
    return counts


def describe(plan: RunPlan) -> str:
    """One line on what will be trained."""
    counts = ", ".join(f"{plan.num_windows[name]} {name}" for name in SPLIT_NAMES)
    config = plan.config
    return (
        f"windows of {config.data.context_len}+{config.data.horizon} steps: {counts}; "
        f"{config.backbone.num_blocks} blocks of {config.backbone.name} "
        f"({config.backbone.quantization}), {config.scaling.num_workers} workers"
    )
