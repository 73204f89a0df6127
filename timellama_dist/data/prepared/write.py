"""Prepares a table in memory, as a plain function: Parquet, per-series scalers and a manifest.

`output/` then holds `manifest.json`, `series-<hash>.parquet` (one row a series) and
`data/<hash>-00000.parquet`... with the columns `unique_id`, `ds` and one a channel; a series' rows
are contiguous and in time order, and series lie in the order of their ids. A file's name comes from
its content, and the manifest is written last: whoever reads sees the old data set or the new one.
`job.py` does the same to tables of any size, as a Ray Data job.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import pyarrow as pa

from timellama_dist.data.prepared.draft import Draft
from timellama_dist.data.prepared.files import write_rows
from timellama_dist.data.prepared.folder import existing_data, remove_strays
from timellama_dist.data.prepared.manifest import DataFile, InputFile, Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.series_table import describe_series, drop_untrained, no_training
from timellama_dist.data.tables.files import Source
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import read_table
from timellama_dist.storage import Location, open_place


def prepare(
    source: Source,
    output: Location,
    *,
    table: TableOptions | None = None,
    **options: Any,
) -> Manifest:
    """Read, check and write a table that fits into memory: `read_table` and `write_prepared`.

    Args:
        source: a file, a folder of files, or a list of files.
        output: folder to make.
        table: how to read the table.
        options: fields of `PrepareOptions`.
    """
    return write_prepared(read_table(source, table), output, options=table, **options)


def write_prepared(
    table: Table,
    output: Location,
    *,
    options: TableOptions | None = None,
    **prepare_options: Any,
) -> Manifest:
    """Write a table as a prepared data set, all of it or nothing.

    Does nothing where `output` already holds this content. Replaces another prepared data set,
    and nothing else.

    Args:
        table: the checked table.
        output: folder to make, a local path or a URI.
        options: how the table was read, for the manifest.
        prepare_options: fields of `PrepareOptions`.

    Raises:
        ConfigError: a split that the series cannot be cut into.
        DataError: a channel named like one of the columns `unique_id` and `ds`, or an `output`
            that holds something else.
    """
    prepare = PrepareOptions(**prepare_options)
    return Preparation.of(table, options or TableOptions(), prepare).write(output)


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """A checked table in memory, ready to be written as a prepared data set."""

    table: Table
    """Its series that have a training row."""
    series: pa.Table
    """A row each, see `describe_series`."""
    draft: Draft

    @classmethod
    def of(
        cls,
        table: Table,
        options: TableOptions,
        prepare: PrepareOptions,
        *,
        section: str = "data",
    ) -> Self:
        """Decide what of a table will be written; writes nothing.

        Args:
            table: the checked table.
            options: how it was read, for the manifest.
            prepare: what the data set is to be.
            section: where these options stand in the configuration, for errors.

        Raises:
            ConfigError: a split that the series cannot be cut into.
            DataError: a channel named like one of the columns `unique_id` and `ds`.
        """
        findings, rule = Findings(), replace(prepare.split_rule, section=section)
        kept = drop_untrained(table, rule, findings)
        if error := no_training(len(kept.unique_ids), rule, findings):
            raise error
        draft = Draft(
            name=prepare.name or table.name,
            channels=table.channels,
            frequency=str(table.frequency),
            options=options,
            prepare=prepare,
            inputs=tuple(InputFile(path=path, fingerprint="") for path in table.source),
            notes=(*table.notes, *(note.text() for note in findings.notes)),
        )
        return cls(table=kept, series=describe_series(kept, rule), draft=draft)

    @cached_property
    def content_hash(self) -> str:
        """The content hash of the manifest that `write` writes."""
        return self.draft.content_hash(self.series)

    @property
    def prompt(self) -> str:
        """The description of the data set that `write` puts into the manifest."""
        return self.draft.prompt(self.series)

    def write(self, output: Location) -> Manifest:
        """Write the data set, all of it or nothing; see `write_prepared`.

        Raises:
            DataError: an `output` that holds something else.
        """
        place = open_place(output)
        existing = existing_data(place)
        if existing is not None and existing.content_hash == self.content_hash:
            return existing
        written: list[DataFile] = []
        try:
            for file in write_rows(self.table, self.series, place, self.draft.prepare):
                written.append(file)
            return self.draft.publish(place, written, self.series)
        except BaseException:
            remove_strays(place, existing)
            raise
