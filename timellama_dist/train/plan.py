"""Everything that can be decided, and refused, before an actor starts: reads, writes nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from timellama_dist.assets.fetch import DATASETS, fetch_dataset
from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DataSet,
    MixturePart,
    RunConfig,
)
from timellama_dist.data.prepared.manifest import MANIFEST_NAME, Manifest
from timellama_dist.data.prepared.write import DEFAULT_SPLIT, content_hash, write_prepared
from timellama_dist.data.tables.files import list_files
from timellama_dist.data.tables.frequency import season_len
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import read_table
from timellama_dist.data.windows.index import (
    SPLIT_NAMES,
    SplitName,
    WindowIndex,
    fitted_context_len,
    train_rows,
)
from timellama_dist.data.windows.mixture import PreparedSet
from timellama_dist.errors import ConfigError, UserError
from timellama_dist.model.prompts import task_prompt
from timellama_dist.storage import Location, Place, open_place

# What a table becomes in memory is several times as much.
_MOST_TABLE_BYTES = 256 << 20
# What all channels' X'X and X'Y of one part may take.
_MOST_SUMMED = 1 << 30
_PREPARED = {*(key.name for key in fields(TableOptions)), "split", "split_by"}


@dataclass(frozen=True, kw_only=True)
class PlannedSet:
    """One data set of a run that has passed every check."""

    part: MixturePart
    """With its name, and a public data set's own layout, filled in."""
    table: Table | None
    """The table to prepare; None if `part.path` is prepared already."""
    num_channels: int
    context_len: int
    """Of its own windows."""
    indexes: Mapping[SplitName, WindowIndex]
    """The windows of each split."""

    @property
    def num_windows(self) -> dict[SplitName, int]:
        """By split."""
        return {name: len(index) for name, index in self.indexes.items()}

    @property
    def content_hash(self) -> str:
        """Of its prepared data, written or not."""
        if self.table is None:
            return Manifest.load(open_place(self.part.path)).content_hash
        return content_hash(self.table, **self._options)

    def prepared(self, output: Location) -> Place:
        """Where its prepared data are: written to `output` if it is a table."""
        if self.table is None:
            return open_place(self.part.path)
        place = open_place(output)
        write_prepared(self.table, place, **self._options)
        return place

    @property
    def _options(self) -> dict[str, Any]:
        part = self.part
        return {
            "options": table_options(part),
            "split": _split(part),
            "split_by": part.split_by,
            "prompt": part.prompt,
        }


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that has passed every check that needs no worker."""

    config: RunConfig
    """With what the plan found out of its data sets and backbone filled in."""
    sets: Sequence[PlannedSet]
    policy: Mapping[str, Any]
    """The DeepSpeed policy as its file says."""
    hidden_size: int
    """D of the backbone."""

    @property
    def num_windows(self) -> dict[SplitName, int]:
        """By split, over all data sets."""
        return {name: sum(one.num_windows[name] for one in self.sets) for name in SPLIT_NAMES}

    def prepared_data(self, run_dir: Path) -> list[PreparedSet]:
        """The prepared data sets, written into the run directory where there is only a table."""
        several = self.config.data.mixture is not None
        return [
            self._prepared(one, run_dir / "data" / str(one.part.name if several else ""))
            for one in self.sets
        ]

    def over_prepared(self, sets: Sequence[PreparedSet]) -> DataSection:
        """The data section of a run over what `prepared_data` gave, with nothing left to decide."""
        defaults: dict[str, Any] = {
            key.name: key.default for key in fields(DataSet) if key.name in _PREPARED
        }
        parts = [
            one.part if one.table is None else replace(one.part, path=made.path, **defaults)
            for one, made in zip(self.sets, sets, strict=True)
        ]
        return self.config.data.with_parts(parts)

    def _prepared(self, one: PlannedSet, output: Path) -> PreparedSet:
        part, data = one.part, self.config.data
        place = one.prepared(output)
        manifest = Manifest.load(place)
        context_len, horizon = data.lengths(part)
        prompt = task_prompt(
            part.prompt or manifest.prompt,
            context_len=context_len,
            horizon=horizon,
            frequency=manifest.frequency,
        )
        return PreparedSet(name=str(part.name), path=place.uri, prompt=prompt)

    def deepspeed(self, *, use_gpu: bool) -> dict[str, Any]:
        """The resolved DeepSpeed configuration."""
        return resolve_deepspeed(
            self.policy,
            self.config,
            world_size=self.config.scaling.most_workers,
            hidden_size=self.hidden_size,
            use_gpu=use_gpu,
        )


def plan_run(config: RunConfig) -> RunPlan:
    """Check a configuration against its data, its backbone and its DeepSpeed policy.

    Raises:
        ConfigError: values that don't fit each other, the data or the backbone.
        DataError: the data can't be used.
    """
    _refuse_credentials("run.storage_path", config.run.storage_path)
    policy = load_policy(config.deepspeed)
    sets = plan_sets(config.data)
    _check_together(config, sets)
    if config.model.shortcut_per_channel:
        _check_sums(config, sets)
    config = replace(config, backbone=_pinned(config.backbone))
    plan = RunPlan(
        config=replace(
            config,
            data=_found(config.data, sets),
            train=config.train.fitted(max(one.num_channels for one in sets)),
        ),
        sets=sets,
        policy=policy,
        hidden_size=check_model(config),
    )
    plan.deepspeed(use_gpu=bool(config.scaling.use_gpu))
    return plan


def _pinned(backbone: BackboneSection) -> BackboneSection:
    """With the commit that a hub name without revision stands for now: tomorrow it may be another.

    Raises:
        ConfigError: the backbone can't be had.
    """
    folder = resolve_backbone(backbone.name, backbone.revision)
    given = backbone.revision is not None or folder == Path(backbone.name).expanduser()
    # The hub's client keeps a commit's files in `snapshots/<commit>`.
    if given or folder.parent.name != "snapshots":
        return backbone
    return replace(backbone, revision=folder.name)


def check_model(config: RunConfig) -> int:
    """Check the backbone with what stands around it; its hidden size.

    Raises:
        ConfigError: values that don't fit each other or the backbone.
    """
    backbone = resolve_backbone(config.backbone.name, config.backbone.revision)
    hidden_size = read_config(backbone, config.backbone.num_blocks).hidden_size
    attends = config.model.alignment or config.backbone.kind == "attention"
    if attends and hidden_size % config.model.alignment_heads:
        raise ConfigError(
            f"model.alignment_heads must divide the backbone's hidden size {hidden_size}, "
            f"got {config.model.alignment_heads}"
        )
    return hidden_size


def plan_sets(data: DataSection, splits: Sequence[SplitName] = SPLIT_NAMES) -> list[PlannedSet]:
    """Check the data sets, each of which must have windows in all these splits.

    Raises:
        ConfigError: values that don't fit each other or the data.
        DataError: the data can't be used.
    """
    for number, part in enumerate(data.parts):
        _refuse_credentials(f"{data.part_key(number)}.path", part.path)
    return [_plan_set(data, number, splits) for number in range(len(data.parts))]


def _refuse_credentials(key: str, location: str | None) -> None:
    if location is not None and open_place(location).has_credentials:
        raise ConfigError(
            f"{key} must not hold credentials, which config.yaml and the exported model would "
            "show; give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def data_name(path: str) -> str:
    """What a data set is called: its file's or folder's name without suffix."""
    return open_place(path).name.split(".")[0] or "data"


def run_name(data: DataSection) -> str:
    """What a run over these data is called where the user gave it no name."""
    return "mixture" if data.mixture is not None else data_name(data.parts[0].path)


def _plan_set(data: DataSection, number: int, splits: Sequence[SplitName]) -> PlannedSet:
    """Check one data set; an error names it as the user does."""
    try:
        part, source = _with_asset(data.parts[number])
        opened, num_rows = _open_data(part, source)
        context_len = _context_len(data, part, opened, num_rows)
        return PlannedSet(
            part=replace(part, name=part.name or opened.name),
            table=opened if isinstance(opened, Table) else None,
            num_channels=len(opened.channels),
            context_len=context_len,
            indexes=_count_windows(data, part, opened, num_rows, splits, context_len),
        )
    except UserError as error:
        if data.mixture is None:
            raise
        raise type(error)(_in_part(str(error), data.part_key(number))) from error


def _found(data: DataSection, sets: Sequence[PlannedSet]) -> DataSection:
    """The section with what was found out about its data sets."""
    if not data.fit_context:
        return data.with_parts([one.part for one in sets])
    parts = [replace(one.part, context_len=one.context_len) for one in sets]
    longest = max(one.context_len for one in sets)
    return replace(data.with_parts(parts), context_len=longest)


def _in_part(message: str, key: str) -> str:
    """An error that was written for the only data set, as one of a part."""
    keys = "|".join(one.name for one in fields(DataSet))
    renamed = re.sub(rf"\bdata\.({keys})\b(?!\.)", rf"{key}.\1", message)
    return renamed if renamed.startswith(key) else f"{key}: {renamed}"


def _check_together(config: RunConfig, sets: Sequence[PlannedSet]) -> None:
    """Refuse data sets that can't be told apart, or that don't fit into one model."""
    keys: dict[str, str] = {}
    for number, one in enumerate(sets):
        name, key = str(one.part.name), config.data.part_key(number)
        if config.data.mixture is not None and not re.fullmatch(r"(?=.*[^.])[^/\\]+", name):
            raise ConfigError(f"{key}.name must be fit for a folder's name, got {name!r}")
        if name in keys:
            raise ConfigError(f"{key}.name must not be that of {keys[name]}, got {name!r} twice")
        keys[name] = key
    per_channel = config.model.per_channel
    if per_channel and len({one.num_channels for one in sets}) > 1:
        counts = ", ".join(f"{one.part.name} has {one.num_channels}" for one in sets)
        raise ConfigError(
            f"{per_channel} gives each channel parameters of its own, so all data sets must have "
            f"equally many channels; {counts}"
        )


def _check_sums(config: RunConfig, sets: Sequence[PlannedSet]) -> None:
    """Refuse maps for more channels than a node's memory holds the sums of."""
    for one in sets:
        context_len, horizon = config.data.lengths(one.part)
        size = 8 * one.num_channels * context_len * (context_len + horizon)
        if size > _MOST_SUMMED:
            raise ConfigError(
                f"model.shortcut_per_channel sums {size / 2**30:.1f} GiB over the windows of "
                f"{one.part.name} ({one.num_channels} channels, context {context_len}, horizon "
                f"{horizon}); at most {_MOST_SUMMED / 2**30:.0f} GiB are fitted on one node"
            )


