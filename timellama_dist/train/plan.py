"""Everything about a run that can be decided, and refused, before an actor starts.

Writes nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import BackboneSection, DataSection, RunConfig
from timellama_dist.data.check import check_datasets, refuse_credentials
from timellama_dist.data.dataset import Dataset
from timellama_dist.data.windows.spec import SPLIT_NAMES, SplitName
from timellama_dist.errors import ConfigError

# What all channels' X'X and X'Y of one part may take.
_MOST_SUMMED = 1 << 30


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that has passed every check that needs no worker."""

    config: RunConfig
    """With all that its data sets and backbone decide filled in."""
    sets: Sequence[Dataset]
    policy: Mapping[str, Any]
    """The DeepSpeed policy as its file says."""
    hidden_size: int
    """D of the backbone."""

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return Path(str(self.config.run.dir))

    @property
    def num_windows(self) -> dict[SplitName, int]:
        """Windows by split, over all data sets."""
        return {
            split: sum(dataset.num_windows[split] for dataset in self.sets) for split in SPLIT_NAMES
        }

    def prepared_data(self, run_dir: Path) -> list[Dataset]:
        """Prepare the data sets, in the run directory where there is only a table."""
        several = self.config.data.mixture is not None
        return [
            dataset.prepare(run_dir / "data" / (dataset.name if several else ""))
            for dataset in self.sets
        ]

    def over_prepared(self, sets: Sequence[Dataset]) -> DataSection:
        """Return the data section of a run over what `prepared_data` gave."""
        return self.config.data.with_parts([dataset.part for dataset in sets])

    def deepspeed(self, *, use_gpu: bool) -> dict[str, Any]:
        """Resolve the DeepSpeed configuration."""
        return resolve_deepspeed(
            self.policy,
            self.config,
            world_size=self.config.scaling.most_workers,
            hidden_size=self.hidden_size,
            use_gpu=use_gpu,
        )


def plan_run(config: RunConfig) -> RunPlan:
    """Check a configuration against its data, its backbone and its DeepSpeed policy.

    Raises:
        ConfigError: values that don't fit each other, the data or the backbone.
        DataError: the data can't be used.
    """
    refuse_credentials("run.storage_path", config.run.storage_path)
    policy = load_policy(config.deepspeed)
    sets = check_datasets(config.data)
    _check_together(config, sets)
    if config.model.shortcut_per_channel:
        _check_sums(config, sets)
    config = replace(config, backbone=_pinned(config.backbone))
    plan = RunPlan(
        config=replace(
            config,
            data=_filled_in(config.data, sets),
            train=config.train.fitted(max(dataset.num_channels for dataset in sets)),
        ),
        sets=sets,
        policy=policy,
        hidden_size=check_model(config),
    )
    plan.deepspeed(use_gpu=bool(config.scaling.use_gpu))
    return plan


def _pinned(backbone: BackboneSection) -> BackboneSection:
    """Name the commit that a hub name without revision stands for now: tomorrow it may be another.

    Raises:
        ConfigError: the backbone can't be had.
    """
    folder = resolve_backbone(backbone.name, backbone.revision)
    given = backbone.revision is not None or folder == Path(backbone.name).expanduser()
    # The hub's client keeps a commit's files in `snapshots/<commit>`.
    if given or folder.parent.name != "snapshots":
        return backbone
    return replace(backbone, revision=folder.name)


def check_model(config: RunConfig) -> int:
    """Check the backbone with what stands around it; return its hidden size.

    Raises:
        ConfigError: values that don't fit each other or the backbone.
    """
    backbone = resolve_backbone(config.backbone.name, config.backbone.revision)
    hidden_size = read_config(backbone, config.backbone.num_blocks).hidden_size
    attends = config.model.alignment or config.backbone.kind == "attention"
    if attends and hidden_size % config.model.alignment_heads:
        raise ConfigError(
            key="model.alignment_heads",
            must=f"divide the backbone's hidden size {hidden_size}",
            got=config.model.alignment_heads,
        )
    return hidden_size


def _filled_in(data: DataSection, sets: Sequence[Dataset]) -> DataSection:
    """Fill in what the data sets decided: names, layouts, fitted contexts."""
    if not data.fit_context:
        return data.with_parts([dataset.part for dataset in sets])
    contexts = [dataset.spec.context_len for dataset in sets]
    parts = [
        replace(dataset.part, context_len=context_len)
        for dataset, context_len in zip(sets, contexts, strict=True)
    ]
    return replace(data.with_parts(parts), context_len=max(contexts))


def _check_together(config: RunConfig, sets: Sequence[Dataset]) -> None:
    """Refuse data sets that can't be told apart, or that don't fit into one model."""
    keys: dict[str, str] = {}
    for number, dataset in enumerate(sets):
        name, key = dataset.name, f"{config.data.part_key(number)}.name"
        if config.data.mixture is not None and not re.fullmatch(r"(?=.*[^.])[^/\\]+", name):
            raise ConfigError(key=key, must="be fit for a folder's name", got=name)
        if name in keys:
            raise ConfigError(f"{key} must not be that of {keys[name]}, got {name!r} twice")
        keys[name] = config.data.part_key(number)
    per_channel = config.model.per_channel
    if per_channel and len({dataset.num_channels for dataset in sets}) > 1:
        counts = ", ".join(f"{dataset.name} has {dataset.num_channels}" for dataset in sets)
        raise ConfigError(
            f"{per_channel} gives each channel parameters of its own, so all data sets must have "
            f"equally many channels; {counts}"
        )


def _check_sums(config: RunConfig, sets: Sequence[Dataset]) -> None:
    """Refuse maps for more channels than a node's memory holds the sums of."""
    for dataset in sets:
        spec = dataset.spec
        size = 8 * dataset.num_channels * spec.context_len * spec.length
        if size > _MOST_SUMMED:
            raise ConfigError(
                f"model.shortcut_per_channel sums {size / 2**30:.1f} GiB over the windows of "
                f"{dataset.name} ({dataset.num_channels} channels, context {spec.context_len}, "
                f"horizon {spec.horizon}); at most {_MOST_SUMMED / 2**30:.0f} GiB are fitted on "
                "one node"
            )
