"""What a command raises becomes its exit code: 0 done, 1 failed, 2 user's mistake, 130 stopped."""

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timellama_dist.errors import InterruptedRunError, UserError

# What Ray says at the end of a long traceback, and what to do about it.
_REMEDIES = {
    "ObjectStoreFullError": (
        "a node's object store is full: give it more (ray start --object-store-memory BYTES), or "
        "let fewer runs share the node"
    ),
    "OutOfDiskError": (
        "a node's disk is full, where Ray spills what its object store cannot hold: free some, or "
        "start Ray there with --temp-dir on a larger disk"
    ),
}


def run_command(command: Callable[[], None]) -> int:
    """Run a command; tell the user's mistakes in one line, everything else with its traceback."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception:
        text = traceback.format_exc()
        print(text, end="", file=sys.stderr)
        for name, remedy in _REMEDIES.items():
            if name in text:
                print(remedy, file=sys.stderr)
        return 1
    return 0


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGINT or SIGTERM, leave by KeyboardInterrupt at the second.

    Does nothing outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