def _with_asset(data: MixturePart) -> tuple[MixturePart, Place]:
    """A public data set's own layout and description where the user gave none, and its file."""
    asset, place = DATASETS.get(data.path), open_place(data.path)
    exists = place.exists()
    if asset is None or exists:
        # Absolute, so that config.yaml means the same from any folder.
        return (replace(data, path=place.uri) if exists else data), place
    filled = replace(
        data,
        series=data.series or asset.series,
        columns=data.columns or list(asset.value_columns),
        split=data.split or asset.split,
        prompt=data.prompt or asset.prompt,
    )
    return filled, open_place(fetch_dataset(asset.name))


def table_options(data: DataSet) -> TableOptions:
    """How a data set's table is to be read.

    Raises:
        ConfigError: options that contradict each other.
    """
    given = {key.name: getattr(data, key.name, None) for key in fields(TableOptions)}
    if data.columns is not None:
        given["columns"] = tuple(data.columns)
    if data.timestamps == "ignore" or data.missing == "refuse":
        # The default would put in rows without values, which neither of them can have.
        given["gaps"] = "refuse"
    return TableOptions(**{key: value for key, value in given.items() if value is not None})


def _open_data(data: MixturePart, source: Place) -> tuple[Table | Manifest, np.ndarray]:
    """The table, or the manifest if it is prepared; rows of each series."""
    if not (source / MANIFEST_NAME).is_file():
        table = _read_small(data, source)
        return table, table.num_rows
    manifest = Manifest.load(source)
    # What was done when the set was prepared can't be undone here.
    for key in fields(DataSet):
        if key.name in _PREPARED and data.decides(key.name):
            raise ConfigError(
                f"data.{key.name} was decided when {source} was prepared; leave it out, or prepare "
                "anew"
            )
    with (source / manifest.series_file.path).open_input_file() as file:
        num_rows = pq.read_table(file, columns=["num_rows"])["num_rows"].to_numpy()
    return manifest, num_rows


