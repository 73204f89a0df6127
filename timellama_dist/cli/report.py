"""Compares finished runs: a table, and a page with their losses and routers.

python -m timellama_dist.report RUN [RUN ...] --output comparison.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timellama_dist.errors import UserError
from timellama_dist.report.page import RunFiles, comparison_rows, write_comparison


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m timellama_dist.report", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("--output", type=Path, help="HTML file to write")
    arguments = parser.parse_args(argv)
    try:
        runs = [RunFiles.read(run) for run in arguments.runs]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = comparison_rows(runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *padded]))
    if arguments.output is not None:
        write_comparison(runs, arguments.output)
        print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
