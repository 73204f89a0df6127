"""One data set of a run, from the checked configuration to the workers and the report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from timellama_dist.config.schema import DataSet, MixturePart
from timellama_dist.data.prepared.write import Preparation
from timellama_dist.data.prompts import task_prompt
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.windows.index import WindowCounts
from timellama_dist.data.windows.spec import SplitName, WindowSpec
from timellama_dist.storage import Location, open_place

DECIDED_KEYS = tuple(
    key
    for key in fields(DataSet)
    if key.name in {*(option.name for option in fields(TableOptions)), "split", "split_by"}
)
"""The keys of a data set that are decided when it is prepared."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that has passed every check that needs no worker.

    One that comes as a table holds its preparation until `prepare` has written it. From then on it
    consists of plain values, for workers.
    """

    part: MixturePart
    """The user's words, with its name, and a public data set's own layout, filled in."""
    spec: WindowSpec
    """Its training windows, with the context that was fitted to it."""
    channels: tuple[str, ...]
    frequency: str
    """Length of a step as a pandas offset alias."""
    season_len: int
    """Steps of its main season."""
    counts: Mapping[SplitName, WindowCounts]
    """Its windows, by each split that was checked."""
    content_hash: str
    """Of its prepared data, written or not."""
    description: str
    """What the data are, in words."""
    preparation: Preparation | None = None
    """Its table, ready to be written; None if `path` is prepared data."""

    @property
    def name(self) -> str:
        """Its name in metrics, forecasts and folders."""
        return str(self.part.name)

    @property
    def path(self) -> str:
        """Path or URI of the prepared data, or of the table that is to be prepared."""
        return self.part.path

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    @property
    def num_windows(self) -> dict[SplitName, int]:
        """Windows by split."""
        return {split: counts.num_windows for split, counts in self.counts.items()}

    @property
    def prompt(self) -> str:
        """The whole prompt: what the data are, and the task."""
        return task_prompt(
            self.description,
            context_len=self.spec.context_len,
            horizon=self.spec.horizon,
            frequency=self.frequency,
        )

    def prepare(self, output: Location) -> Self:
        """Write its table to `output`, if it is one; return the data set that lies there.

        Raises:
            DataError: `output` holds something else, or the storage refuses.
        """
        if self.preparation is None:
            return self
        place = open_place(output)
        self.preparation.write(place)
        decided: dict[str, Any] = {key.name: key.default for key in DECIDED_KEYS}
        part = replace(self.part, path=place.uri, **decided)
        return replace(self, part=part, preparation=None)

    def to_dict(self) -> dict[str, Any]:
        """Turn prepared data into plain values, for `from_dict` in another process."""
        assert self.preparation is None, "a table must be prepared before workers can read it"
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a data set from its plain values."""
        counts = {split: WindowCounts(**count) for split, count in values["counts"].items()}
        return cls(
            **{
                **values,
                "part": MixturePart(**values["part"]),
                "spec": WindowSpec(**values["spec"]),
                "channels": tuple(values["channels"]),
                "counts": counts,
            }
        )