def _read_small(data: MixturePart, source: Place) -> Table:
    """A table that the driver may hold in memory."""
    if not source.exists() and not source.suffix:
        raise ConfigError(
            f"data.path must be a prepared folder, a CSV or Parquet file, or one of "
            f"{', '.join(DATASETS)}; got {data.path!r}, which is none of them"
        )
    options = table_options(data)
    files = list_files(source)
    size = sum(file.size() for file in files)
    if size > _MOST_TABLE_BYTES or not source.is_local:
        what = f"holds {size / 2**20:.0f} MiB" if source.is_local else "lies in object storage"
        raise ConfigError(
            f"data.path: {source} {what}: prepare it once, python ray_jobs/prepare.py --input "
            f"{source} --output DIR, and give that folder (tables of at most "
            f"{_MOST_TABLE_BYTES >> 20} MiB are prepared by the run)"
        )
    return read_table(source, options, name=data_name(data.path))


def _split(data: MixturePart) -> tuple[float, ...]:
    return data.split or DEFAULT_SPLIT


def _cut(part: MixturePart, opened: Table | Manifest) -> tuple[tuple[float, ...], str]:
    """How series are cut into parts, and by what."""
    if isinstance(opened, Manifest):
        return tuple(opened.split), opened.split_by
    return _split(part), part.split_by


