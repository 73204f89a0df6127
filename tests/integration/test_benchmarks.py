"""The benchmarks run, and measure something: on a tiny model, so the figures mean nothing."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import inference

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
        (
            "trainer",
            ["--blocks", "2", "--rounds", "1", "--steps", "6", "--warmup", "3", "--profile"],
            None,
        ),
        (
            "stream",
            [
                *("--rows", "4000", "--windows", "6000", "--rounds", "1", "--steps", "12"),
                *("--context-len", "32", "--horizon", "8", "--memory", "--series", "2000"),
            ],
            None,
        ),
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


has_library = find_spec("neuralforecast") is not None


@pytest.mark.skipif(has_library, reason="the library is there")
def test_without_the_library_one_line_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert inference.main([]) == 2
    assert "need the library neuralforecast: pip install -e '.[baselines]'" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.skipif(not has_library, reason="pip install -e '.[baselines]'")
def test_every_model_of_the_inference_benchmark_is_timed(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    words = ["--backbone", str(tiny_llama), "--blocks", "2", "--cases", "3x2", "50x1"]
    assert inference.main([*words, "--rounds", "1", "--output", str(output)]) == 0
    seconds = json.loads(output.read_text())["seconds"]
    assert list(seconds) == ["3x2", "50x1"]
    for found in seconds.values():
        assert {"Time-LlaMA", "PatchTST", "iTransformer", "Time-LLM"} <= set(found)
        assert min(numbers(found)) > 0


@pytest.mark.slow
def test_planned_memory_is_within_10_percent_of_what_two_ranks_hold(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.planner", "--hidden", "256"]
    command += ["--blocks", "2", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    cases = json.loads(output.read_text())["cases"]
    assert len(cases) == 10
    for case in cases:
        for memory in ("frozen", "held", "peak"):
            assert case["ratios"][memory] == pytest.approx(1, rel=0.1), (case["case"], memory)


@pytest.mark.slow
def test_the_server_is_measured_at_each_number_of_clients(
    shops_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serving", "--seconds", "2"]
    command += ["--clients", "1", "4", "--model", str(shops_model), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    clients = json.loads(output.read_text())["clients"]
    assert list(clients) == ["1", "4"]
    for (facts,) in clients.values():
        assert facts["requests_per_s"] > 0
        assert 0 < facts["p50_ms"] <= facts["p99_ms"]
        assert facts["failures"] == 0
