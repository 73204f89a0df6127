"""How far a command is that counts what it has done."""

import sys
import time
from typing import Any, Protocol

from tqdm import tqdm


class Progress:
    """A bar on a terminal, a line now and then elsewhere.

    Args:
        name: what is being done.
        total: how many of them there are.
        unit: what is counted.
        done: how many were done before.
        quiet_s: seconds between lines where there is no terminal.
    """

    def __init__(
        self, name: str, total: int, *, unit: str = "window", done: int = 0, quiet_s: float = 10.0
    ) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._begun = self._done = done
        self._quiet_s = quiet_s
        self._started = self._last_line = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, disable=not terminal)

    def add(self, count: int) -> None:
        """More are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and count and now - self._last_line >= self._quiet_s:
            self._last_line = now
            rate = (self._done - self._begun) / (now - self._started)
            left = tqdm.format_interval((self._total - self._done) / rate)
            print(
                f"{self._name}: {self._done} of {self._total} {self._unit}s, "
                f"{rate:.0f} {self._unit}s/s, {left} left",
                file=sys.stderr,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class PrepareCounts(Protocol):
    """What a preparation counts."""

    @property
    def rows_read(self) -> int: ...
    @property
    def rows_arranged(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...


class PrepareProgress:
    """How far the preparation of a table is."""

    def __init__(self, quiet_s: float = 10.0) -> None:
        self._bar: Any = None
        self._quiet_s = quiet_s
        self._started = self._last_line = time.monotonic()

    def show(self, counts: "PrepareCounts") -> None:
        """Show how far the job is."""
        rate = counts.rows_read / (time.monotonic() - self._started)
        text = f"{counts.rows_read} rows read, {counts.rows_arranged} written, {rate:.0f} rows/s"
        done = min(counts.bytes_read, counts.bytes_total)
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    total=2 * counts.bytes_total,
                    dynamic_ncols=True,
                    bar_format="{percentage:3.0f}% |{bar}| {postfix} [{elapsed}<{remaining}]",
                )
            # Reading is one half, sorting and writing the other.
            share = counts.rows_arranged / max(1, counts.rows_read)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.n = int(done + done * share)
            self._bar.refresh()
        elif counts.rows_read and time.monotonic() - self._last_line >= self._quiet_s:
            self._last_line = time.monotonic()
            print(f"{100 * done // max(1, counts.bytes_total)} % read: {text}", file=sys.stderr)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()
