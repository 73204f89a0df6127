"""Scores an exported model or a baseline over data sets, in Ray tasks."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import ray

from timellama_dist.cluster import Resources, connected, plan_resources
from timellama_dist.config.schema import DataSection
from timellama_dist.console.progress import Progress
from timellama_dist.data.check import check_datasets
from timellama_dist.data.dataset import Dataset
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.windows.spec import SPLIT_NAMES
from timellama_dist.errors import ConfigError, UserError
from timellama_dist.evaluation.baseline_job import fit_shortcut
from timellama_dist.evaluation.exported_model import ExportedModel
from timellama_dist.evaluation.scores import Scores, overall
from timellama_dist.evaluation.settings import EvaluateConfig
from timellama_dist.evaluation.share import Subject, score_share
from timellama_dist.program import program
from timellama_dist.versions import versions


def evaluate(config: EvaluateConfig, model: ExportedModel | None) -> dict[str, Any]:
    """Score one model on one or several data sets.

    Args:
        config: what to evaluate.
        model: the model, if it is an exported one.

    Returns:
        What `--output` holds: by the name of the split its figures, by data set and over all of
        them, with settings, seconds and versions.

    Raises:
        ConfigError: the configuration can't be evaluated.
        DataError: the data can't be used.
    """
    started = time.monotonic()
    # A ridge is fitted before it is scored.
    splits = SPLIT_NAMES if config.model == "ridge" else (config.split,)
    datasets = check_datasets(config.data, splits)
    numbers = [_check_fit(config, model, dataset) for dataset in datasets]
    with tempfile.TemporaryDirectory(prefix="timellama-data-") as scratch, connected():
        resources = plan_resources(config.scaling)
        _check_reach(config.data, datasets)
        scores: dict[str, Scores] = {}
        facts: dict[str, dict[str, Any]] = {}
        for number, checked in zip(numbers, datasets, strict=True):
            dataset = checked.prepare(Path(scratch) / str(len(scores)))
            subject = _subject(config, model, dataset, number)
            name = dataset.name
            with closing(Progress(name, dataset.num_windows[config.split])) as progress:
                scores[name] = score_set(subject, resources, config.scaling.most_workers, progress)
            facts[name] = subject.facts()
    return {
        "model": config.model,
        config.split: overall(list(scores.values())),
        "by_dataset": {
            name: {**facts[name], **figures(config.split, sums, facts[name]["channels"])}
            for name, sums in scores.items()
        },
        "seconds": time.monotonic() - started,
        "versions": versions(),
    }


def _check_fit(config: EvaluateConfig, model: ExportedModel | None, dataset: Dataset) -> int:
    """Number the model's data set that this one is taken for."""
    if model is None:
        return 0
    number = model.number_of(dataset.part, config.dataset)
    for key, value, most in (
        ("data.context_len", dataset.spec.context_len, model.data.context_len),
        ("data.horizon", dataset.spec.horizon, model.data.horizon),
    ):
        if value > most:
            raise ConfigError(key=key, must=f"be at most {most}, the model's", got=value)
    trained = model.card.datasets[number].channels
    if model.per_channel and dataset.num_channels != len(trained):
        raise ConfigError(
            f"the model has parameters per channel ({model.per_channel}) for {len(trained)} "
            f"channels, {dataset.name} has {dataset.num_channels}"
        )
    return number


def _check_reach(data: DataSection, datasets: Sequence[Dataset]) -> None:
    """Refuse a table on a cluster: other nodes don't see this node's temporary folder."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    for number, dataset in enumerate(datasets):
        if dataset.preparation is not None and nodes > 1:
            raise ConfigError(
                f"{data.part_key(number)}.path: {dataset.path} is a table, and the cluster "
                f"has {nodes} nodes: prepare it where all of them can read it "
                f"({program('prepare')}), and give that folder"
            )


def _subject(
    config: EvaluateConfig, model: ExportedModel | None, dataset: Dataset, number: int
) -> Subject:
    """Say what is scored on a prepared data set."""
    manifest = Manifest.load(dataset.path)
    in_full = manifest.split[0] == 0 and manifest.split_by == "time"
    # The context may have been fitted to the data.
    part = replace(dataset.part, context_len=dataset.spec.context_len)
    subject = Subject(
        model=config.model,
        dataset=number,
        prompt=None if model is None else model.prompt_of(part, config.data, dataset.frequency),
        path=dataset.path,
        spec=replace(dataset.spec.of(config.split), train_fraction=1.0),
        m4=config.protocol == "m4" or (config.protocol == "auto" and in_full),
        batch_size=config.batch_size,
        channels=manifest.channels,
    )
    if config.model != "ridge":
        return subject

    return replace(subject, map_LH=fit_shortcut(dataset.path, dataset.spec))


def score_set(
    subject: Subject, resources: Resources, num_workers: int, progress: Progress
) -> Scores:
    """Score every window of a data set in Ray tasks, each its share.

    Raises:
        UserError: what a task refuses.
    """

    share = ray.remote(score_share).options(
        num_returns="streaming",
        num_cpus=resources.cpus_per_worker,
        num_gpus=1 if resources.use_gpu else 0,
        max_retries=0,
    )
    streams: list[Any] = [share.remote(subject, rank, num_workers) for rank in range(num_workers)]
    shares: list[Scores] = []
    while streams:
        ready: Any = ray.wait(streams)[0][0]
        try:
            windows, scores = ray.get(next(ready))
        except StopIteration:
            streams.remove(ready)
            continue
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        progress.add(windows)
        shares += [] if scores is None else [scores]
    return reduce(add, shares)


def figures(split: str, scores: Scores, channels: Sequence[str]) -> dict[str, Any]:
    """Collect the figures of one data set, also by step and by channel."""
    by_channel = scores.by_channel()
    return {
        "windows": scores.errors.windows,
        split: scores.summary(),
        "naive2": scores.naive2_summary(),
        "by_step": scores.by_step(),
        "by_channel": {
            channel: {key: values[number] for key, values in by_channel.items()}
            for number, channel in enumerate(channels)
        },
    }
