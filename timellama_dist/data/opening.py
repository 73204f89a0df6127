"""Opens what the path of a data set leads to: a public set, a table, or prepared data."""

from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from timellama_dist.assets.catalog import DATASETS
from timellama_dist.assets.fetch import fetch_dataset
from timellama_dist.config.schema import DataSet, MixturePart
from timellama_dist.data.dataset import DECIDED_KEYS
from timellama_dist.data.prepared.manifest import MANIFEST_NAME, Manifest
from timellama_dist.data.tables.files import list_files
from timellama_dist.data.tables.frequency import season_len
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import read_table
from timellama_dist.data.windows.splits import DEFAULT_SPLIT, SplitRule
from timellama_dist.errors import ConfigError
from timellama_dist.program import command_line
from timellama_dist.storage import Place, open_place

# What a table becomes in memory is several times as much.
_MOST_TABLE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedData:
    """What a path leads to: a table, or data that are prepared already."""

    content: Table | Manifest
    num_rows: NDArray[np.int64]
    """Rows of each series."""
    rule: SplitRule
    """How the series are divided."""

    @property
    def frequency(self) -> str:
        return str(self.content.frequency)

    @property
    def season_len(self) -> int:
        """Steps of the main season."""
        if isinstance(self.content, Manifest):
            return self.content.season_len
        return season_len(self.frequency)


def open_data(part: MixturePart, section: str) -> tuple[MixturePart, OpenedData]:
    """Read a table, or the manifest if the data are prepared already.

    Args:
        part: the user's words.
        section: where they stand in the configuration.

    Returns:
        The user's words, with a public data set's own layout filled in; and what was opened.

    Raises:
        ConfigError: nothing is there, too much for the driver, or keys that were decided before.
        DataError: the data can't be used.
    """
    part, place = _with_asset(part)
    return part, _open(part, place, section)


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
    if part.timestamps == "ignore" or part.missing == "refuse":
        # The default would put in rows without values, which neither of them can have.
        options["gaps"] = "refuse"
    given = {key: value for key, value in options.items() if value is not None}
    return TableOptions(**given, section=section)


def _open(part: MixturePart, place: Place, section: str) -> OpenedData:
    """Read the table, or the manifest if the data are prepared already."""
    if not (place / MANIFEST_NAME).is_file():
        table = _read_small(part, place, section)
        rule = SplitRule(part.split or DEFAULT_SPLIT, part.split_by, section)
        return OpenedData(content=table, num_rows=table.num_rows, rule=rule)
    manifest = Manifest.load(place)
    # What was done when the set was prepared can't be undone here.
    for key in DECIDED_KEYS:
        if part.decides(key.name):
            raise ConfigError(
                f"{section}.{key.name} was decided when {place} was prepared; leave it out, or "
                "prepare anew"
            )
    with (place / manifest.series_file.path).open_input_file() as file:
        num_rows = pq.read_table(file, columns=["num_rows"])["num_rows"].to_numpy()
    rule = replace(manifest.split_rule, section=section)
    return OpenedData(content=manifest, num_rows=num_rows, rule=rule)


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
        prepare = command_line("prepare", "--input", place, "--output", "DIR")
        raise ConfigError(
            f"{section}.path: {place} {what}: prepare it once, {prepare}, and give that folder "
            f"(tables of at most {_MOST_TABLE_BYTES >> 20} MiB are prepared by the run)"
        )
    return read_table(place, options, name=data_name(part.path), section=section)


def data_name(path: str) -> str:
    """Name a data set by its file or folder, without suffix."""
    return open_place(path).name.split(".")[0] or "data"
