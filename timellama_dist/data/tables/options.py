"""How a user's table is to be read, and what is done about what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pandas.tseries.frequencies import to_offset

from timellama_dist.errors import ConfigError

Layout = Literal["auto", "wide", "long", "rows"]
SeriesLayout = Literal["separate", "channels"]
TimestampCheck = Literal["check", "ignore"]
Duplicates = Literal["refuse", "first", "last"]
Gaps = Literal["refuse", "reindex"]
Missing = Literal["refuse", "ffill", "interpolate", "mask"]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Keys of the `data` section that concern a table before it is prepared."""

    layout: Layout = "auto"
    """wide: `date, <channel>...`; long: `unique_id, ds, <value>...`; rows: a series a row, without
    times, as the M4 collection has them."""
    series: SeriesLayout = "separate"
    """Of a long table: each unique_id a series of its own, or a channel of one series."""
    columns: tuple[str, ...] | None = None
    """Value columns to use, in this order; default all."""
    timestamps: TimestampCheck = "check"
    """check applies `duplicates` and `gaps`; ignore takes the rows as they stand."""
    duplicates: Duplicates = "refuse"
    """Rows of one series with the same time: refuse, or keep the first or the last of them."""
    gaps: Gaps = "refuse"
    """Steps missing between two rows: refuse, or put in rows without values."""
    missing: Missing = "refuse"
    """Empty values: refuse; fill with the last value before; interpolate in time; or keep them
    empty, for loss and metrics to leave out."""
    time_zone: str | None = None
    """Of local times without an offset, such as Europe/Paris: they become UTC."""
    frequency: str | None = None
    """pandas alias of the step; default learned from the times. layout=rows needs it."""
    start: str = "2000-01-01"
    """layout=rows: the time of every series' first value."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """The options among what a manifest keeps of them."""
        given = {field.name: facts[field.name] for field in fields(cls) if field.name in facts}
        if given.get("columns") is not None:
            given["columns"] = tuple(given["columns"])
        return cls(**given)

    def __post_init__(self) -> None:
        for field in fields(self):
            choices = get_args(field.type)
            value = getattr(self, field.name)
            named = choices and all(isinstance(choice, str) for choice in choices)
            if named and value not in choices:
                raise ConfigError(
                    f"data.{field.name} must be one of {', '.join(choices)}, got {value!r}"
                )
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"data.columns must name each column once, got {list(self.columns)}")
        if self.gaps == "reindex" and self.missing == "refuse":
            raise ConfigError(
                "data.gaps=reindex puts in rows without values: say with data.missing what becomes "
                "of them (ffill, interpolate or mask)"
            )
        if self.gaps == "reindex" and self.timestamps == "ignore":
            raise ConfigError("data.gaps=reindex needs data.timestamps=check, got ignore")
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (KeyError, ValueError, OSError):
                raise ConfigError(
                    f"data.time_zone must be a name such as Europe/Paris, got {self.time_zone!r}"
                ) from None
        if self.frequency is not None:
            try:
                to_offset(self.frequency)
            except ValueError:
                raise ConfigError(
                    f"data.frequency must be a pandas alias such as h, 15min or MS, "
                    f"got {self.frequency!r}"
                ) from None
        if self.layout == "rows" and self.frequency is None:
            raise ConfigError("data.layout=rows has no times: give data.frequency, for example h")
