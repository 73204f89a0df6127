"""How a user's table is to be read, and what is done about what is wrong with it."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, fields
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
    section: InitVar[str] = "data"
    """Where these keys stand in the configuration, for errors."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Take the options out of what a manifest keeps of them."""
        options = {field.name: facts[field.name] for field in fields(cls) if field.name in facts}
        if options.get("columns") is not None:
            options["columns"] = tuple(options["columns"])
        return cls(**options)

    def __post_init__(self, section: str) -> None:
        self._check_choices(section)
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ConfigError(
                key=f"{section}.columns", must="name each column once", got=list(self.columns)
            )
        if self.gaps == "reindex" and self.missing == "refuse":
            raise ConfigError(
                f"{section}.gaps=reindex puts in rows without values: say with {section}.missing "
                "what becomes of them (ffill, interpolate or mask)"
            )
        if self.gaps == "reindex" and self.timestamps == "ignore":
            raise ConfigError(
                f"{section}.gaps=reindex needs {section}.timestamps=check, got ignore"
            )
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (KeyError, ValueError, OSError):
                must = "be a name such as Europe/Paris"
                raise ConfigError(
                    key=f"{section}.time_zone", must=must, got=self.time_zone
                ) from None
        if self.frequency is not None:
            try:
                to_offset(self.frequency)
            except ValueError:
                must = "be a pandas alias such as h, 15min or MS"
                raise ConfigError(
                    key=f"{section}.frequency", must=must, got=self.frequency
                ) from None
        if self.layout == "rows" and self.frequency is None:
            raise ConfigError(
                f"{section}.layout=rows has no times: give {section}.frequency, for example h"
            )

    def _check_choices(self, section: str) -> None:
        for field in fields(self):
            choices = get_args(field.type)
            value = getattr(self, field.name)
            named = choices and all(isinstance(choice, str) for choice in choices)
            if named and value not in choices:
                must = f"be one of {', '.join(choices)}"
                raise ConfigError(key=f"{section}.{field.name}", must=must, got=value)
