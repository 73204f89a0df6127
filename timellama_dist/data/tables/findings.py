"""Collects what is wrong with a table, or worth knowing: counts and first examples, by kind."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from timellama_dist.errors import DataError

KINDS = (
    "time",
    "time zone",
    "unused zone",
    "id",
    "number",
    "empty",
    "order",
    "duplicate",
    "frequency",
    "gap",
    "grid",
    "unfilled",
    "channels",
    "filled",
    "inserted",
    "dropped",
    "untrained",
    "constant",
    "outlier",
)
"""In the order in which they are reported."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of fault or peculiarity, of one channel or of the times or ids."""

    kind: str
    message: str
    """Of the first; "{count}" stands for how many there are."""
    count: int
    row: int
    """Where the first lies; the lowest is the one that is reported."""
    fatal: bool
    """The table can't be prepared as it is."""
    channel: str | None = None

    def text(self, *, complete: bool = True) -> str:
        """Complete the message with the count; `complete` says that the whole table was counted."""
        return self.message.replace("{count}", f"{'' if complete else 'at least '}{self.count}")


class Findings:
    """Findings of many parts of a table, added up."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self._by_kind: dict[tuple[str, str | None, bool], Finding] = {}
        self.extend(findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(sorted(self._by_kind.values(), key=_rank))

    def add(
        self,
        kind: str,
        message: str,
        *,
        count: int,
        row: int,
        fatal: bool = True,
        channel: str | None = None,
    ) -> None:
        """Add what a part of the table holds."""
        self.extend(
            [
                Finding(
                    kind=kind, message=message, count=count, row=row, fatal=fatal, channel=channel
                )
            ]
        )

    def extend(self, findings: Iterable[Finding]) -> None:
        """Add the findings of another part."""
        for finding in findings:
            key = (finding.kind, finding.channel, finding.fatal)
            if (earlier := self._by_kind.get(key)) is not None:
                first = finding if finding.row < earlier.row else earlier
                finding = replace(first, count=earlier.count + finding.count)
            self._by_kind[key] = finding

    @property
    def fatal(self) -> list[Finding]:
        """Those that forbid to prepare the table."""
        return [finding for finding in self if finding.fatal]

    @property
    def notes(self) -> list[Finding]:
        """Those that tell what was done to the table, or is worth knowing."""
        return [finding for finding in self if not finding.fatal]

    def refuse(self, *, complete: bool = True) -> None:
        """Raise the first fatal finding, if there is one.

        Raises:
            DataError: with its message.
        """
        if fatal := self.fatal:
            raise DataError(fatal[0].text(complete=complete))


def _rank(finding: Finding) -> tuple[int, int]:
    return KINDS.index(finding.kind), finding.row
