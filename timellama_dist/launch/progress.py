"""How far a command is that counts what it has done."""

import sys
import time

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
