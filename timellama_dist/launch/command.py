"""What a command raises becomes its exit code: 0 done, 1 failed, 2 user's mistake, 130 Ctrl-C."""

import sys
import traceback
from collections.abc import Callable

from timellama_dist.errors import InterruptedRunError, UserError


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
        print("stopped before a checkpoint was saved", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0
