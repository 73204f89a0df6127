"""Checks the data sets of a configuration: opens tables and manifests, counts windows.

Writes nothing and needs no Ray: whatever is wrong is told before an actor starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from timellama_dist.assets.catalog import DATASETS
from timellama_dist.assets.fetch import fetch_dataset
from timellama_dist.config.schema import DataSection, DataSet, MixturePart
from timellama_dist.data.dataset import DECIDED_KEYS, Dataset
from timellama_dist.data.prepared.manifest import MANIFEST_NAME, Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.write import Preparation
from timellama_dist.data.tables.files import list_files
from timellama_dist.data.tables.frequency import season_len
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import read_table
from timellama_dist.data.windows.index import WindowCounts, WindowIndex, fitted_context_len
from timellama_dist.data.windows.spec import SPLIT_NAMES, SplitName, WindowSpec
from timellama_dist.data.windows.splits import DEFAULT_SPLIT, SplitRule
from timellama_dist.errors import ConfigError, UserError
from timellama_dist.storage import Place, open_place

# What a table becomes in memory is several times as much.
_MOST_TABLE_BYTES = 256 << 20


def check_datasets(data: DataSection, splits: Sequence[SplitName] = SPLIT_NAMES) -> list[Dataset]:
    """Check the data sets, each of which must have windows in all these splits.

    Raises:
        ConfigError: values that don't fit each other or the data.
        DataError: the data can't be used.
    """
    for number, part in enumerate(data.parts):
        refuse_credentials(f"{data.part_key(number)}.path", part.path)
    return [_check_dataset(data, number, splits) for number in range(len(data.parts))]


def refuse_credentials(key: str, location: str | None) -> None:
    """Refuse a URI with a password in it.

    Raises:
        ConfigError: named by `key`.
    """
    if location is not None and open_place(location).has_credentials:
        raise ConfigError(
            f"{key} must not hold credentials, which config.yaml and the exported model would "
            "show; give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def data_name(path: str) -> str:
    """Name a data set by its file or folder, without suffix."""
    return open_place(path).name.split(".")[0] or "data"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """What a path leads to: a table, or data that are prepared already."""

    opened: Table | Manifest
    num_rows: NDArray[np.int64]
    """Rows of each series."""
    rule: SplitRule
    """How the series are divided."""

    @property
    def frequency(self) -> str:
        return str(self.opened.frequency)

    @property
    def season_len(self) -> int:
        """Steps of the main season."""
        if isinstance(self.opened, Manifest):
            return self.opened.season_len
        return season_len(self.frequency)


def _check_dataset(data: DataSection, number: int, splits: Sequence[SplitName]) -> Dataset:
    """Check one data set; an error names it as the user does."""
    section = data.part_key(number)
    try:
        part, place = _with_asset(data.parts[number])
        source = _open(part, place, section)
        spec = _window_spec(data, part, source)
        counts = {name: _count_windows(data, part, source, spec.of(name)) for name in splits}
        return _dataset(part, source, spec, counts, section)
    except UserError as error:
        if data.mixture is None or str(error).startswith(section):
            raise
        raise error.under("data", section) from error


def _dataset(
    part: MixturePart,
    source: _Source,
    spec: WindowSpec,
    counts: dict[SplitName, WindowCounts],
    section: str,
) -> Dataset:
    opened = source.opened
    prepared: Preparation | Manifest
    if isinstance(opened, Table):
        options = table_options(part, section)
        rule = source.rule
        wanted = PrepareOptions(split=tuple(rule.split), split_by=rule.by, prompt=part.prompt)
        prepared = Preparation.of(opened, options, wanted, section=section)
    else:
        prepared = opened
    return Dataset(
        part=replace(part, name=part.name or opened.name),
        spec=spec,
        channels=opened.channels,
        frequency=source.frequency,
        season_len=source.season_len,
        counts=counts,
        content_hash=prepared.content_hash,
        description=part.prompt or prepared.prompt,
        preparation=prepared if isinstance(prepared, Preparation) else None,
    )


def _with_asset(part: MixturePart) -> tuple[MixturePart, Place]:
    """Fill in a public data set's own layout and description; find its file."""
    asset, place = DATASETS.get(part.path), open_place(part.path)
    exists = place.exists()
    if asset is None or exists:
        # Absolute, so that config.yaml means the same from any folder.
        return (replace(part, path=place.uri) if exists else part), place
    filled = replace(
        part,
        series=part.series or asset.series,
        columns=part.columns or list(asset.value_columns),
        split=part.split or asset.split,
        prompt=part.prompt or asset.prompt,
    )
    return filled, open_place(fetch_dataset(asset.name))


def table_options(part: DataSet, section: str = "data") -> TableOptions:
    """Say how a data set's table is to be read.

    Args:
        part: the user's words.
        section: where they stand in the configuration.

    Raises:
        ConfigError: options that contradict each other.
    """
    options = {key.name: getattr(part, key.name, None) for key in fields(TableOptions)}
    if part.columns is not None:
        options["columns"] = tuple(part.columns)
    given = {key: value for key, value in options.items() if value is not None}
    return TableOptions(**given, section=section)


