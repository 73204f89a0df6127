"""`timellama report`: compares finished runs in a table, and in a page with their losses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from timellama_dist.cli.opening import opening
from timellama_dist.cli.spelling import Spelling
from timellama_dist.config.load import load_settings
from timellama_dist.console.exit_codes import run_command
from timellama_dist.errors import ConfigError
from timellama_dist.program import program

EXAMPLES = (
    "RUN OTHER_RUN",
    "runs/* --output comparison.html",
    "--runs [runs/first,runs/second] --output comparison.html",
)
SPELLING = Spelling(lists={"--runs": str}, positional="--runs")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A comparison."""

    runs: list[str] = field(default_factory=list)
    """Directories of finished runs."""
    output: str | None = None
    """HTML file to write."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs must be given: directories of finished runs")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _report(argv))


def _report(argv: Sequence[str]) -> None:
    config = load_settings(
        ReportConfig,
        SPELLING.to_keys(argv),
        prog=program("report"),
        description=opening("Compare finished runs.", "report", EXAMPLES),
    )
    # matplotlib takes a second, for which `--help` shall not wait.
    from timellama_dist.report.page import RunFiles, comparison_rows, write_comparison

    runs = [RunFiles.read(Path(run)) for run in config.runs]
    print(_table(comparison_rows(runs)))
    if config.output is not None:
        write_comparison(runs, Path(config.output))
        print(f"written: {config.output}")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return "\n".join(lines)
