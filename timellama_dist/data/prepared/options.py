"""What a prepared data set is to be, beside how its table is read."""

from dataclasses import dataclass

from timellama_dist.data.windows.splits import DEFAULT_SPLIT, SplitBy, SplitRule
from timellama_dist.errors import require_at_least

_GROUP_BYTES = 1 << 20
_GROUP_ROWS = (1024, 8192)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What a prepared data set is to be, beside the table's own options."""

    split: tuple[float, ...] = DEFAULT_SPLIT
    """Fractions or rows of the train, validation and test part; see `SplitRule`."""
    split_by: SplitBy = "time"
    name: str | None = None
    """Default the source's name."""
    prompt: str | None = None
    """Text that describes the data set to the model; default one made from the table."""
    rows_per_file: int = 1 << 20
    rows_per_group: int | None = None
    """Rows of a row group, the least that a reader reads at once; default about 1 MiB."""

    def __post_init__(self) -> None:
        require_at_least(
            1, {"rows_per_file": self.rows_per_file, "rows_per_group": self.rows_per_group}
        )
        if self.split_by == "series":
            # Of how many series isn't clear yet, but that they must be fractions is.
            self.split_rule.members(0, "train")

    @property
    def split_rule(self) -> SplitRule:
        """How its series are divided into splits."""
        return SplitRule(self.split, self.split_by)

    def group_rows(self, num_channels: int) -> int:
        """Return the rows of a row group: a window of 1000 rows touches one or two."""
        least, most = _GROUP_ROWS
        return self.rows_per_group or max(least, min(most, _GROUP_BYTES // (8 * num_channels)))
