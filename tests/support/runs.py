"""Short runs of `ray_jobs/train.py`, as processes of their own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from timellama_dist.config import former
from timellama_dist.config.schema import RunConfig

ROOT = Path(__file__).parents[2]


JOB = [sys.executable, str(ROOT / "ray_jobs" / "train.py")]


EVERY_5_STEPS = {"train.save_every": 5, "run.keep_checkpoints": 9}
"""How often the run of the fixture `finished` saves."""


PLAIN: dict[str, Any] = {
    f"{section}.{key}": value
    for section, values in former.SECTIONS.items()
    for key, value in values.items()
}
"""Keys of a run without a linear map and an average of weights, that refuses a faulty table."""


def plain(section: type[Any], **values: Any) -> Any:
    """A section of such a run, such as `plain(TrainSection, max_steps=3)`."""
    name = next(key.name for key in fields(RunConfig) if key.type is section)
    return section(**(dict(former.SECTIONS.get(name, {})) | values))


def plain_run(**sections: Any) -> RunConfig:
    """Such a run; sections that are given take the place of its own."""
    own = {key.name: plain(key.type) for key in fields(RunConfig) if key.name in former.SECTIONS}
    return RunConfig(**(own | sections))


def as_words(keys: Mapping[str, Any]) -> list[str]:
    """Keys as flags of a command line."""
    words = ((f"--{key}", "null" if value is None else str(value)) for key, value in keys.items())
    return [word for pair in words for word in pair]


def arguments(llama: Path, table: Path, run_dir: Path, **changes: Any) -> list[str]:
    """A short run: 2 workers, ZeRO-3, the last step in a few seconds."""
    values = (
        PLAIN
        | {
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
        }
        | changes
    )
    return as_words(values)


def run_job(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*JOB, *words], capture_output=True, text=True, timeout=480, check=False)


def history(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "history.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
