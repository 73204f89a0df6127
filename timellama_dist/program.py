"""The program that the user ran: usage lines and hints name commands as that user types them."""

import shlex
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent


def program(command: str) -> str:
    """The words that run another command as this process was run.

    A script of ray_jobs/ names its neighbour where there is one, `python -m timellama_dist` itself.
    Everything else, a Ray program of the user's own among it, names the console command.

    Args:
        command: one of `timellama`'s commands, such as `train`.

    Returns:
        `timellama train`, `python ray_jobs/train.py` or `python -m timellama_dist train`.
    """
    script = Path(sys.argv[0])
    if script.resolve().is_relative_to(_PACKAGE):
        return f"python -m timellama_dist {command}"
    if script.suffix != ".py" or script.absolute().parent.name != "ray_jobs":
        return f"timellama {command}"
    neighbour = script.with_name(f"{command}.py")
    if not neighbour.is_file():
        return f"python -m timellama_dist {command}"
    if neighbour.is_relative_to(Path.cwd()):
        neighbour = neighbour.relative_to(Path.cwd())
    return shlex.join(["python", str(neighbour)])


def command_line(command: str, *words: object) -> str:
    """A whole line to copy into a shell: the command with its options."""
    return " ".join([program(command), *(shlex.quote(str(word)) for word in words)])
