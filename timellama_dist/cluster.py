"""The Ray cluster a run uses: the one it finds, or one of its own on this machine."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from timellama_dist.compat.ray import silence_once
from timellama_dist.config.schema import ScalingSection
from timellama_dist.errors import ConfigError, UserError


@dataclass(frozen=True)
class Resources:
    """What one worker is given."""

    use_gpu: bool
    cpus_per_worker: float


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray, quietly; what was started here is stopped at the end.

    Workers' own output stays in Ray's log files: progress comes through the monitor.

    Raises:
        ConfigError: the cluster has another token.
    """
    # The project reports nothing to anybody, nor does what it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        # Nobody is told of a dashboard, whose start the run would wait for.
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except ConnectionError as error:
        # Ray hands on the text alone.
        if "AuthenticationError" not in str(error.__cause__):
            raise
        raise ConfigError(
            "the cluster refuses this token: its nodes and its clients must all have the same, in "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler leaves with exit code 15.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    quieten_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def quieten_ray_data() -> None:
    """Leave Ray Data's plans, advice and errors, which it raises too, to its log files."""
    # Every validation starts a pipeline: its plan and progress belong in Ray's log files.
    silence_once("ray_data_progress_manager_disabled")  # Ray's advice to enable bars
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def on_this_node() -> dict[str, Any]:
    """Options of an actor that must not be lost with another node than the driver's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake that a task ended with, if it was one."""
    while error is not None and type(error).__module__ != UserError.__module__:
        error = getattr(error, "cause", None) or error.__cause__
    return error if isinstance(error, UserError) else None


def worker_environment(scaling: ScalingSection) -> dict[str, str]:
    """Environment variables of the workers; gloo and NCCL read them as the process group forms."""
    interface = scaling.network_interface
    if interface is None:
        return {}
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}


def plan_resources(scaling: ScalingSection) -> Resources:
    """Decide what a worker gets of the connected cluster.

    Raises:
        ConfigError: the cluster can never hold these workers.
    """
    import ray

    total = ray.cluster_resources()
    gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 0.0)
    use_gpu = gpus > 0 if scaling.use_gpu is None else scaling.use_gpu
    # What an elastic run must have; more of them are started where there is room.
    workers = scaling.least_workers
    if scaling.cpus_per_worker is not None:
        per_worker = scaling.cpus_per_worker
    elif use_gpu:
        per_worker = 1.0
    else:
        # Ray Data's tasks need a CPU of their own, or the workers would wait for windows forever.
        room = round(max(cpus - 1, cpus / 2) / scaling.most_workers, 2)
        # Ray's elastic scaling counts in whole CPUs.
        per_worker = 1.0 if scaling.elastic else min(1.0, room)
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
