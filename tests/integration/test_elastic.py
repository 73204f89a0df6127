"""A run whose nodes come and go, on a cluster of two real raylets."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from tests.support.runs import arguments, history
from timellama_dist.cli.train import read_arguments
from timellama_dist.train import trainer
from timellama_dist.train.driver import train

STEPS = 400


def run(words: list[str], **changes: Any) -> dict[str, Any]:
    extra = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    return train(read_arguments([*words, *extra])).metrics


def wait_for_step(run_dir: Path, step: int, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and thread.is_alive():
        if (run_dir / "history.jsonl").exists():
            steps = [record["step"] for record in history(run_dir, "train")]
            if steps and steps[-1] >= step:
                return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_a_run_that_loses_a_node_and_gains_one_follows_the_uninterrupted_one(
    tiny_llama: Path,
    waves_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trainer, "_RESIZE_S", 2.0)
    words = arguments(
        tiny_llama,
        waves_csv,
        tmp_path / "elastic",
        **{
            "backbone.quantization": "none",
            "train.epochs": 100,
            "train.max_steps": STEPS,
            "train.validate_every": 20,
            "train.patience": 0,
            # One worker a node, beside a CPU for the windows.
            "scaling.cpus_per_worker": 2,
            "scaling.max_failures": 5,
        },
    )
    # Ray takes half a minute by default until it counts a node that answers no more as dead.
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "_system_config": quick})
    try:
        second = cluster.add_node(num_cpus=3)
        ray.init(address=cluster.address, log_to_driver=False)
        found: dict[str, Any] = {}
        thread = threading.Thread(
            target=lambda: found.update(run(words, **{"scaling.num_workers": [1, 2]}))
        )
        thread.start()
        wait_for_step(tmp_path / "elastic", 40, thread)
        cluster.remove_node(second, allow_graceful=False)
        wait_for_step(tmp_path / "elastic", 80, thread)
        cluster.add_node(num_cpus=3)
        thread.join(timeout=900)
        assert not thread.is_alive()
        starts = capfd.readouterr().err.count("loading the backbone")
        assert starts == 3, "on two workers, on one, and on two again"
        whole = words.copy()
        whole[whole.index("--run.dir") + 1] = str(tmp_path / "whole")
        expected = run(whole, **{"scaling.num_workers": 1})
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert found["train"]["steps"] == expected["train"]["steps"] == STEPS
    assert found["test"]["mse"] == pytest.approx(expected["test"]["mse"], rel=1e-4)
    for file in ("timellama.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = (
            load_file(tmp_path / name / "model" / file) for name in ("elastic", "whole")
        )
        for name, weight in theirs.items():
            difference = np.linalg.norm(ours[name] - weight) / max(np.linalg.norm(weight), 1e-3)
            assert difference <= 1e-4, (name, difference)
