"""Scores an exported model or a baseline over data sets, in Ray tasks."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timellama_dist.console.program import program
from timellama_dist.errors import ConfigError, UserError
from timellama_dist.evaluation.settings import EvaluateConfig

if TYPE_CHECKING:
    from timellama_dist.cluster import Resources
    from timellama_dist.console.progress import Progress
    from timellama_dist.evaluation.exported_model import ExportedModel
    from timellama_dist.evaluation.scores import Scores
    from timellama_dist.evaluation.share import Subject
    from timellama_dist.train.plan import PlannedSet


def evaluate(config: EvaluateConfig, known: "ExportedModel | None") -> dict[str, Any]:
    """Score one model on one or several data sets.

    Args:
        config: what to evaluate.
        known: the model's own words, if it is an exported one.

    Returns:
        What `--output` holds: by the name of the split its figures, by data set and over all of
        them, with settings, seconds and versions.

    Raises:
        ConfigError: the configuration can't be evaluated.
        DataError: the data can't be used.
    """
    from timellama_dist.cluster import connected, plan_resources
    from timellama_dist.console.progress import Progress
    from timellama_dist.data.windows.index import SPLIT_NAMES
    from timellama_dist.evaluation.scores import overall
    from timellama_dist.train.plan import plan_sets
    from timellama_dist.versions import versions

    started = time.monotonic()
    # A ridge is fitted before it is scored.
    sets = plan_sets(config.data, SPLIT_NAMES if config.model == "ridge" else (config.split,))
    numbers = [_check_fit(config, known, one) for one in sets]
    with tempfile.TemporaryDirectory(prefix="timellama-data-") as scratch, connected():
        resources = plan_resources(config.scaling)
        _check_reach(sets)
        found: dict[str, Scores] = {}
        facts: dict[str, dict[str, Any]] = {}
        for number, one in zip(numbers, sets, strict=True):
            path = one.prepared(Path(scratch) / str(len(found))).uri
            subject = _subject(config, known, one, number, path)
            name = str(one.part.name)
            windows = one.num_windows[config.split]
            with closing(Progress(name, windows)) as progress:
                found[name] = score_set(subject, resources, config.scaling.most_workers, progress)
            facts[name] = subject.facts()
    return {
        "model": config.model,
        config.split: overall(list(found.values())),
        "by_dataset": {
            name: {**facts[name], **figures(config.split, scores, facts[name]["channels"])}
            for name, scores in found.items()
        },
        "seconds": time.monotonic() - started,
        "versions": versions(),
    }


def _check_fit(config: EvaluateConfig, known: "ExportedModel | None", one: "PlannedSet") -> int:
    """Number of the model's data set that a set is taken for."""
    if known is None:
        return 0
    number = known.number_of(one.part, config.dataset)
    _, horizon = config.data.lengths(one.part)
    for key, value, most in (
        ("data.context_len", one.context_len, known.data.context_len),
        ("data.horizon", horizon, known.data.horizon),
    ):
        if value > most:
            raise ConfigError(f"{key} must be at most {most}, the model's, got {value}")
    trained = known.card.datasets[number].channels
    if known.per_channel and one.num_channels != len(trained):
        raise ConfigError(
            f"the model has parameters per channel ({known.per_channel}) for {len(trained)} "
            f"channels, {one.part.name} has {one.num_channels}"
        )
    return number


def _check_reach(sets: Sequence["PlannedSet"]) -> None:
    """A table prepared in this node's temporary folder can't be read from others."""
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    for one in sets:
        if one.table is not None and nodes > 1:
            raise ConfigError(
                f"data.path: {one.part.path} is a table, and the cluster has {nodes} nodes: "
                f"prepare it where all of them can read it ({program('prepare')}), and give "
                "that folder"
            )


def _subject(
    config: EvaluateConfig, known: "ExportedModel | None", one: "PlannedSet", number: int, path: str
) -> "Subject":
    from timellama_dist.data.prepared.manifest import Manifest
    from timellama_dist.evaluation.share import Subject

    manifest = Manifest.load(path)
    # The context may have been fitted to the data.
    part = replace(one.part, context_len=one.context_len)
    context_len, horizon = config.data.lengths(part)
    in_full = manifest.split[0] == 0 and manifest.split_by == "time"
    subject = Subject(
        model=config.model,
        dataset=number,
        prompt=None if known is None else known.prompt_of(part, config.data, manifest.frequency),
        path=path,
        split=config.split,
        context_len=context_len,
        horizon=horizon,
        short_series=part.short_series,
        m4=config.protocol == "m4" or (config.protocol == "auto" and in_full),
        batch_size=config.batch_size,
        channels=manifest.channels,
    )
    if config.model != "ridge":
        return subject
    from timellama_dist.evaluation.baseline_job import fit_shortcut

    return replace(subject, map_LH=fit_shortcut(path, config.data, part))


def score_set(
    subject: "Subject", resources: "Resources", num_workers: int, progress: "Progress"
) -> "Scores":
    """Score every window of a data set in Ray tasks, each its share.

    Raises:
        UserError: what a task refuses.
    """
    import ray

    from timellama_dist.evaluation.share import score_share

    share = ray.remote(score_share).options(
        num_returns="streaming",
        num_cpus=resources.cpus_per_worker,
        num_gpus=1 if resources.use_gpu else 0,
        max_retries=0,
    )
    streams: list[Any] = [share.remote(subject, rank, num_workers) for rank in range(num_workers)]
    found: list[Scores] = []
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
        found += [] if scores is None else [scores]
    return reduce(add, found)


def figures(split: str, scores: "Scores", channels: Sequence[str]) -> dict[str, Any]:
    """What the results say of one data set: its figures, also by step and by channel."""
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
