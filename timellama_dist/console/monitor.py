"""Shows a run on the driver while it goes on, and asks it to stop.

Workers append events to a small actor; the driver drains it, writes `history.jsonl` and shows a
progress line. So nothing has to be read from a worker's own output, which stays in Ray's logs.
"""

import asyncio
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from tqdm import tqdm

from timellama_dist.cluster import on_this_node
from timellama_dist.console.events import (
    Evaluating,
    Event,
    Phase,
    Saved,
    Started,
    TrainStep,
    Validation,
)


class Monitor:
    """The mailbox between workers and driver; an actor that lives and ends with the driver."""

    @classmethod
    def start(cls) -> tuple[str, Any]:
        """Start the actor; its name, for `ray.get_actor` in a worker, and its handle."""
        name = f"timellama-monitor-{uuid4().hex[:12]}"
        return name, ray.remote(cls).options(name=name, num_cpus=0, **on_this_node()).remote()

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = asyncio.Event()

    def append(self, event: Event) -> None:
        """Take an event from a worker."""
        self._events.append(event)

    def drain(self) -> list[Event]:
        """Hand over the events since the last call."""
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        """Ask the workers to save and end after their current steps."""
        self._stop.set()

    async def stop_requested(self) -> None:
        """Return once the driver has asked the workers to end.

        So that a worker asks once, and sees the answer at a step without another message.
        """
        await self._stop.wait()


class ProgressLine:
    """Shows events as one moving line on a terminal, or as a line now and then elsewhere.

    Args:
        history: `history.jsonl`, appended to.
        quiet_s: seconds between lines where there is no terminal.
    """

    def __init__(self, history: Path, *, quiet_s: float = 10.0) -> None:
        self._history = history
        self._bar: tqdm | None = None
        self._quiet_s = quiet_s
        self._last_line = 0.0
        self._total = 0
        self._validation = ""
        self._unwritten: list[str] = []
        self._refused = False
        self.step = 0

    def show(self, events: list[Event]) -> None:
        """Write events down and show them."""
        if not events:
            return
        self._unwritten += [
            json.dumps(event.to_record()) + "\n"
            for event in events
            if isinstance(event, TrainStep | Validation)
        ]
        self._write_history()
        for event in events:
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case Phase():
                self.say(event.text)
            case Started():
                self._show_started(event)
            case TrainStep():
                self._show_step(event)
            case Evaluating():
                self._show_evaluating(event)
            case Validation():
                self._show_validation(event)
            case Saved():
                pass  # For a search; the validation before it was shown.

    def _write_history(self) -> None:
        """Write what is to be written; where the disk is full, it is kept for the next time."""
        data = "".join(self._unwritten).encode()
        try:
            with self._history.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(data) < len(data):
                    # A full disk takes a part, and says so only at the next write.
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._refused:
                self.say(f"{self._history} cannot be written: {error.strerror}; tried again later")
            self._refused = True
            return
        self._unwritten, self._refused = [], False

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_started(self, event: Started) -> None:
        # Of workers that were started anew.
        self.close()
        self._total, self.step = event.total_steps, event.step
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=self.step,
                unit="step",
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {postfix} [{elapsed}<{remaining}]",
            )

    def _show_step(self, event: TrainStep) -> None:
        advanced, self.step = event.step - self.step, event.step
        loss = "not finite" if event.loss is None else f"{event.loss:.4f}"
        text = f"loss {loss}{self._validation}, {event.windows_per_s:.0f} windows/s"
        if event.skipped_steps:
            text += f", {event.skipped_steps} steps skipped"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(advanced)
            return
        now = time.monotonic()
        if now - self._last_line >= self._quiet_s or self.step == self._total:
            self._last_line = now
            step_s = event.seconds / max(1, event.step)
            left = tqdm.format_interval((self._total - self.step) * step_s)
            self.say(f"step {self.step}/{self._total}: {text}, {left} left")

    def _show_evaluating(self, event: Evaluating) -> None:
        text = f"{event.split}: {min(event.done, event.total)} of {event.total} windows"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        self.say(text)

    def _show_validation(self, event: Validation) -> None:
        mse, mae = event.metrics["mse"], event.metrics["mae"]
        self._validation = f", validation {mse:.4f}"
        self.say(f"step {event.step}/{self._total}: validation mse {mse:.4f}, mae {mae:.4f}")

    def say(self, text: str) -> None:
        """Print a line of its own above the moving one."""
        tqdm.write(text, file=sys.stderr)
