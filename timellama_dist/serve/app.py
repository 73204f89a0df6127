"""The server: a Ray Serve application, and how it is run until the user stops it.

A proxy takes requests, the routes (`api`) read them, and copies of the model forecast those
that wait together in one batch. Proxy, routes and copies are processes of their own: what dies is
started again, and the requests it held are sent to another one.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from timellama_dist.config.load import load_settings
from timellama_dist.errors import ConfigError, InterruptedRunError
from timellama_dist.serve.settings import ServeConfig
from timellama_dist.storage import open_place

if TYPE_CHECKING:
    from ray.serve import Application

_NAME = "timellama"


def app(arguments: Mapping[str, Any]) -> "Application":
    """The application for `serve run` and Serve's configuration files.

    Args:
        arguments: keys of `ServeConfig`; host and port are Serve's own affair.

    Raises:
        CheckpointError: no exported model is there.
        ConfigError: a key or value that cannot be run.
    """
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    config = load_settings(ServeConfig, words, prog="serve run", description="")
    config = _prepared(config)
    from timellama_dist.serve.deployments import build_application

    return build_application(config)


def serve_model(config: ServeConfig) -> None:
    """Serve until the user stops it.

    Raises:
        CheckpointError: no exported model is there.
        ConfigError: the configuration can't be run here.
        InterruptedRunError: the user pressed Ctrl-C.
    """
    config = _prepared(config)
    _refuse_taken_port(config.host, config.port)
    from timellama_dist.cluster import connected
    from timellama_dist.serve.deployments import build_application

    with connected():
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        application = build_application(_placed(config))
        alone = not _serve_runs()
        try:
            serve.start(
                http_options={"host": config.host, "port": config.port},
                controller_options={"runtime_env": {"env_vars": _proxy_callback()}},
            )
            serve.run(application, name=_NAME, route_prefix="/")
            print(f"{config.model} answers on http://{config.host}:{config.port}", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            raise InterruptedRunError("stopped") from None
        finally:
            # What else the cluster serves goes on.
            if alone:
                serve.shutdown()
            else:
                serve.delete(_NAME)


def _prepared(config: ServeConfig) -> ServeConfig:
    """The configuration with a place that means the same everywhere; nothing is started yet.

    Raises:
        CheckpointError: no exported model is there.
        ConfigError: Ray Serve isn't installed, or the model's backbone can't be had.
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "httptools")):
        raise ConfigError("serving needs Ray Serve: pip install 'ray[serve]>=2.60,<2.61'")
    from timellama_dist.evaluation.exported_model import ExportedModel

    ExportedModel.open(config.model)
    # For a proxy on this machine; where Ray runs already, Serve's controller is told.
    os.environ.update(_proxy_callback())
    return replace(config, model=open_place(config.model).uri)


def _proxy_callback() -> dict[str, str]:
    from timellama_dist.serve.retry import PROXY_CALLBACK

    return PROXY_CALLBACK


def _refuse_taken_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {host} can't be listened on: {error}") from None


def _placed(config: ServeConfig) -> ServeConfig:
    """The configuration with what the connected cluster decides.

    Raises:
        ConfigError: the cluster can't hold so many copies.
    """
    import ray

    there = ray.cluster_resources()
    use_gpu = there.get("GPU", 0) > 0 if config.use_gpu is None else config.use_gpu
    needs = {"CPU": config.replicas * config.cpus_per_replica}
    if config.use_gpu is None and use_gpu:
        needs["GPU"] = config.replicas
    for kind, number in needs.items():
        if number > there.get(kind, 0):
            raise ConfigError(
                f"replicas={config.replicas} need {number:g} {kind}s; the cluster has "
                f"{there.get(kind, 0):g}"
            )
    return replace(config, use_gpu=use_gpu)


def _serve_runs() -> bool:
    """Does the connected cluster serve something already?"""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
