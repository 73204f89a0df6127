"""Prepares a table from the command line; `python ray_jobs/prepare.py --help`."""

import argparse
from collections.abc import Sequence

from timellama_dist.launch.command import run_command

DESCRIPTION = """Turn a table of time series into a prepared data set: Parquet and a manifest.

Wide tables are `date, a, b, ...`, long ones `unique_id, ds, y, ...`; CSV or Parquet. The table is
checked first: a gap, a duplicate or unordered timestamp, a value that is missing or no number is
refused with its file, column and row. Running again with the same table changes nothing."""


def main(argv: Sequence[str]) -> int:
    """The command `ray_jobs/prepare.py`; returns its exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _prepare(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, or one folder of files"
    )
    target.add_argument("--output", metavar="DIR", help="the folder to make")
    target.add_argument("--validate-only", action="store_true", help="check, and write nothing")
    parser.add_argument("--name", help="what the data set is called; default the input's name")
    parser.add_argument("--prompt", metavar="TEXT", help="what the data are, in words")
    parser.add_argument(
        "--split",
        nargs=3,
        type=float,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="three shares (default 0.7 0.1 0.2) or three row counts",
    )
    parser.add_argument(
        "--series",
        choices=("separate", "channels"),
        default="separate",
        help="long tables: each unique_id a series of its own, or a channel of one series",
    )
    parser.add_argument(
        "--timestamps",
        choices=("check", "ignore"),
        default="check",
        help="ignore takes duplicates and gaps as they stand",
    )
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="value columns; default all")
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from timellama_dist.data.prepare import DEFAULT_SPLIT, write_prepared
    from timellama_dist.data.table import read_table

    source = arguments.input[0] if len(arguments.input) == 1 else arguments.input
    table = read_table(
        source,
        series=arguments.series,
        timestamps=arguments.timestamps,
        columns=arguments.columns,
        name=arguments.name,
    )
    rows = sum(len(series.values) for series in table.series)
    print(
        f"{table.name}: {len(table.series)} series, {rows} rows, {table.num_channels} channels, "
        f"one step is {table.frequency}"
    )
    for series in table.series:
        constant = series.values.max(axis=0) == series.values.min(axis=0)
        for channel in [c for c, same in zip(table.channels, constant, strict=True) if same]:
            print(f"note: channel {channel!r} of series {series.unique_id!r} never changes")
    if not arguments.validate_only:
        manifest = write_prepared(
            table,
            arguments.output,
            split=arguments.split or DEFAULT_SPLIT,
            prompt=arguments.prompt,
        )
        print(f"prepared in {arguments.output}: {len(manifest.files)} files")