def _context_len(
    data: DataSection, part: MixturePart, opened: Table | Manifest, num_rows: np.ndarray
) -> int:
    context_len, horizon = data.lengths(part)
    if not data.fit_context:
        return context_len
    split, split_by = _cut(part, opened)
    return fitted_context_len(
        num_rows if split_by == "series" else train_rows(num_rows, split),
        most=context_len,
        horizon=horizon,
        season_len=season_len(str(opened.frequency)),
    )


def _count_windows(
    data: DataSection,
    part: MixturePart,
    opened: Table | Manifest,
    num_rows: np.ndarray,
    splits: Sequence[SplitName],
    context_len: int,
) -> dict[SplitName, WindowIndex]:
    split, split_by = _cut(part, opened)
    indexes: dict[SplitName, WindowIndex] = {}
    _, horizon = data.lengths(part)
    for name in splits:
        index = indexes[name] = WindowIndex.build(
            num_rows,
            split=split,
            name=name,
            context_len=context_len,
            horizon=horizon,
            train_fraction=part.train_fraction,
            split_by=split_by,
            short_series=part.short_series,
        )
        if len(index) == 0:
            longest = int(num_rows.max())
            cut = isinstance(opened, Table) and split_by == "time" and name != "train"
            hint = _last_rows(horizon) if cut and longest >= context_len + 3 * horizon else ""
            raise ConfigError(
                f"data.context_len={context_len} + data.horizon={horizon} is longer than "
                f"the {name} part (data.split={list(split)}) of every series; the longest has "
                f"{longest} rows in all{hint}"
            )
    return indexes


def _last_rows(horizon: int) -> str:
    return (
        f"; data.split=[0, {horizon}, {horizon}] would take the last {horizon} rows for the test "
        f"part and {horizon} before them for validation"
    )
