"""Checks the data sets of a configuration: opens them, fits contexts, counts windows.

Writes nothing and needs no Ray: whatever is wrong is told before an actor starts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from timellama_dist.config.schema import DataSection, MixturePart
from timellama_dist.data.dataset import Dataset
from timellama_dist.data.opening import OpenedData, open_data, table_options
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.write import Preparation
from timellama_dist.data.tables.series import Table
from timellama_dist.data.windows.index import WindowCounts, WindowIndex, fitted_context_len
from timellama_dist.data.windows.spec import SPLIT_NAMES, SplitName, WindowSpec
from timellama_dist.errors import ConfigError, UserError
from timellama_dist.storage import open_place


def check_datasets(data: DataSection, splits: Sequence[SplitName] = SPLIT_NAMES) -> list[Dataset]:
    """Check the data sets, each of which must have windows in all these splits.

    Raises:
        ConfigError: values that don't fit each other or the data.
        DataError: the data can't be used.
    """
    for number, part in enumerate(data.parts):
        refuse_credentials(f"{data.part_key(number)}.path", part.path)
    return [_check_dataset(data, number, splits) for number in range(len(data.parts))]


def refuse_credentials(key: str, location: str | None) -> None:
    """Refuse a URI with a password in it.

    Raises:
        ConfigError: named by `key`.
    """
    if location is not None and open_place(location).has_credentials:
        raise ConfigError(
            f"{key} must not hold credentials, which config.yaml and the exported model would "
            "show; give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def _check_dataset(data: DataSection, number: int, splits: Sequence[SplitName]) -> Dataset:
    """Check one data set; an error names it as the user does."""
    section = data.part_key(number)
    try:
        part, source = open_data(data.parts[number], section)
        spec = _window_spec(data, part, source)
        counts = {name: _count_windows(data, part, source, spec.of(name)) for name in splits}
        return _dataset(part, source, spec, counts, section)
    except UserError as error:
        if data.mixture is None or str(error).startswith(section):
            raise
        raise error.under("data", section) from error


def _dataset(
    part: MixturePart,
    source: OpenedData,
    spec: WindowSpec,
    counts: dict[SplitName, WindowCounts],
    section: str,
) -> Dataset:
    content = source.content
    prepared: Preparation | Manifest
    if isinstance(content, Table):
        options = table_options(part, section)
        rule = source.rule
        wanted = PrepareOptions(split=tuple(rule.split), split_by=rule.by, prompt=part.prompt)
        prepared = Preparation.of(content, options, wanted, section=section)
    else:
        prepared = content
    return Dataset(
        part=replace(part, name=part.name or content.name),
        spec=spec,
        channels=content.channels,
        frequency=source.frequency,
        season_len=source.season_len,
        counts=counts,
        content_hash=prepared.content_hash,
        description=part.prompt or prepared.prompt,
        preparation=prepared if isinstance(prepared, Preparation) else None,
    )


def _window_spec(data: DataSection, part: MixturePart, source: OpenedData) -> WindowSpec:
    """Say which training windows a part means, with the context that suits its series."""
    context_len, horizon = data.lengths(part)
    spec = WindowSpec(
        context_len=context_len,
        horizon=horizon,
        train_fraction=part.train_fraction,
        short_series=part.short_series,
    )
    return _fitted(spec, source) if data.fit_context else spec


def _fitted(spec: WindowSpec, source: OpenedData) -> WindowSpec:
    rule, num_rows = source.rule, source.num_rows
    context_len = fitted_context_len(
        num_rows if rule.by == "series" else rule.train_rows(num_rows),
        most=spec.context_len,
        horizon=spec.horizon,
        season_len=source.season_len,
    )
    return replace(spec, context_len=context_len)


def _count_windows(
    data: DataSection, part: MixturePart, source: OpenedData, spec: WindowSpec
) -> WindowCounts:
    """Count the windows of a split, of which there must be some."""
    index = WindowIndex.build(source.num_rows, spec, source.rule)
    if len(index):
        return index.counts
    # The run's own lengths hold for a part that has none.
    section = source.rule.section
    keys = {
        name: f"{section if getattr(part, name) else 'data'}.{name}={getattr(spec, name)}"
        for name in ("context_len", "horizon")
    }
    raise ConfigError(
        f"{keys['context_len']} + {keys['horizon']} is longer than the {spec.split} part "
        f"({source.rule.key}={list(source.rule.split)}) of every series; the longest has "
        f"{source.num_rows.max()} rows in all" + _remedy(data, source, spec)
    )


def _remedy(data: DataSection, source: OpenedData, spec: WindowSpec) -> str:
    """Say what would give the split a window: another split, a shorter context or horizon."""
    remedies = []
    horizon, rule, longest = spec.horizon, source.rule, int(source.num_rows.max())
    cut = isinstance(source.content, Table) and rule.by == "time" and spec.split != "train"
    if cut and longest >= spec.context_len + 3 * horizon:
        remedies.append(
            f"{rule.key}=[0, {horizon}, {horizon}] would take the last {horizon} rows for the test "
            f"part and {horizon} before them for validation"
        )
    fitted = _fitted(spec, source)
    if not data.fit_context and len(WindowIndex.build(source.num_rows, fitted, rule)):
        remedies.append(
            f"data.fit_context=true would shorten the context to {fitted.context_len} rows"
        )
    shortest = WindowIndex.build(source.num_rows, replace(spec, horizon=1), rule)
    # With a horizon of one row, a series has as many windows as its longest horizon has rows.
    if longest_horizon := int(np.diff(shortest.cumulative).max()):
        remedies.append(f"a horizon of at most {longest_horizon} rows would fit")
    return "; " + ", or ".join(remedies) if remedies else ""
