"""Says which windows are meant: their lengths, their part of a series, and short series."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from timellama_dist.errors import ConfigError, require_at_least

SplitName = Literal["train", "validation", "test"]
ShortSeries = Literal["skip", "pad"]

SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """The windows of one split: `context_len` rows of past followed by `horizon` rows of target.

    Windows have stride 1 and never cross from one series into another.

    Raises:
        ConfigError: an unknown choice, or a length below 1.
    """

    context_len: int
    """Rows of past (L)."""
    horizon: int
    """Rows of target (H)."""
    split: SplitName = "train"
    """The part of each series whose rows are the targets."""
    train_fraction: float = 1.0
    """Few-shot: the first share of the training part to keep, see `SplitRule.borders`."""
    short_series: ShortSeries = "skip"
    """skip counts windows that lie in their series. pad also counts those that begin before its
    first row, with at least one row of past: for every target row of a validation or test part (by
    time), else in series that have no full window."""

    def __post_init__(self) -> None:
        check_choice("split", self.split, SplitName)
        check_choice("data.short_series", self.short_series, ShortSeries)
        require_at_least(1, {"data.context_len": self.context_len, "data.horizon": self.horizon})

    @property
    def length(self) -> int:
        """Rows of a whole window."""
        return self.context_len + self.horizon

    def of(self, split: SplitName) -> "WindowSpec":
        """Return the same windows of another split."""
        return replace(self, split=split)


def check_choice(key: str, value: str, choices: Any) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        ConfigError: names the key and the choices.
    """
    if value not in get_args(choices):
        raise ConfigError(key=key, must=f"be one of {', '.join(get_args(choices))}", got=value)
