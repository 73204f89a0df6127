"""Says in words what a planned run will train on."""

from collections.abc import Mapping

from timellama_dist.config.schema import BackboneSection, ScalingSection
from timellama_dist.data.windows.spec import SPLIT_NAMES, SplitName
from timellama_dist.train.plan import RunPlan


def describe(plan: RunPlan) -> str:
    """Say what will be trained: a line, one for each of several data sets, what is skipped."""
    config = plan.config
    sets = [
        f"{dataset.name}: {dataset.num_channels} channels, windows: {_counts(dataset.num_windows)}"
        for dataset in plan.sets
        if len(plan.sets) > 1
    ]
    summary = (
        f"windows of {config.data.context_len}+{config.data.horizon} steps: "
        f"{_counts(plan.num_windows)}; "
        f"{_encoder(config.backbone)}, {_workers(config.scaling)} workers"
    )
    # Of a set that was prepared before, they were printed then.
    tables = [dataset.preparation.draft for dataset in plan.sets if dataset.preparation]
    notes = [f"note: {note}" for draft in tables for note in draft.notes]
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
    train, most = plan.config.train, max(dataset.num_windows["validation"] for dataset in plan.sets)
    if train.validate_windows is None or train.validate_windows >= most:
        return []
    return [
        f"{train.batch_size} windows a step; a validation takes {train.validate_windows} of a data "
        "set, evenly spread"
    ]


def _skipped(plan: RunPlan) -> list[str]:
    lines = []
    for dataset in plan.sets:
        spec = dataset.spec
        # A padded window needs its target and one row of past.
        past = 1 if spec.short_series == "pad" else spec.context_len
        of = f" of {dataset.name}" if len(plan.sets) > 1 else ""
        lines += [
            f"{counts.num_skipped} of {counts.num_series} series{of} are too short for a {split} "
            f"window of {past + spec.horizon} rows and are skipped"
            for split, counts in dataset.counts.items()
            if counts.num_skipped
        ]
    return lines


def _counts(num_windows: Mapping[SplitName, int]) -> str:
    return ", ".join(f"{num_windows[name]} {name}" for name in SPLIT_NAMES)
