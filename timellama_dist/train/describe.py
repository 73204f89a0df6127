"""What a planned run will train on, in words."""

from collections.abc import Mapping

from timellama_dist.config.schema import BackboneSection, ScalingSection
from timellama_dist.data.windows.index import SPLIT_NAMES, SplitName
from timellama_dist.train.plan import RunPlan


def describe(plan: RunPlan) -> str:
    """What will be trained: a line, one for each data set if there are several, what is skipped."""
    config = plan.config
    sets = [
        f"{one.part.name}: {one.num_channels} channels, windows: {_counts(one.num_windows)}"
        for one in plan.sets
        if len(plan.sets) > 1
    ]
    summary = (
        f"windows of {config.data.context_len}+{config.data.horizon} steps: "
        f"{_counts(plan.num_windows)}; "
        f"{_encoder(config.backbone)}, {_workers(config.scaling)} workers"
    )
    # Of a set that was prepared before, they were printed then.
    notes = [f"note: {note}" for one in plan.sets if one.table for note in one.table.notes]
    return "\n".join([*sets, summary, *_fitted(plan), *_skipped(plan), *notes])


def _encoder(backbone: BackboneSection) -> str:
    if backbone.kind != "llama":
        return "one attention block" if backbone.kind == "attention" else "no backbone"
    return f"{backbone.num_blocks} blocks of {backbone.name} ({backbone.quantization})"


def _workers(scaling: ScalingSection) -> str:
    if not scaling.elastic:
        return str(scaling.most_workers)
    return f"{scaling.least_workers} to {scaling.most_workers}"


def _fitted(plan: RunPlan) -> list[str]:
    train, most = plan.config.train, max(one.num_windows["validation"] for one in plan.sets)
    if train.validate_windows is None or train.validate_windows >= most:
        return []
    return [
        f"{train.batch_size} windows a step; a validation takes {train.validate_windows} of a data "
        "set, evenly spread"
    ]


def _skipped(plan: RunPlan) -> list[str]:
    data = plan.config.data
    lines = []
    for one in plan.sets:
        # A padded window needs its target and one row of past.
        context_len, horizon = data.lengths(one.part)
        past = 1 if one.part.short_series == "pad" else context_len
        of = f" of {one.part.name}" if len(plan.sets) > 1 else ""
        lines += [
            f"{index.num_skipped} of {index.num_series} series{of} are too short for a {name} "
            f"window of {past + horizon} rows and are skipped"
            for name, index in one.indexes.items()
            if index.num_skipped
        ]
    return lines


def _counts(num_windows: Mapping[SplitName, int]) -> str:
    return ", ".join(f"{num_windows[name]} {name}" for name in SPLIT_NAMES)
