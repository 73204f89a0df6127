"""Forecasts all series of a table with an exported model: in Ray Data tasks.

The output folder holds `part-00000.parquet`... in long form, and `_forecast.json`, which says what
was forecast with which model. A part appears when it is whole, so a job that was killed goes on
with those that are not there. A raw table is prepared first, in `_data` of the output folder.
"""

import hashlib
import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from timellama_dist.cluster import Resources, connected, plan_resources
from timellama_dist.console.progress import PrepareProgress, Progress
from timellama_dist.data.prepared.history import SeriesReader
from timellama_dist.data.prepared.job import run_job
from timellama_dist.data.prepared.manifest import MANIFEST_NAME, Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.plan import JobPlan, plan_job
from timellama_dist.data.windows.cutoffs import CutoffIndex
from timellama_dist.errors import ConfigError, DataError, InterruptedRunError
from timellama_dist.evaluation.exported_model import ExportedModel
from timellama_dist.forecast.part import PartTask, forecast_parts, part_file
from timellama_dist.forecast.settings import ForecastConfig
from timellama_dist.forecast.tables import check_table, table_options
from timellama_dist.model.card import DatasetCard
from timellama_dist.storage import Place, open_place

STATE = "_forecast.json"
_PREPARED = "_data"
_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished job."""

    forecasts: int
    """Over all parts."""
    parts: int
    made: int
    """Forecasts that this command made."""
    skipped: int
    """Series that are too short."""
    steps: int
    channels: int
    seconds: float
    """Of forecasting, without preparing."""


def forecast(config: ForecastConfig) -> Summary:
    """Forecast, from the checks to the last part.

    Raises:
        CheckpointError: no exported model is there.
        ConfigError: the configuration doesn't fit the model or the output.
        DataError: the data can't be used.
        InterruptedRunError: the user pressed Ctrl-C.
    """
    model = ExportedModel.open(config.model)
    card = model.card.named(config.dataset)
    steps = card.horizon if config.horizon is None else config.horizon
    if not 1 <= steps <= card.horizon:
        raise ConfigError(f"horizon must be between 1 and {card.horizon}, got {steps}")
    source, output = open_place(config.input), open_place(config.output)
    plan, content = _open_input(source, output, card)
    job = {
        "schema_version": _SCHEMA_VERSION,
        "model": model.fingerprint,
        "dataset": card.name,
        "input": str(source),
        "content": content,
        "horizon": steps,
        "cutoffs": config.cutoffs,
        "stride": config.stride or steps,
        "part_windows": config.part_windows,
    }
    _begin(output, job)
    try:
        with connected():
            resources = plan_resources(config.scaling)
            data = source if plan is None else _prepare(plan)
            index = _index(data, card, model, job)
            wide = _is_wide(data, plan)
            return _run(config, job, data, wide, card, index, resources, output)
    except KeyboardInterrupt:
        raise InterruptedRunError("stopped; the same command goes on") from None


def _open_input(source: Place, output: Place, card: DatasetCard) -> tuple[JobPlan | None, str]:
    """How a raw table is to be prepared, None if it is; and what changes when the input does."""
    if (source / MANIFEST_NAME).is_file():
        manifest = Manifest.load(source)
        check_table(card, manifest.channels, manifest.frequency, str(source))
        return None, manifest.content_hash
    if not source.exists():
        raise DataError(f"input: {source}: no such file or folder")
    plan = plan_job(
        source,
        output / _PREPARED,
        table=table_options(card),
        # Nothing is held back: every row may be seen.
        prepare=PrepareOptions(split=(1.0, 0.0, 0.0)),
    )
    inputs = json.dumps([asdict(file) for file in plan.draft.inputs])
    return plan, hashlib.sha256(inputs.encode()).hexdigest()


def _begin(output: Place, job: dict[str, Any]) -> None:
    """Make the output folder, or see that it is this job's.

    Raises:
        ConfigError: it holds something else.
    """
    if output.exists():
        children = [child.name for child in output.children()] if output.is_dir() else [""]
        if STATE in children:
            begun = json.loads((output / STATE).read_text())
            if differ := [key for key in job if begun.get(key) != job[key]]:
                key = differ[0]
                raise ConfigError(
                    f"output: {output} holds forecasts of another {key}: {begun.get(key)!r}, now "
                    f"{job[key]!r}; choose another folder"
                )
            return
        if children:
            raise ConfigError(f"output: {output} is not empty and holds no forecasts of this job")
    (output / STATE).write_text(json.dumps(job, indent=2))


def _prepare(plan: JobPlan) -> Place:
    assert plan.output is not None
    with closing(PrepareProgress()) as line:
        report = run_job(plan, line.show)
    assert report.manifest is not None
    for note in report.manifest.notes:
        print(f"note: {note}", flush=True)
    return plan.output


def _index(
    data: Place, card: DatasetCard, model: ExportedModel, job: dict[str, Any]
) -> CutoffIndex:
    """All forecasts that the data have rows for.

    Raises:
        DataError: of other channels or steps than the model's, or all series are too short.
    """
    reader = SeriesReader(data)
    check_table(card, reader.manifest.channels, reader.manifest.frequency, job["input"])
    part = model.data.parts[[dataset.name for dataset in model.card.datasets].index(card.name)]
    least = 1 if part.short_series == "pad" else card.context_len
    index = CutoffIndex.build(
        reader.num_rows,
        least_rows=least,
        cutoffs=job["cutoffs"],
        stride=job["stride"],
        horizon=job["horizon"],
    )
    need = least + (job["horizon"] if job["cutoffs"] else 0)
    if not len(index):
        raise DataError(
            f"{job['input']}: every series is shorter than the {need} rows that are needed; the "
            f"longest has {reader.num_rows.max()}"
        )
    if index.num_skipped:
        total = len(reader.num_rows)
        print(
            f"note: {index.num_skipped} of {total} series are skipped: they have fewer than {need} "
            "rows"
        )
    return index


def _is_wide(data: Place, plan: JobPlan | None) -> bool:
    """Are they one series that has its table's name, as it has none of its own?"""
    if plan is not None:
        return plan.parser.columns.layout == "wide" or plan.parser.options.series == "channels"
    reader = SeriesReader(data)
    return list(reader.unique_ids) == [reader.manifest.name]


