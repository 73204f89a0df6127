"""The schema of `timellama prepare`: which tables are prepared, how they are read, and where to."""

from dataclasses import dataclass, field, fields

from timellama_dist.data.prepared.write import PrepareOptions
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.windows.splits import DEFAULT_SPLIT, SplitBy
from timellama_dist.errors import ConfigError, require_at_least


@dataclass(frozen=True, kw_only=True)
class TableSection(TableOptions):
    """How the tables are read, and what the prepared data set says of them."""

    split: tuple[float, float, float] | None = None
    """Train, validation, test: three shares (0.7, 0.1, 0.2 if not given) or three row counts;
    0 rows of train: all but the last."""
    split_by: SplitBy = "time"
    """Each series in parts, or each wholly in one part."""
    name: str | None = None
    """What the data set is called; the input's name if not given."""
    prompt: str | None = None
    """What the data are, in words; made from the table if not given."""

    @property
    def table_options(self) -> TableOptions:
        """The part that concerns reading."""
        return TableOptions(**{key.name: getattr(self, key.name) for key in fields(TableOptions)})


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """A whole preparation."""

    input: list[str] = field(default_factory=list)
    """CSV or Parquet files, or one folder of them; paths or URIs."""
    output: str | None = None
    """The folder to make, a path or URI."""
    validate_only: bool = False
    """Print all that is wrong, and write nothing; instead of output."""
    rows_per_group: int | None = None
    """Rows of a Parquet row group, the least that is read at once; about 1 MiB if not given."""
    data: TableSection = field(default_factory=TableSection)

    def __post_init__(self) -> None:
        if not self.input:
            raise ConfigError("input must be given: files, or one folder of files")
        if (self.output is None) != self.validate_only:
            raise ConfigError("give either output, a folder to make, or validate_only")
        require_at_least(1, {"rows_per_group": self.rows_per_group})

    @property
    def prepare_options(self) -> PrepareOptions:
        """The part that concerns what is written."""
        data = self.data
        return PrepareOptions(
            split=DEFAULT_SPLIT if data.split is None else data.split,
            split_by=data.split_by,
            name=data.name,
            prompt=data.prompt,
            rows_per_group=self.rows_per_group,
        )
