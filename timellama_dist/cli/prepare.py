"""Prepares a table from the command line; `python ray_jobs/prepare.py --help`."""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, get_args

from timellama_dist.console.exit_codes import run_command
from timellama_dist.console.progress import PrepareProgress
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.errors import DataError

if TYPE_CHECKING:
    from timellama_dist.data.prepared.job import Report

DESCRIPTION = """Turn tables of time series into a prepared data set: Parquet and a manifest.

Wide tables are `date, a, b, ...`, long ones `unique_id, ds, y, ...`; CSV or Parquet, one file or
many, local or s3:// or gs://, of any size. Every row is checked: a gap, a duplicate or unordered
timestamp, a value that is missing or no number is refused with its file, column and row, unless an
option says what becomes of it; what was filled, put in or dropped is counted and printed. Running
again reads nothing if no file has changed; else all files, but of a long table with series=separate
and split by time only those that have changed or were prepared together with those.

  python ray_jobs/prepare.py --input metrics/ --validate-only
  python ray_jobs/prepare.py --input s3://bucket/metrics --output s3://bucket/prepared \\
      --gaps reindex --missing mask"""

_HELP = {
    "layout": "wide: date, a, b...; long: unique_id, ds, y...; rows: a series a row, without times "
    "(M4); auto tells them apart",
    "series": "long tables: each unique_id a series of its own, or a channel of one series",
    "timestamps": "ignore takes duplicates and gaps as they stand",
    "duplicates": "rows of one series with the same time: refuse, or keep the first or last",
    "gaps": "missing time steps: refuse, or put in rows without values",
    "missing": "empty values: refuse; fill with the last before; interpolate in time; or leave out "
    "of loss and metrics",
    "time_zone": "of local times without an offset, such as Europe/Paris; they become UTC",
    "frequency": "pandas alias of the step, such as h or 15min; default learned from the times",
    "start": "rows layout: time of every first value (default 2000-01-01)",
}


def main(argv: Sequence[str]) -> int:
    """The command `ray_jobs/prepare.py`; returns its exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _prepare(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH_OR_URI",
        help="files, or one folder of files",
    )
    target.add_argument("--output", metavar="DIR_OR_URI", help="the folder to make")
    target.add_argument(
        "--validate-only", action="store_true", help="print all that is wrong, and write nothing"
    )
    parser.add_argument("--name", help="what the data set is called; default the input's name")
    parser.add_argument("--prompt", metavar="TEXT", help="what the data are, in words")
    parser.add_argument(
        "--split",
        nargs=3,
        type=float,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="three shares (default 0.7 0.1 0.2) or three row counts; 0 V T trains on all but the "
        "last V + T rows of each series",
    )
    parser.add_argument(
        "--split-by",
        choices=("time", "series"),
        default="time",
        help="each series in parts, or each wholly in one part",
    )
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="value columns; default all")
    for field in fields(TableOptions):
        if field.name in _HELP:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                choices=[one for one in get_args(field.type) if isinstance(one, str)] or None,
                default=field.default,
                help=_HELP[field.name],
            )
    parser.add_argument(
        "--rows-per-group",
        type=int,
        metavar="N",
        help="rows of a Parquet row group, the least that is read at once; default about 1 MiB",
    )
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from timellama_dist.cluster import connected
    from timellama_dist.data.prepared.options import DEFAULT_SPLIT, PrepareOptions
    from timellama_dist.data.prepared.plan import plan_job

    given = {key: getattr(arguments, key) for key in _HELP}
    table = TableOptions(
        columns=None if arguments.columns is None else tuple(arguments.columns), **given
    )
    prepare = PrepareOptions(
        split=DEFAULT_SPLIT if arguments.split is None else tuple(arguments.split),
        split_by=arguments.split_by,
        name=arguments.name,
        prompt=arguments.prompt,
        rows_per_group=arguments.rows_per_group,
    )
    source = arguments.input[0] if len(arguments.input) == 1 else arguments.input
    started = time.monotonic()
    # Before Ray starts: most mistakes show in the files' headers.
    plan = plan_job(source, arguments.output, table=table, prepare=prepare)
    line = PrepareProgress()
    try:
        with nullcontext() if plan.unchanged else connected():
            # Imports Ray, whose settings `connected` makes.
            from timellama_dist.data.prepared.job import run_job

            report = run_job(plan, line.show)
    finally:
        line.close()
    _print(report, time.monotonic() - started, arguments.output, unchanged=plan.unchanged)


def _print(report: "Report", seconds: float, output: str | None, *, unchanged: bool) -> None:
    fatal = [one for one in report.findings if one.fatal]
    shape = f"{report.num_rows} rows, {len(report.channels)} channels"
    if not fatal:
        shape = f"{report.num_series} series, {shape}, one step is {report.frequency}"
    print(f"{report.name}: {shape}")
    for kind, findings in (
        ("wrong", fatal),
        ("note", [one for one in report.findings if not one.fatal]),
    ):
        for one in findings:
            print(f"{kind}: {one.text()}")
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
