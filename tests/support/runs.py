"""Short runs of `ray_jobs/train.py`, as processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


JOB = [sys.executable, str(ROOT / "ray_jobs" / "train.py")]


EVERY_5_STEPS = {"train.save_every": 5, "run.keep_checkpoints": 9}
"""How often the run of the fixture `finished` saves."""


def arguments(llama: Path, table: Path, run_dir: Path, **changes: Any) -> list[str]:
    """A short run: 2 workers, ZeRO-3, the last step in a few seconds."""
    values = {
        "data.path": table,
        "data.context_len": 48,
        "data.horizon": 12,
        "backbone.name": llama,
        "backbone.num_blocks": 2,
        "dlora.num_experts": 2,
        "dlora.rank": 2,
        "dlora.top_n": 4,
        "model.alignment_heads": 4,
        "train.batch_size": 8,
        "train.micro_batch_size": 4,
        "train.max_steps": 30,
        "train.validate_every": 10,
        "train.log_every": 5,
        "train.learning_rate": 3e-3,
        "run.dir": run_dir,
    } | changes
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def run_job(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*JOB, *words], capture_output=True, text=True, timeout=240, check=False)


def history(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "history.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
