"""How many requests a second the server answers, and how fast, at 1, 8 and 64 clients.

python -m benchmarks.serving --model RUN/model

Starts `ray_jobs/serve.py` on this machine and asks it over loopback, each client sending its next
request when the last one is answered: one series of `context_len` rows, all steps of all channels.
The clients share the machine's cores with the server. With `--level 80` each request wants
intervals, too.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import requests

from benchmarks.measuring import write_results

_SERVE = Path(__file__).parents[1] / "ray_jobs" / "serve.py"
_START_S = 180


@dataclass
class Load:
    """What some clients saw."""

    seconds: list[float] = field(default_factory=list)
    """Of each answer that is a forecast."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Answers by status, and lost connections by the error's name."""
    elapsed_s: float = 0.0

    @property
    def failures(self) -> int:
        """Requests without a forecast."""
        return sum(self.statuses.values()) - self.statuses["200"]

    def facts(self) -> dict[str, Any]:
        """Figures of it."""
        spread = dict(zip(("p50", "p99"), np.percentile(self.seconds, [50, 99]), strict=True))
        return {
            "requests_per_s": len(self.seconds) / self.elapsed_s,
            **{f"{name}_ms": 1000 * float(value) for name, value in spread.items()},
            "requests": sum(self.statuses.values()),
            "failures": self.failures,
            "statuses": dict(self.statuses),
        }


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(model: Path | str, *words: str) -> Iterator[str]:
    """`ray_jobs/serve.py` in a process of its own, ready; gives its address."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", str(_SERVE), "--model", str(model)]
    with subprocess.Popen(
        [*command, "--port", str(port), *words], stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, process)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for a model behind an address.

    Raises:
        RuntimeError: the server has ended, or takes too long.
    """
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{address}/ready", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server is not ready (exit code {process.poll()})")


def some_request(address: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """A request of one series of noise that the server's model can forecast."""
    card = requests.get(f"{address}/ready", timeout=30).json()["datasets"][0]
    rows, rng = card["context_len"], np.random.default_rng(number)
    times = pd.date_range("2024-01-01", periods=rows, freq=card["frequency"])
    values = {name: rng.normal(10, 2, rows).round(3).tolist() for name in card["channels"]}
    one = {"unique_id": f"s{number}", "ds": times.strftime("%Y-%m-%dT%H:%M:%S").tolist()}
    return {"series": [{**one, "values": values}], "dataset": card["name"], **more}


async def load(
    address: str,
    bodies: Sequence[bytes],
    clients: int,
    seconds: float,
    look: Callable[[int, bytes], None] = lambda number, answer: None,
) -> Load:
    """Ask for some seconds; requests that are under way then are waited for.

    Args:
        address: the server's.
        bodies: requests, which clients take in turn.
        clients: that ask at the same time.
        seconds: how long.
        look: called with the body's number and the answer of each forecast.
    """
    found, begin = Load(), time.perf_counter()
    numbers = iter(range(sys.maxsize))

    async def client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() - begin < seconds:
            number = next(numbers) % len(bodies)
            started = time.perf_counter()
            try:
                async with session.post("/forecast", data=bodies[number]) as response:
                    answer = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                found.statuses[type(error).__name__] += 1
                continue
            found.statuses[str(response.status)] += 1
            if response.status == 200:
                found.seconds.append(time.perf_counter() - started)
                look(number, answer)

    async with aiohttp.ClientSession(
        address,
        headers={"content-type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=120),
    ) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    found.elapsed_s = time.perf_counter() - begin
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="RUN/model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--level", type=float, nargs="*", default=[])
    parser.add_argument("--serve", nargs="*", default=[], help="more words for serve.py")
    parser.add_argument("--output", help="a JSON file of all figures")
    words = parser.parse_args()
    more = [part for word in words.serve for part in word.split("=")]
    found: dict[str, list[dict[str, Any]]] = {}
    with running_server(words.model, *more) as address:
        bodies = [
            json.dumps(some_request(address, n, level=words.level)).encode() for n in range(64)
        ]
        # The first requests meet cold caches.
        asyncio.run(load(address, bodies, clients=8, seconds=3))
        for _ in range(words.rounds):
            for clients in words.clients:
                facts = asyncio.run(load(address, bodies, clients, words.seconds)).facts()
                found.setdefault(str(clients), []).append(facts)
                print(
                    f"{clients:3d} clients: {facts['requests_per_s']:7.1f} requests/s, "
                    f"p50 {facts['p50_ms']:7.1f} ms, p99 {facts['p99_ms']:7.1f} ms, "
                    f"{facts['failures']} of {facts['requests']} failed {facts['statuses']}",
                    flush=True,
                )
    write_results(words.output, "serving", {"clients": found, "words": vars(words)})


if __name__ == "__main__":
    main()
