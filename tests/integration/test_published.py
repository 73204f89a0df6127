"""The library's architectures on this project's windows; the library itself is an extra."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.published import main

needs_library = pytest.mark.skipif(
    find_spec("neuralforecast") is None, reason="pip install -e '.[baselines]'"
)


def words(table: Path, **changes: object) -> list[str]:
    values = {
        "data.path": table,
        "data.context_len": 48,
        "data.horizon": 12,
        "max_steps": 4,
        "validate_every": 2,
        "batch_size": 8,
    } | changes
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


@pytest.mark.skipif(find_spec("neuralforecast") is not None, reason="the library is there")
def test_without_the_library_one_line_says_how_to_get_it(
    waves_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(waves_csv)) == 2
    assert "need the library neuralforecast: pip install -e '.[baselines]'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("learning_rates", [], "at least one rate above 0"),
        ("learning_rates", [1e-3, 0.0], "at least one rate above 0"),
        ("max_steps", 0, "at least 1"),
        ("batch_size", -2, "at least 1"),
    ],
)
def test_a_bound_that_is_broken_is_named(
    key: str, value: object, bound: str, waves_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(waves_csv, **{key: value})) == 2
    assert f"{key} must be {bound}, got {value}" in capsys.readouterr().err


@needs_library
@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("DLinear", {}),
        ("PatchTST", {"hidden_size": 16, "n_heads": 2, "encoder_layers": 1}),
        ("iTransformer", {"hidden_size": 16, "n_heads": 2, "e_layers": 1, "d_ff": 16}),
    ],
)
def test_an_architecture_is_tested_on_every_window(
    model: str, arguments: dict[str, int], waves_csv: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    chosen = {"model": model, "arguments": json.dumps(arguments), "output": output}
    chosen["learning_rates"] = [1e-4, 1e-2]
    assert main(words(waves_csv, **chosen)) == 0
    found = json.loads(output.read_text())
    # The same 69 windows that train.py tests on.
    assert found["by_dataset"]["waves"]["windows"] == 69
    assert 0 < found["test"]["mse"] < 5
    tried = found["training"]["trainings"]
    assert [one["learning_rate"] for one in tried] == [1e-4, 1e-2]
    assert all([known["step"] for known in one["validation"]] == [2, 4] for one in tried)
    assert found["training"]["chosen"] == min(tried, key=lambda one: one["mse"])
    assert found["training"]["chosen"]["mse"] == min(
        known["mse"] for one in tried for known in one["validation"]
    )


@needs_library
def test_time_llm_runs_on_a_backbone_of_this_machine(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    chosen = {"model": "TimeLLM", "arguments": '{"d_ff": 16}', "llm": tiny_llama, "output": output}
    assert main(words(waves_csv, **chosen, max_steps=1)) == 0
    assert json.loads(output.read_text())["by_dataset"]["waves"]["windows"] == 69


@needs_library
def test_time_llm_without_a_backbone_asks_no_hub(
    waves_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(waves_csv, model="TimeLLM")) == 2
    assert "llm must be given for TimeLLM" in capsys.readouterr().err
