"""Divides series into a training, a validation and a test part. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timellama_dist.data.windows.spec import SplitName, check_choice
from timellama_dist.errors import ConfigError

IntArray = NDArray[np.int64]
SplitBy = Literal["time", "series"]

DEFAULT_SPLIT = (0.7, 0.1, 0.2)

_EPS = 1e-9


@dataclass(frozen=True)
class SplitRule:
    """How series are divided into a training, a validation and a test part.

    Fractions (a, b, c): training gets int(n * a) rows, test the last int(n * c), validation the
    rest between them; if they sum to less than 1, rows are left over at the end. Whole numbers are
    rows from the start; 0 rows of training mean all but the last b + c.

    Raises:
        ConfigError: `by` is unknown.
    """

    split: Sequence[float] = DEFAULT_SPLIT
    """Three fractions that sum to at most 1, or three numbers of rows."""
    by: SplitBy = "time"
    """time gives each series a part in each split; series gives it to one split whole."""
    section: str = field(default="data", compare=False)
    """Where `split` stands in the configuration, for errors."""

    def __post_init__(self) -> None:
        check_choice(f"{self.section}.split_by", self.by, SplitBy)

    @property
    def key(self) -> str:
        """The key of `split`, as the user typed it."""
        return f"{self.section}.split"

    def is_fractional(self) -> bool:
        """Tell fractions (0.7, 0.1, 0.2) from rows (8640, 2880, 2880).

        Raises:
            ConfigError: `split` is neither.
        """
        split, shown = self.split, list(self.split)
        if len(split) != 3:
            raise ConfigError(key=self.key, must="be three numbers", got=shown)
        if any(not np.isfinite(part) or part < 0 for part in split):
            raise ConfigError(key=self.key, must="not be negative", got=shown)
        if sum(split) <= 1 + _EPS:
            return True
        if any(part != int(part) for part in split):
            raise ConfigError(
                key=self.key,
                must="be three fractions whose sum is at most 1, or three whole numbers of rows",
                got=shown,
            )
        return False

    def members(self, num_series: int, name: SplitName) -> NDArray[np.bool_]:
        """Mark the series of a split by series, shape (series,).

        The first int(num_series * train share) series of a fixed random order train, the last test:
        the borders of `borders`, in series instead of rows. The order depends on the number of
        series alone.

        Raises:
            ConfigError: `split` is rows and not fractions.
        """
        if not self.is_fractional():
            raise ConfigError(
                key=self.key,
                must="be three fractions of the number of series where data are split by series",
                got=list(self.split),
            )
        order = np.random.Generator(np.random.PCG64(0)).permutation(num_series)
        begin, end = self.parts(num_series, 0, 1.0)[name]
        member = np.zeros(num_series, dtype=np.bool_)
        member[order[int(begin) : int(end)]] = True
        return member

    def borders(
        self, num_rows: int, context_len: int, *, train_fraction: float = 1.0
    ) -> dict[SplitName, tuple[int, int]]:
        """Find the row ranges [begin, end) of one series' three splits.

        Validation and test begin `context_len` rows before their first target row, so that every
        row of their part is forecast.

        Args:
            num_rows: rows of the series.
            context_len: rows of past in a window.
            train_fraction: few-shot, the first share of the training part to keep:
                int((train rows - context_len) * train_fraction) + context_len rows.

        Raises:
            ConfigError: `split` or `train_fraction` is out of bounds, or asks for more rows than
                there are.
        """
        parts = self.parts(num_rows, context_len, train_fraction)
        return {
            name: (max(int(begin) - context_len, 0), int(end))
            for name, (begin, end) in parts.items()
        }

    def parts(
        self, num_rows: ArrayLike, context_len: int, train_fraction: float
    ) -> dict[SplitName, tuple[IntArray, IntArray]]:
        """Find each series' own rows [begin, end) of each split, without the past before them."""
        train_end, validation_end, test_end = self._part_ends(num_rows)
        return {
            "train": (
                np.zeros_like(train_end),
                self.kept_rows(train_end, context_len, train_fraction),
            ),
            "validation": (train_end, validation_end),
            "test": (validation_end, test_end),
        }

    def train_rows(self, num_rows: ArrayLike) -> IntArray:
        """Count each series' rows of training, few-shot or not: the scaler's rows."""
        return self._part_ends(num_rows)[0]

    def kept_rows(self, num_train: IntArray, context_len: int, train_fraction: float) -> IntArray:
        """Count the rows of each training part that few-shot training keeps, shape (series,)."""
        if not 0 < train_fraction <= 1:
            raise ConfigError(
                key=f"{self.section}.train_fraction",
                must="be above 0 and at most 1",
                got=train_fraction,
            )
        # round() so that 0.29 of 100 is 29 as in the papers' integer percentages, and not 28.
        share = np.trunc(np.round((num_train - context_len) * train_fraction, 9)).astype(np.int64)
        return np.where(num_train > context_len, share + context_len, num_train)

    def _part_ends(self, num_rows: ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
        """Find the ends of each series' three parts, each of shape (series,)."""
        rows, split = np.asarray(num_rows, dtype=np.int64), self.split
        if not self.is_fractional():
            return self._part_ends_in_rows(rows, [int(part) for part in split])
        # Truncation of the float product, not rounding: published borders are int(n * 0.7).
        train = np.trunc(rows * split[0]).astype(np.int64)
        test = np.trunc(rows * split[2]).astype(np.int64)
        # round() so that 0.9 of 10 is 9, though 0.7 + 0.0 + 0.2 is a little less than 0.9.
        share = np.trunc(np.round(rows * sum(split), 9)).astype(np.int64)
        used = rows if sum(split) >= 1 - _EPS else share
        return train, np.maximum(used - test, train), used

    def _part_ends_in_rows(
        self, rows: IntArray, split: list[int]
    ) -> tuple[IntArray, IntArray, IntArray]:
        train, validation, test = split
        if train == 0:
            if validation == 0 or test == 0:
                raise ConfigError(
                    f"{self.key} [0, V, T] trains on all but the last V + T rows of each series: V "
                    f"and T must be above 0, got {split}"
                )
            ends = rows - validation - test, rows - test, rows
            return np.maximum(ends[0], 0), np.maximum(ends[1], 0), ends[2]
        if rows.size and rows.min() < sum(split):
            raise ConfigError(
                f"{self.key} {split} asks for {sum(split)} rows, but a series has only {rows.min()}"
            )
        return (
            np.full_like(rows, train),
            np.full_like(rows, train + validation),
            np.full_like(rows, train + validation + test),
        )
