"""The benchmarks run, and measure something: on a tiny model, so the figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "key"),
    [
        ("dlora", ["--blocks", "2", "--rounds", "2"], "seconds"),
        ("gathered_bytes", ["--blocks", "2", "--steps", "2"], "bytes"),
        ("trainer", ["--blocks", "2", "--rounds", "1", "--steps", "6", "--warmup", "3"], None),
    ],
)
def test_a_benchmark_measures_positive_figures(
    name: str, words: list[str], key: str | None, tiny_llama: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *words]
    command += ["--backbone", str(tiny_llama), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    results = json.loads(output.read_text())
    figures = numbers(results[key or "windows_per_s"])
    assert figures
    assert np.isfinite(figures).all()
    assert min(figures) > 0
