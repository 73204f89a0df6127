"""The section `data`: what a run learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

from timellama_dist.config.former import TABLE
from timellama_dist.errors import require, require_at_least

DEFAULT_DATA = "epf"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What a user says of one data set."""

    path: str | None = None
    """A CSV or Parquet file, a folder of them, a prepared folder or its URI (s3://...), or a public
    set; epf if none."""
    split: tuple[float, float, float] | None = None
    """Train, validation, test: three shares (0.7, 0.1, 0.2 if not given) or three row counts;
    0 rows of train: all but the last."""
    series: Literal["separate", "channels"] | None = None
    """Long tables: is each unique_id a series of its own, or a channel of one series?"""
    columns: list[str] | None = None
    """Value columns to use; all of the table's if not given."""
    layout: Literal["auto", "wide", "long", "rows"] = "auto"
    """Of a table: a column a channel; unique_id, ds and values; or a row a series, without times
    (M4)."""
    timestamps: Literal["check", "ignore"] = "check"
    """check refuses times out of order and applies `duplicates` and `gaps`; ignore takes rows as
    they stand."""
    duplicates: Literal["refuse", "first", "last"] = "last"
    """Rows of one series with the same time: refuse them, or keep the first or the last."""
    gaps: Literal["refuse", "reindex"] = "reindex"
    """Missing time steps: refuse them, or put in rows without values."""
    time_zone: str | None = None
    """Of local times without an offset, such as Europe/Paris; they become UTC."""
    frequency: str | None = None
    """pandas alias of the step, such as h or 15min; learned from the times if not given."""
    split_by: Literal["time", "series"] = "time"
    """Each series in parts, or each wholly in one part."""
    missing: Literal["refuse", "ffill", "interpolate", "mask"] = "mask"
    """Empty values: refuse; fill with the last value before; interpolate in time; or leave
    out of loss and metrics."""
    prompt: str | None = None
    """What the data are, in words; the default comes from the manifest."""
    train_fraction: float = 1.0
    """Few-shot: the first share of the training part that is used."""
    short_series: Literal["skip", "pad"] = "pad"
    """Series shorter than a window: skip them, or pad their past on the left and leave it out."""

    def decides(self, name: str) -> bool:
        """Does a key hold more than its default, now or formerly?

        A resolved configuration names every key, those too that nobody decided.
        """
        default = type(self).__dataclass_fields__[name].default
        return getattr(self, name) not in (default, TABLE.get(name, default))

    def check(self, key: str) -> None:
        """Refuse a value out of its bound; `key` is where this set stands in the configuration.

        Raises:
            ConfigError: named by its key.
        """
        require(
            0 < self.train_fraction <= 1, f"{key}.train_fraction", "in (0, 1]", self.train_fraction
        )
        if self.split is not None:
            train, validation, test = self.split
            last_rows = train == 0 and min(validation, test) >= 1
            require(
                min(self.split) > 0 or last_rows,
                f"{key}.split",
                "three positive numbers, or [0, V, T] rows",
                list(self.split),
            )


@dataclass(frozen=True, kw_only=True)
class MixturePart(DataSet):
    """One of several data sets; the section that holds it checks it, for it knows its place."""

    path: str = ""
    """A CSV or Parquet file, a folder of them, a prepared folder or its URI (s3://...), or epf."""
    name: str | None = None
    """What metrics and forecasts call it; the data set's own name if not given."""
    weight: float | None = None
    """Share of the steps, relative to the others'; its number of training windows if not given."""
    context_len: int | None = None
    """Its own steps of the past, at most the run's; the rest is left out."""
    horizon: int | None = None
    """Its own steps to forecast, at most the run's."""

    def check(self, key: str) -> None:
        """Refuse a value out of its bound, named by its key."""
        require(bool(self.path), f"{key}.path", "given", self.path)
        super().check(key)
        require(
            self.weight is None or 0 < self.weight < math.inf,
            f"{key}.weight",
            "above 0 and finite",
            self.weight,
        )


@dataclass(frozen=True, kw_only=True)
class DataSection(DataSet):
    """The series to learn from: one data set (epf if no path is given), or a mixture of several."""

    context_len: int = 512
    """Steps of the past that a forecast sees (L); with fit_context at most so many."""
    fit_context: bool = True
    """Shorten context_len to what the length of the series suggests; see data/windows/index.py."""
    horizon: int = 24
    """Steps to forecast (H)."""
    mixture: list[MixturePart] | None = None
    """Several data sets in one run instead of path; batches are of one set at a time."""

    def __post_init__(self) -> None:
        require_at_least(1, {"data.context_len": self.context_len, "data.horizon": self.horizon})
        self.check("data")
        if self.mixture is not None:
            self._check_mixture(self.mixture)

    @property
    def parts(self) -> list[MixturePart]:
        """The run's data sets; a run over one is a mixture of one."""
        if self.mixture is not None:
            return self.mixture
        values = {key.name: getattr(self, key.name) for key in fields(DataSet)}
        return [MixturePart(**values | {"path": DEFAULT_DATA if self.path is None else self.path})]

    def with_parts(self, parts: Sequence[MixturePart]) -> Self:
        """This section with its data sets replaced, as many as there were."""
        if self.mixture is not None:
            return replace(self, mixture=list(parts))
        (part,) = parts
        return replace(self, **{key.name: getattr(part, key.name) for key in fields(DataSet)})

    def lengths(self, part: MixturePart) -> tuple[int, int]:
        """Context and horizon of a part's own windows, at most the run's."""
        return part.context_len or self.context_len, part.horizon or self.horizon

    def part_key(self, number: int) -> str:
        """How the user calls the part of that number: `data` or `data.mixture[1]`."""
        return "data" if self.mixture is None else f"data.mixture[{number}]"

    def _check_mixture(self, mixture: Sequence[MixturePart]) -> None:
        require(len(mixture) >= 1, "data.mixture", "at least one data set", mixture)
        for key in fields(DataSet):
            require(
                not self.decides(key.name),
                f"data.{key.name}",
                "left out beside data.mixture, whose parts have their own",
                getattr(self, key.name),
            )
        for number, part in enumerate(mixture):
            part.check(self.part_key(number))
            for name, own, most in (
                ("context_len", part.context_len, self.context_len),
                ("horizon", part.horizon, self.horizon),
            ):
                require(
                    own is None or 1 <= own <= most,
                    f"{self.part_key(number)}.{name}",
                    f"between 1 and data.{name}={most}",
                    own,
                )
            require(
                (part.weight is None) == (mixture[0].weight is None),
                f"{self.part_key(number)}.weight",
                "given for all parts or for none, for weights are relative to each other",
                part.weight,
            )
