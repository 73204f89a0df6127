"""`timellama plan`: tables, JSON, exit codes, one-line refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from timellama_dist.assets.cache import cache_dir
from timellama_dist.assets.catalog import BACKBONES
from timellama_dist.cli.plan import NAMED_SHAPES, main
from timellama_dist.planning.policy import POLICIES
from timellama_dist.planning.shape import LlamaShape

ROOT = Path(__file__).parents[3]
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


@pytest.fixture
def large(tmp_path: Path) -> list[str]:
    path = tmp_path / "llama-70b.json"
    path.write_text(json.dumps(LLAMA_70B))
    return ["--backbone_config", str(path), "--backbone.num_blocks", "80"]


def test_the_shipped_policies_are_those_of_the_files() -> None:
    files = {path.stem: json.loads(path.read_text()) for path in ROOT.glob("ds_configs/*.json")}
    assert files == {name: policy for name, policy in POLICIES.items() if name != "stage0"}


def test_every_named_backbone_has_its_shape() -> None:
    assert NAMED_SHAPES.keys() == BACKBONES.keys()


@pytest.mark.parametrize("name", NAMED_SHAPES)
def test_a_named_shape_is_that_of_its_configuration(name: str) -> None:
    file = cache_dir() / "backbones" / f"{name}-{BACKBONES[name].version}" / "config.json"
    if not file.is_file():
        pytest.skip(f"{name} was never fetched here")
    assert LlamaShape.from_file(file) == NAMED_SHAPES[name]


def test_a_run_that_fits_is_told_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "a100-80g", "--num_gpus", "2"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "2 of 30 blocks of smollm2-135m (nf4), 2 x a100-80g" in output.out
    for word in (*POLICIES, "frozen", "activations", "fits", "s a step"):
        assert word in output.out


def test_json_says_for_each_policy_whether_it_fits(
    large: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--gpu", "h100-80g", "--num_gpus", "8", "--train.batch_size", "256", "--json"]
    assert main([*words, *large]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["chosen"] == "zero3"
    assert plan["policies"].keys() == POLICIES.keys()
    for policy in plan["policies"].values():
        assert policy["needed_bytes"] == sum(policy["parts_bytes"].values())
        assert policy["fits"] == (policy["needed_bytes"] <= 80e9)


def test_what_cannot_fit_is_refused_in_one_line(
    large: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--gpu", "l4-24g", "--num_gpus", "8", "--train.batch_size", "256"]
    assert main([*words, *large]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: deepspeed: zero3 needs ")
    assert "on each l4-24g, which has 22.35" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "abacus"], "--gpu must be one of a100-40g, "),
        (["--gpu", "cpu", "--channels", "0"], "--channels must be at least 1, got 0"),
        (["--gpu", "cpu", "--num_gpus", "7"], "scaling.num_workers must be a divisor of"),
        (["--gpu", "cpu", "--train.seed", "x"], "train.seed must be int, got x"),
        (["--gpu", "cpu", "--backbone.name", "a/b"], "give that by --backbone_config FILE"),
        (["--gpu", "cpu", "--backbone.name", "./b.gguf"], "the dimensions of './b.gguf' are not"),
        (["--gpu", "cpu", "--backbone_config", "none.json"], "cannot read none.json: No such file"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "has the architecture 'gpt2'; only 'llama' is supported"),
        ({"hidden_size": None}, "hidden_size must be a whole number above 0, got None"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0, got 0"),
    ],
)
def test_a_backbone_that_is_no_llama_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_70B | change))
    assert main(["--gpu", "cpu", "--backbone_config", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_policy_of_one_s_own_stands_beside_the_shipped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": True}}))
    assert main(["--gpu", "a100-80g", "--deepspeed", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["chosen"] == "mine.json"
    # DeepSpeed's own default of 500 million elements, twice for overlapping, in bf16.
    assert plan["policies"]["mine.json"]["parts_bytes"]["buckets"] == 2 * 500_000_000 * 2
