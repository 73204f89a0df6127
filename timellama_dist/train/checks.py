"""Checks a run in order, before its directory is made and before a framework is loaded."""

from dataclasses import replace
from pathlib import Path

from timellama_dist.config.schema import RunConfig
from timellama_dist.recipes import policy_name
from timellama_dist.storage import open_place
from timellama_dist.train.plan import RunPlan, plan_run
from timellama_dist.train.resume import check_content
from timellama_dist.train.run_directory import check_storage, choose_run_dir
from timellama_dist.train.tracking import check_tracking


def plan_in_directory(config: RunConfig, prefix: str = "") -> RunPlan:
    """Plan a run in its run directory, which isn't made yet, and see that its storage takes files.

    Args:
        config: the run.
        prefix: of the directory's name where the user gave it none.

    Raises:
        CheckpointError: a resumed run's checkpoints are damaged, or of another backbone.
        ConfigError: the configuration can't be run.
        DataError: the data can't be used, or the storage refuses.
    """
    run_dir, config = choose_run_dir(config, prefix), absolute_paths(config)
    plan = plan_run(replace(config, run=replace(config.run, dir=str(run_dir))))
    check_storage(plan.config)
    check_tracking(plan.config)
    if config.run.resume:
        check_content(plan.config, plan.sets)
    return plan


def absolute_paths(config: RunConfig) -> RunConfig:
    """Make paths mean the same in a worker's process, and in a run resumed from another folder."""
    backbone = Path(config.backbone.name).expanduser()
    if config.data.mixture is not None or config.data.path is not None:
        places = [(part, open_place(part.path)) for part in config.data.parts]
        parts = [
            replace(part, path=place.uri) if place.exists() else part for part, place in places
        ]
        config = replace(config, data=config.data.with_parts(parts))
    if config.run.storage_path is not None:
        run = replace(config.run, storage_path=open_place(config.run.storage_path).uri)
        config = replace(config, run=run)
    if backbone.exists():
        config = replace(config, backbone=replace(config.backbone, name=str(backbone.resolve())))
    return replace(config, deepspeed=policy_name(config.deepspeed))
