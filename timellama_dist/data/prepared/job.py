"""Prepares tables of any size, as a Ray Data job: read and type, sort by series, arrange, write.

Tasks take the steps that `write.py` takes in memory. A block that leaves the sort holds whole
series, so a task needs the memory of its longest series, or of a few blocks. Nothing but a row a
series, and counts, comes back to the driver.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import DataContext, Dataset

from timellama_dist.cluster import on_this_node, user_error
from timellama_dist.data.prepared.changes import Kept
from timellama_dist.data.prepared.draft import Draft
from timellama_dist.data.prepared.files import write_rows
from timellama_dist.data.prepared.folder import remove_strays
from timellama_dist.data.prepared.manifest import DataFile, Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.plan import JobPlan
from timellama_dist.data.prepared.series_table import (
    SERIES_SCHEMA,
    describe_series,
    drop_untrained,
    no_training,
)
from timellama_dist.data.tables.columns import ID_COLUMN, ROW_COLUMN, typed_schema
from timellama_dist.data.tables.files import Piece, read_piece
from timellama_dist.data.tables.findings import Finding, Findings
from timellama_dist.data.tables.frequency import same_step
from timellama_dist.data.tables.origin import file_of
from timellama_dist.data.tables.table import TableParser, no_step
from timellama_dist.storage import Place

_BLOCK_BYTES = (16 << 20, 512 << 20)
# All-to-all: blocks squared is the number of parts that travel.
_MOST_BLOCKS = 1000

Progress = Callable[["Counts"], None]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How far a job is."""

    bytes_total: int
    bytes_read: int = 0
    rows_read: int = 0
    rows_arranged: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a job found and made."""

    name: str
    channels: tuple[str, ...]
    frequency: str | None
    num_series: int
    num_rows: int
    """Rows of the prepared series; of the files, if nothing was to be written."""
    findings: tuple[Finding, ...]
    manifest: Manifest | None = None
    """None if nothing was to be written."""
    files_read: int = 0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every task needs."""

    parser: TableParser
    prepare: PrepareOptions
    pieces: tuple[Piece, ...]
    output: Place | None
    """None to check and write nothing."""
    kept: Kept
    ledger: Any


def run_job(plan: JobPlan, progress: Progress = lambda counts: None) -> Report:
    """Run a planned job; Ray must be connected unless the plan says that nothing changed.

    Args:
        plan: what to do.
        progress: called now and then with how far the job is.

    Raises:
        ConfigError: a split that leaves no series a training row, or no series to train on.
        DataError: anything wrong with the table.
    """
    if plan.unchanged and plan.existing is not None:
        return _report(plan.existing, 0)
    ledger = _Ledger.options(  # type: ignore[attr-defined]
        num_cpus=0, **on_this_node()
    ).remote()
    job = _Job(
        parser=plan.parser,
        prepare=plan.prepare,
        pieces=plan.pieces,
        output=plan.output,
        kept=plan.kept,
        ledger=ledger,
    )
    try:
        series = _run(job, progress) if job.pieces else SERIES_SCHEMA.empty_table()
        return _finish(job, plan.draft, series, plan.files_read)
    except BaseException:
        if plan.output is not None:
            remove_strays(plan.output, plan.existing)
        raise
    finally:
        ray.kill(ledger)


def _report(manifest: Manifest, files_read: int, findings: Sequence[Finding] = ()) -> Report:
    return Report(
        name=manifest.name,
        channels=manifest.channels,
        frequency=manifest.frequency,
        num_series=manifest.num_series,
        num_rows=manifest.num_rows,
        findings=tuple(findings),
        manifest=manifest,
        files_read=files_read,
    )


def _run(job: _Job, progress: Progress) -> pa.Table:
    """Run the pipeline; returns a row a series (see `describe_series`), by id.

    The pipeline runs in a thread, so that the first fatal finding ends the job at once.
    """
    outcome: dict[str, Any] = {}

    def consume() -> None:
        try:
            batches = _pipeline(job).iter_batches(batch_size=None, batch_format="pyarrow")
            outcome["series"] = [batch for batch in batches if len(batch)]
        # Whatever it is, it is the main thread's to raise.
        except BaseException as error:
            outcome["error"] = error

    thread = Thread(target=consume, name="prepare-job", daemon=True)
    thread.start()
    counts = Counts(bytes_total=sum(piece.num_bytes for piece in job.pieces))
    while thread.is_alive():
        thread.join(timeout=0.5)
        state = ray.get(job.ledger.state.remote())
        if thread.is_alive() and job.output is not None:
            Findings(state["findings"]).refuse(complete=False)
        progress(replace(counts, **state["counts"]))
    if error := outcome.get("error"):
        raise user_error(error) or error
    series = outcome["series"]
    if not series:
        return SERIES_SCHEMA.empty_table()
    table = pa.concat_tables(series).sort_by(ID_COLUMN)
    assert len(pc.unique(table[ID_COLUMN])) == len(table), "a series came out of two blocks"
    return table


