"""Where a typed row came from, so that a user can be told: file, row, configuration key."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROW_BITS = 40


@dataclass(frozen=True)
class Origin:
    """What a table is made of."""

    files: tuple[str, ...]
    row_width: int = 1
    """Typed rows that one row of a file becomes at most."""
    section: str = "data"
    """Where the table's options stand in the configuration."""

    def key(self, option: str) -> str:
        """Name a table option as the user types it, such as `data.gaps`."""
        return f"{self.section}.{option}"

    def where(self, code: int) -> str:
        """Name the file and 1-based data row of a row code."""
        file, row = code >> _ROW_BITS, code & ((1 << _ROW_BITS) - 1)
        return f"{self.files[file]}: row {row // self.row_width + 1}"

    @property
    def place(self) -> str:
        """The table, in an error that concerns no single row."""
        more = f" (and {len(self.files) - 1} more files)" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def row_codes(file: int, first_row: int, count: int) -> NDArray[np.int64]:
    """Number consecutive rows of a file; the codes sort by file and row."""
    return (file << _ROW_BITS) + first_row + np.arange(count, dtype=np.int64)


def file_of(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the file of each row code."""
    return codes >> _ROW_BITS
