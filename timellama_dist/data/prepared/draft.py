"""A prepared data set before its manifest is written: its facts, its prompt, its content hash."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from timellama_dist.data.prepared.files import write_file
from timellama_dist.data.prepared.folder import remove_strays
from timellama_dist.data.prepared.manifest import SCHEMA_VERSION, DataFile, InputFile, Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.series_table import with_pooled_scalers
from timellama_dist.data.tables.columns import ID_COLUMN
from timellama_dist.data.tables.frequency import season_len, step_in_words
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.storage import Place

_CHANNELS_IN_PROMPT = 24


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A prepared data set that has no manifest yet: all that is the same for every series."""

    name: str
    channels: tuple[str, ...]
    frequency: str
    options: TableOptions
    prepare: PrepareOptions
    inputs: tuple[InputFile, ...]
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return all options as the manifest keeps them, to tell the same wish from another."""
        options = asdict(self.options) | asdict(self.prepare)
        return dict(json.loads(json.dumps(options)))

    def prompt(self, series: pa.Table) -> str:
        """Return the user's text, or a plain description of the table.

        Says nothing of context or horizon: one data set serves many of them.
        """
        if self.prepare.prompt is not None:
            return self.prepare.prompt
        count = len(self.channels)
        shown = ", ".join(self.channels[:_CHANNELS_IN_PROMPT])
        if count > _CHANNELS_IN_PROMPT:
            shown += ", ..."
        channels = f"{count} channel{'s' if count > 1 else ''} ({shown})"
        of_series = f" in each of {len(series)} series" if len(series) > 1 else ""
        first = series["first_ds"].to_numpy().min().astype("datetime64[D]")
        last = series["last_ds"].to_numpy().max().astype("datetime64[D]")
        return (
            f"The {self.name} data set holds {channels}{of_series}, recorded every "
            f"{step_in_words(self.frequency)} from {first} to {last}. "
            "The task is to forecast the next values of each channel from its past values."
        )

    def content_hash(self, series: pa.Table) -> str:
        """Hash values, times, names, split and prompt: not how files are cut."""
        # float(): the split (1, 0, 0) of a YAML file is the split (1.0, 0.0, 0.0) of a flag.
        split = [float(part) for part in self.prepare.split]
        facts = [
            *(SCHEMA_VERSION, self.name, self.prompt(series), self.channels, self.frequency),
            *(split, self.prepare.split_by),
        ]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for unique_id, values in zip(
            series[ID_COLUMN].to_pylist(), series["digest"].to_pylist(), strict=True
        ):
            digest.update(f"{len(unique_id)}:{unique_id}".encode() + values)
        return digest.hexdigest()

    def publish(
        self,
        output: Place,
        files: Sequence[DataFile],
        series: pa.Table,
    ) -> Manifest:
        """Write the table of series and then the manifest; remove what neither needs any more.

        Args:
            output: the data set's folder.
            files: all its files, in the order of ids.
            series: all its series (see `describe_series`), in the order of ids.
        """
        assert sum(file.num_rows for file in files) == sum(series["num_rows"].to_pylist())
        content_hash = self.content_hash(series)
        if self.prepare.split_by == "series":
            series = with_pooled_scalers(series, self.prepare.split_rule)
        first_rows = np.cumsum([0, *series["num_rows"].to_pylist()])[:-1]
        series = series.drop_columns("num_observed").add_column(
            1, "first_row", pa.array(first_rows)
        )
        groups = iter([series.combine_chunks()])
        series_file = write_file(output, f"series-{content_hash[:16]}.parquet", groups)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=self.name,
            channels=self.channels,
            frequency=self.frequency,
            season_len=season_len(self.frequency),
            num_series=len(series),
            num_rows=sum(file.num_rows for file in files),
            split=tuple(self.prepare.split),
            split_by=self.prepare.split_by,
            scaler="standard",
            prompt=self.prompt(series),
            files=tuple(files),
            series_file=series_file,
            content_hash=content_hash,
            inputs=self.inputs,
            options=self.facts(),
            notes=self.notes,
        )
        manifest.save(output)
        remove_strays(output, manifest)
        return manifest
