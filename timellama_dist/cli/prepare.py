"""`timellama prepare`: checks tables and writes them as a prepared data set."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from timellama_dist.cli.opening import opening
from timellama_dist.cli.spelling import Spelling
from timellama_dist.config.load import load_settings
from timellama_dist.console.exit_codes import run_command
from timellama_dist.console.progress import PrepareProgress
from timellama_dist.data.prepared.settings import PrepareConfig
from timellama_dist.errors import DataError
from timellama_dist.program import program

if TYPE_CHECKING:
    from timellama_dist.data.prepared.job import Report

EXAMPLES = (
    "--input my_table.csv --output prepared/my_table",
    "--input metrics/ --validate_only",
    "--input s3://lake/raw --output s3://lake/clean --data.gaps reindex --data.missing mask",
)
MORE = """\
Wide tables are `date, a, b, ...`, long ones `unique_id, ds, y, ...`; CSV or Parquet, one file or
many, local or s3:// or gs://, of any size. Every row is checked: a gap, a duplicate or unordered
timestamp, a value that is missing or no number is refused with its file, column and row, unless an
option says what becomes of it; what was filled, put in or dropped is counted and printed. Running
again reads nothing if no file has changed; else all files, but of a long table with
data.series=separate and split by time only those that have changed or were prepared together with
those."""

_OF_DATA = (
    *("layout", "series", "columns", "timestamps", "duplicates", "gaps", "missing", "frequency"),
    *("start", "split", "name", "prompt"),
)
SPELLING = Spelling(
    lists={"--input": str, "--data.columns": str, "--data.split": float},
    former={f"--{key}": f"--data.{key}" for key in _OF_DATA}
    | {
        "--time-zone": "--data.time_zone",
        "--split-by": "--data.split_by",
        "--validate-only": "--validate_only",
        "--rows-per-group": "--rows_per_group",
    },
)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _prepare(read_arguments(argv)))


def read_arguments(argv: Sequence[str]) -> PrepareConfig:
    """What to prepare.

    Raises:
        ConfigError: see `load_settings`.
    """
    sentence = "Turn tables of time series into a prepared data set: Parquet and a manifest."
    return load_settings(
        PrepareConfig,
        SPELLING.to_keys(argv),
        prog=program("prepare"),
        description=opening(sentence, "prepare", EXAMPLES, MORE),
    )


def _prepare(config: PrepareConfig) -> None:
    from timellama_dist.cluster import connected
    from timellama_dist.data.prepared.plan import plan_job

    source = config.input[0] if len(config.input) == 1 else config.input
    started = time.monotonic()
    # Before Ray starts: most mistakes show in the files' headers.
    plan = plan_job(
        source, config.output, table=config.data.table_options, prepare=config.prepare_options
    )
    line = PrepareProgress()
    try:
        with nullcontext() if plan.unchanged else connected():
            # Imports Ray, whose settings `connected` makes.
            from timellama_dist.data.prepared.job import run_job

            report = run_job(plan, line.show)
    finally:
        line.close()
    _print(report, time.monotonic() - started, config.output, unchanged=plan.unchanged)


def _print(report: "Report", seconds: float, output: str | None, *, unchanged: bool) -> None:
    """Print what was found and written.

    Raises:
        DataError: something is to be dealt with first.
    """
    fatal = [finding for finding in report.findings if finding.fatal]
    shape = f"{report.num_rows} rows, {len(report.channels)} channels"
    if not fatal:
        shape = f"{report.num_series} series, {shape}, one step is {report.frequency}"
    print(f"{report.name}: {shape}")
    for kind, findings in (
        ("wrong", fatal),
        ("note", [finding for finding in report.findings if not finding.fatal]),
    ):
        for finding in findings:
            print(f"{kind}: {finding.text()}")
    if report.manifest is None:
        if fatal:
            kinds = f"{_counted(len(fatal), 'kind')} of fault"
            raise DataError(f"{kinds}, listed above, to be dealt with first; nothing was written")
        print("nothing is wrong" if not report.findings else "nothing forbids to prepare it")
    elif unchanged:
        print(f"nothing has changed: {output} holds this data set")
    else:
        files = report.manifest.files
        size = sum(file.num_bytes for file in files) / 2**20
        print(
            f"prepared in {output}: {_counted(len(files), 'file')}, {size:.1f} MiB, from "
            f"{report.files_read} "
            f"of {_counted(len(report.manifest.inputs), 'input file')} in {seconds:.0f} s"
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