def _pipeline(job: _Job) -> Dataset:
    total = sum(piece.num_bytes for piece in job.pieces)
    least, most = _BLOCK_BYTES
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = max(least, min(most, total // _MOST_BLOCKS))

    def read(batch: Any) -> Iterator[Any]:
        for number in batch["item"]:
            yield from _read(job, int(number))

    def write(typed: pa.Table) -> pa.Table:
        return _write(job, typed)

    whole = job.parser.columns.layout == "wide" or job.parser.options.series == "channels"
    with DataContext.current(context):
        numbers = list(range(len(job.pieces)))
        source = ray.data.from_items(numbers, override_num_blocks=max(1, len(numbers)))
        typed = source.map_batches(read, batch_size=1).materialize()
        # From here on, blocks must not be cut: one that leaves the sort holds whole series.
        typed.context.target_max_block_size = None
        grouped = typed.repartition(1) if whole else typed.sort(ID_COLUMN)
        return grouped.map_batches(write, batch_size=None, batch_format="pyarrow")


def _read(job: _Job, number: int) -> Iterator[pa.Table]:
    piece = job.pieces[number]
    yield typed_schema(job.parser.columns).empty_table()
    bytes_left = piece.num_bytes
    for first_row, raw in read_piece(piece, job.parser.columns):
        typed, findings = job.parser.parse(raw, piece.file, first_row)
        # A row group at a time, or a block of a CSV file.
        groups = len(piece.row_groups)
        share = piece.num_bytes // groups if groups else min(piece.num_bytes, raw.nbytes)
        key = ("read", number, first_row)
        _enter(job, key, findings, rows_read=len(raw), bytes_read=share)
        bytes_left -= share
        yield job.kept.without(typed)
    # How much text the rows of a CSV file were was a guess.
    _enter(job, ("end", number), Findings(), bytes_read=bytes_left)


def _write(job: _Job, typed: pa.Table) -> pa.Table:
    if not len(typed):
        return SERIES_SCHEMA.empty_table()
    table, findings = job.parser.arrange(typed)
    key = ("arrange", str(typed[ID_COLUMN][0]), len(typed))
    parts: list[pa.Table] = []
    files: list[DataFile] = []
    if table is not None:
        inputs = tuple(np.unique(file_of(typed[ROW_COLUMN].to_numpy())).tolist())
        table = drop_untrained(table, job.prepare.split_rule, findings)
        for part in job.kept.apart(table):
            series = describe_series(part, job.prepare.split_rule)
            parts.append(series)
            if job.output is not None:
                files += write_rows(part, series, job.output, job.prepare, inputs)
    _enter(
        job,
        key,
        findings,
        files=files,
        frequency=None if table is None else table.frequency,
        first_id="" if table is None or not table.unique_ids else table.unique_ids[0],
        channels=() if table is None else table.channels,
        rows_arranged=len(typed),
    )
    return pa.concat_tables(parts) if parts else SERIES_SCHEMA.empty_table()


def _enter(job: _Job, key: Any, findings: Findings, **facts: Any) -> None:
    """Write into the ledger."""
    # And wait: what is still on its way when the task's block has come would be missed.
    ray.get(job.ledger.add.remote(key, list(findings), **facts))


def _finish(job: _Job, draft: Draft, series: pa.Table, files_read: int) -> Report:
    """Check what only the whole table shows, and publish."""
    state = ray.get(job.ledger.state.remote())
    findings = Findings(state["findings"])
    frequency = _common_frequency(state["frequencies"], job, findings)
    files, series = job.kept.merged(state["files"], series)
    rule = job.prepare.split_rule
    if job.output is None:
        if findings.fatal:
            pass
        elif error := no_training(len(series), rule, findings):
            findings.add("untrained", str(error), count=1, row=0)
        elif frequency is None:
            findings.add("frequency", str(no_step(job.parser.origin)), count=1, row=0)
        return Report(
            name=draft.name,
            channels=state["channels"] or draft.channels,
            frequency=frequency,
            num_series=len(series),
            num_rows=state["counts"]["rows_read"],
            findings=tuple(findings),
            files_read=files_read,
        )
    findings.refuse()
    if error := no_training(len(series), rule, findings):
        raise error
    if frequency is None:
        raise no_step(job.parser.origin)
    draft = replace(
        draft,
        frequency=frequency,
        channels=state["channels"] or draft.channels,
        notes=(*job.kept.notes, *(note.text() for note in findings.notes)),
    )
    manifest = draft.publish(job.output, files, series)
    return _report(manifest, files_read, tuple(findings))


def _common_frequency(
    frequencies: Mapping[str, tuple[str, int]], job: _Job, findings: Findings
) -> str | None:
    """Take the step of most blocks; blocks of another one are a fatal finding."""
    if job.kept.frequency is not None:
        unchanged = ("the series that did not change", 1 << 30)
        frequencies = {**frequencies, job.kept.frequency: unchanged}
    if not frequencies:
        return None
    most = max(frequencies, key=lambda alias: frequencies[alias][1])
    for alias, (first_id, count) in frequencies.items():
        if not same_step(alias, most):
            findings.add(
                "frequency",
                f"{job.parser.origin.place}: series of different steps: {alias!r} in {first_id!r}, "
                f"{most!r} in {frequencies[most][0]!r}; prepare them apart",
                count=count,
                row=0,
            )
    return most


@ray.remote
class _Ledger:
    """The findings and files of a job's tasks; a task that is run again counts once."""

    def __init__(self) -> None:
        self._entries: dict[Any, dict[str, Any]] = {}

    def add(self, key: Any, findings: list[Finding], **facts: Any) -> None:
        self._entries[key] = {"findings": findings, **facts}

    def state(self) -> dict[str, Any]:
        entries = self._entries.values()
        findings = Findings()
        frequencies: dict[str, tuple[str, int]] = {}
        files: dict[str, DataFile] = {}
        channels: tuple[str, ...] = ()
        for entry in entries:
            findings.extend(entry["findings"])
            files |= {file.path: file for file in entry.get("files", ())}
            channels = entry.get("channels") or channels
            if alias := entry.get("frequency"):
                first_id, count = frequencies.get(alias, (entry["first_id"], 0))
                frequencies[alias] = (first_id, count + 1)
        return {
            "counts": {
                name: sum(entry.get(name, 0) for entry in entries)
                for name in ("bytes_read", "rows_read", "rows_arranged")
            },
            "findings": list(findings),
            "frequencies": frequencies,
            "files": list(files.values()),
            "channels": channels,
        }