def _run(
    config: ForecastConfig,
    job: dict[str, Any],
    data: Place,
    wide: bool,
    card: DatasetCard,
    index: CutoffIndex,
    resources: Resources,
    output: Place,
) -> Summary:
    size, total = config.part_windows, len(index)
    num_parts = -(-total // size)
    written = {child.name for child in output.children()}
    pending = [part for part in range(num_parts) if part_file(part) not in written]
    left = sum(min(size, total - part * size) for part in pending)
    if len(pending) < num_parts:
        print(f"{num_parts - len(pending)} of {num_parts} parts are there already", flush=True)
    task = PartTask(
        model=config.model,
        fingerprint=job["model"],
        dataset=card.name,
        data=data.uri,
        wide=wide,
        output=output.uri,
        index=index,
        part_windows=size,
        horizon=job["horizon"],
        truth=config.cutoffs > 0,
        batch_size=config.batch_size,
        unpack=config.unpack,
    )
    started = time.monotonic()
    with closing(Progress("forecast", total, unit="forecast", done=total - left)) as progress:
        for count in forecast_parts(task, pending, resources, config.scaling.most_workers):
            progress.add(count)
    (output / _PREPARED).delete()
    return Summary(
        forecasts=total,
        parts=num_parts,
        made=left,
        skipped=index.num_skipped,
        steps=job["horizon"],
        channels=len(card.channels),
        seconds=time.monotonic() - started,
    )
