"""The Ray cluster a run uses: the one it finds, or one of its own on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from timellama_dist.config.schema import ScalingSection
from timellama_dist.errors import ConfigError


@dataclass(frozen=True)
class Resources:
    """What one worker is given."""

    use_gpu: bool
    cpus_per_worker: float


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray, quietly; what was started here is stopped at the end.

    Workers' own output stays in Ray's log files: progress comes through the monitor.
    """
    # Read at the import of ray. The project reports nothing to anybody, nor does what it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    from timellama_dist.data.stream import quieten_ray_data

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    quieten_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def plan_resources(scaling: ScalingSection) -> Resources:
    """Decide what a worker gets of the connected cluster.

    Raises:
        ConfigError: the cluster can never hold these workers.
    """
    import ray

    total = ray.cluster_resources()
    gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 0.0)
    use_gpu = gpus > 0 if scaling.use_gpu is None else scaling.use_gpu
    workers = scaling.num_workers
    if scaling.cpus_per_worker is not None:
        per_worker = scaling.cpus_per_worker
    elif use_gpu:
        per_worker = 1.0
    else:
        # Ray Data's tasks need a CPU of their own, or the workers would wait for windows forever.
        per_worker = min(1.0, round(max(cpus - 1, cpus / 2) / workers, 2))
    if use_gpu and scaling.use_gpu is None and gpus < workers:
        raise ConfigError(
            f"scaling.num_workers={workers} needs {workers} GPUs; the cluster has {gpus:g}"
        )
    if not use_gpu and per_worker * workers >= cpus:
        raise ConfigError(
            f"scaling.num_workers={workers} x scaling.cpus_per_worker={per_worker:g} leaves no CPU "
            f"of the cluster's {cpus:g} for the data pipeline"
        )
    return Resources(use_gpu, per_worker)