def _open(part: MixturePart, place: Place, section: str) -> _Source:
    """Read the table, or the manifest if the data are prepared already."""
    if not (place / MANIFEST_NAME).is_file():
        table = _read_small(part, place, section)
        rule = SplitRule(part.split or DEFAULT_SPLIT, part.split_by, section)
        return _Source(opened=table, num_rows=table.num_rows, rule=rule)
    manifest = Manifest.load(place)
    # What was done when the set was prepared can't be undone here.
    for key in DECIDED_KEYS:
        if getattr(part, key.name) != key.default:
            raise ConfigError(
                f"{section}.{key.name} was decided when {place} was prepared; leave it out, or "
                "prepare anew"
            )
    with (place / manifest.series_file.path).open_input_file() as file:
        num_rows = pq.read_table(file, columns=["num_rows"])["num_rows"].to_numpy()
    rule = replace(manifest.split_rule, section=section)
    return _Source(opened=manifest, num_rows=num_rows, rule=rule)


def _read_small(part: MixturePart, place: Place, section: str) -> Table:
    """Read a table that the driver may hold in memory."""
    if not place.exists() and not place.suffix:
        raise ConfigError(
            f"{section}.path must be a prepared folder, a CSV or Parquet file, or one of "
            f"{', '.join(DATASETS)}; got {part.path!r}, which is none of them"
        )
    options = table_options(part, section)
    files = list_files(place)
    size = sum(file.size() for file in files)
    if size > _MOST_TABLE_BYTES or not place.is_local:
        what = f"holds {size / 2**20:.0f} MiB" if place.is_local else "lies in object storage"
        raise ConfigError(
            f"{section}.path: {place} {what}: prepare it once, python ray_jobs/prepare.py --input "
            f"{place} --output DIR, and give that folder (tables of at most "
            f"{_MOST_TABLE_BYTES >> 20} MiB are prepared by the run)"
        )
    return read_table(place, options, name=data_name(part.path), section=section)


def _window_spec(data: DataSection, part: MixturePart, source: _Source) -> WindowSpec:
    """Say which training windows a part means, with the context that suits its series."""
    context_len, horizon = data.lengths(part)
    spec = WindowSpec(
        context_len=context_len,
        horizon=horizon,
        train_fraction=part.train_fraction,
        short_series=part.short_series,
    )
    return _fitted(spec, source) if data.fit_context else spec


def _fitted(spec: WindowSpec, source: _Source) -> WindowSpec:
    rule, num_rows = source.rule, source.num_rows
    context_len = fitted_context_len(
        num_rows if rule.by == "series" else rule.train_rows(num_rows),
        most=spec.context_len,
        horizon=spec.horizon,
        season_len=source.season_len,
    )
    return replace(spec, context_len=context_len)


def _count_windows(
    data: DataSection, part: MixturePart, source: _Source, spec: WindowSpec
) -> WindowCounts:
    """Count the windows of a split, of which there must be some."""
    index = WindowIndex.build(source.num_rows, spec, source.rule)
    if len(index):
        return index.counts
    # The run's own lengths hold for a part that has none.
    section = source.rule.section
    keys = {
        name: f"{section if getattr(part, name) else 'data'}.{name}={getattr(spec, name)}"
        for name in ("context_len", "horizon")
    }
    raise ConfigError(
        f"{keys['context_len']} + {keys['horizon']} is longer than the {spec.split} part "
        f"({source.rule.key}={list(source.rule.split)}) of every series; the longest has "
        f"{source.num_rows.max()} rows in all" + _remedy(data, source, spec)
    )


def _remedy(data: DataSection, source: _Source, spec: WindowSpec) -> str:
    """Say what would give the split a window: another split, a shorter context or horizon."""
    remedies = []
    horizon, rule, longest = spec.horizon, source.rule, int(source.num_rows.max())
    cut = isinstance(source.opened, Table) and rule.by == "time" and spec.split != "train"
    if cut and longest >= spec.context_len + 3 * horizon:
        remedies.append(
            f"{rule.key}=[0, {horizon}, {horizon}] would take the last {horizon} rows for the test "
            f"part and {horizon} before them for validation"
        )
    fitted = _fitted(spec, source)
    if not data.fit_context and len(WindowIndex.build(source.num_rows, fitted, rule)):
        remedies.append(
            f"data.fit_context=true would shorten the context to {fitted.context_len} rows"
        )
    shortest = WindowIndex.build(source.num_rows, replace(spec, horizon=1), rule)
    # With a horizon of one row, a series has as many windows as its longest horizon has rows.
    if longest_horizon := int(np.diff(shortest.cumulative).max()):
        remedies.append(f"a horizon of at most {longest_horizon} rows would fit")
    return "; " + ", or ".join(remedies) if remedies else ""
