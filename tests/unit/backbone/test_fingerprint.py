"""What tells a backbone from another, and what doesn't matter to it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from timellama_dist.backbone.fingerprint import backbone_fingerprint
from timellama_dist.config.load import config_from_flat


def actual(folder: Path, **keys: Any) -> str | None:
    keys = {"backbone.num_blocks": 1, **keys}
    return backbone_fingerprint(config_from_flat({"data.path": "table.csv", **keys}), folder)


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "llama"))


def change(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.{name}"] = tensors[f"model.{name}"] * 1.01
    save_file(tensors, folder / "model.safetensors")


def test_quantisation_precision_and_place_do_not_matter(tiny_llama: Path, llama: Path) -> None:
    prints = {
        actual(folder, **{"backbone.quantization": quantization, "train.precision": precision})
        for folder in (tiny_llama, llama)
        for quantization in ("nf4", "none")
        for precision in ("fp32", "bf16")
    }
    assert len(prints) == 1
    assert None not in prints


def test_files_and_a_dtype_that_holds_the_same_numbers_do_not_matter(
    llama: Path, tmp_path: Path
) -> None:
    short = LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    prints = set()
    for name, model in (("short", short), ("long", short.float()), ("headless", short.model)):
        size = "60KB" if name == "long" else "1GB"
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        prints.add(actual(tmp_path / name))
    assert len(list((tmp_path / "long").glob("*.safetensors"))) > 2
    assert len(prints) == 1
    assert prints != {actual(llama)}, "rounded numbers are other ones"


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj.weight",
        "layers.0.mlp.down_proj.weight",
        "layers.0.input_layernorm.weight",
        "norm.weight",
        "embed_tokens.weight",
    ],
)
def test_each_tensor_that_is_used_matters(name: str, llama: Path) -> None:
    before = actual(llama)
    change(llama, name)
    assert actual(llama) != before


def test_what_is_not_used_does_not_matter(llama: Path) -> None:
    without_prompt = {"model.alignment": False, "model.prefix": False}
    blocks, both = actual(llama, **without_prompt), actual(llama, **{"backbone.num_blocks": 2})
    change(llama, "embed_tokens.weight")
    change(llama, "layers.1.mlp.down_proj.weight")
    assert actual(llama, **without_prompt) == blocks
    assert actual(llama, **{"backbone.num_blocks": 2}) != both


@pytest.mark.parametrize(
    "keys",
    [
        {"backbone.init": "random"},
        {"backbone.kind": "none", "dlora.enabled": False},
        {"backbone.kind": "attention", "dlora.enabled": False},
    ],
)
def test_without_pretrained_blocks_only_the_table_of_a_prompt_in_use_matters(
    keys: dict[str, Any], llama: Path
) -> None:
    before = actual(llama, **keys)
    change(llama, "layers.0.mlp.down_proj.weight")
    assert actual(llama, **keys) == before is not None
    change(llama, "embed_tokens.weight")
    assert actual(llama, **keys) != before
    assert actual(llama, **keys, **{"model.alignment": False, "model.prefix": False}) is None
