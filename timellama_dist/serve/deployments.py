"""The two Ray Serve deployments: copies of the model, and the HTTP routes that ask them.

The routes hold neither model nor torch. They send a request whose copy died to another one.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from timellama_dist.serve.api import build_api
from timellama_dist.serve.batches import Batches
from timellama_dist.serve.requests import ForecastRequest, RequestError
from timellama_dist.serve.settings import ServeConfig

# Serve writes it to the replica's log file.
log = logging.getLogger("ray.serve")

_RETRY_PAUSE_S = 0.1
_MOST_DEATHS = 5
"""A request that as many copies died over is perhaps why they died."""
_READY_S = 5.0
_HEALTH_CHECK_S = 2.0
_SHUTDOWN_LOOK_S = 0.5
"""How often a process that shall end looks whether its requests are answered."""
_ROUTES_AT_ONCE = 4096


class ForecastModel:
    """A copy of the model; requests that wait together are forecast in one batch."""

    def __init__(self, config: ServeConfig) -> None:
        import torch

        from timellama_dist.forecast.forecaster import TimeLlamaForecaster
        from timellama_dist.model.card import local_folder, model_fingerprint

        torch.set_num_threads(max(1, int(config.cpus_per_replica)))
        self.config = config
        with local_folder(config.model) as folder:
            self.forecaster = TimeLlamaForecaster.load(
                folder, device="cuda" if config.use_gpu else "cpu"
            )
            self.fingerprint = model_fingerprint(folder)
        self._batches = Batches(self._answer, config.max_batch)

    async def describe(self) -> dict[str, Any]:
        """Describe the model, for `GET /ready`."""
        keys = ("name", "channels", "frequency", "context_len", "horizon")
        cards = [asdict(dataset) for dataset in self.forecaster.card.datasets]
        return {
            "status": "ready",
            "model": self.fingerprint,
            "datasets": [{key: card[key] for key in keys} for card in cards],
        }

    async def forecast(self, request: ForecastRequest) -> bytes | RequestError:
        """Return a `ForecastResponse` as JSON, or why there is none."""
        return await self._batches.ask(request)

    def _answer(self, requests: Sequence[ForecastRequest]) -> list[bytes | RequestError]:
        from timellama_dist.serve.forecasts import answer

        try:
            answers = answer(requests, self.forecaster, self.fingerprint, self.config.max_forecasts)
        except Exception:
            if len(requests) > 1:
                # It is the fault of one of them.
                return [result for request in requests for result in self._answer([request])]
            log.exception("a request could not be forecast")
            return [RequestError(500, ("server", "an error of the server's; its log says more"))]
        return [
            result if isinstance(result, RequestError) else result.model_dump_json().encode()
            for result in answers
        ]


@serve.ingress()
class ForecastRoutes:
    """The routes of `api`, with the model behind them."""

    def __init__(self, config: ServeConfig, models: DeploymentHandle) -> None:
        self.config = config
        self.models = models

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self.config, self._ask, self._describe)

    async def _ask(self, request: ForecastRequest) -> bytes:
        timeout_s = self.config.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._ask_until_answered(request)
        except TimeoutError:
            raise RequestError(504, ("server", f"no forecast within {timeout_s:g} s")) from None
        if isinstance(result, RequestError):
            raise result
        return result

    async def _ask_until_answered(self, request: ForecastRequest) -> bytes | RequestError:
        deaths = 0
        while True:
            try:
                return await self.models.forecast.remote(request)
            except BackPressureError:
                # Once a copy has taken it on, it isn't sent away.
                if not deaths:
                    message = "as many requests wait as may; come again"
                    raise RequestError(503, ("server", message)) from None
            except RayActorError:
                deaths += 1
                if deaths == _MOST_DEATHS:
                    message = f"{deaths} copies of the model died over this request"
                    raise RequestError(503, ("server", message)) from None
            await asyncio.sleep(_RETRY_PAUSE_S * deaths)

    async def _describe(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_READY_S):
                return await self.models.describe.remote()
        except (RayError, RayServeException, TimeoutError):
            raise RequestError(503, ("server", "no copy of the model is up")) from None


def build_application(config: ServeConfig) -> Application:
    """Build the application that a configuration describes."""
    models = serve.deployment(
        num_replicas=config.replicas,
        # A batch is computed, the next one waits beside it.
        max_ongoing_requests=2 * config.max_batch,
        max_queued_requests=config.max_queued,
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_wait_loop_s=_SHUTDOWN_LOOK_S,
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": 1 if config.use_gpu else 0,
        },
    )(ForecastModel)
    routes = serve.deployment(
        max_ongoing_requests=_ROUTES_AT_ONCE,
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_wait_loop_s=_SHUTDOWN_LOOK_S,
        ray_actor_options={"num_cpus": 0},
    )(ForecastRoutes)
    return routes.bind(config, models.bind(config))
