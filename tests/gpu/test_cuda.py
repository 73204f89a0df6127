"""What only a CUDA device can show. Skipped without one; nothing here has been run so far."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.runs import PLAIN

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("policy", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_the_train_job_runs_in_bf16_on_every_gpu(
    policy: str, tiny_llama: Path, tmp_path: Path
) -> None:
    import numpy as np
    import pandas as pd

    hours = np.arange(600)
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=600, freq="h")})
    frame["a"], frame["b"] = np.sin(hours / 4), np.cos(hours / 12)
    frame.to_csv(tmp_path / "table.csv", index=False)
    workers = min(2, torch.cuda.device_count())
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "ray_jobs" / "train.py")),
            *("--data.path", str(tmp_path / "table.csv"), "--data.context_len", "48"),
            *("--data.horizon", "12", "--backbone.name", str(tiny_llama)),
            *("--backbone.num_blocks", "2", "--model.alignment_heads", "4"),
            *("--train.max_steps", "20", "--scaling.use_gpu", "true"),
            *("--scaling.num_workers", str(workers), "--run.dir", str(tmp_path / "run")),
            *("--deepspeed", str(ROOT / "ds_configs" / f"{policy}.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "deepspeed.json").read_text())["bf16"]["enabled"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert np.isfinite(metrics["test"]["mse"])


def test_the_forecast_on_the_gpu_equals_the_cpu_s(tiny_llama: Path) -> None:
    from timellama_dist.config.load import config_from_flat
    from timellama_dist.model.build import build_model

    config = config_from_flat(
        PLAIN
        | {
            "data.context_len": 48,
            "data.horizon": 12,
            "backbone.name": str(tiny_llama),
            "backbone.num_blocks": 2,
            "model.alignment_heads": 4,
        }
    )
    past = torch.randn(4, 48, 3)
    forecasts = []
    for device in ("cpu", "cuda"):
        model = build_model(config, tiny_llama, num_channels=3, prompts=["a b c"], device=device)
        with torch.no_grad():
            forecasts.append(model.eval()(past.to(device)).cpu())
    torch.testing.assert_close(*forecasts, rtol=1e-3, atol=1e-3)
