"""transformers still has what `compat.transformers` takes of it."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel

from timellama_dist.compat.transformers import (
    checkpoint_function,
    forget_origin,
    set_checkpoint_function,
    use_sdpa,
)


def small_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )


def test_a_block_runs_by_the_checkpoint_function_that_is_set() -> None:
    model = LlamaModel(small_config()).train()
    block = model.layers[0]
    assert checkpoint_function(block) is None
    model.gradient_checkpointing_enable({"use_reentrant": False})
    own, calls = checkpoint_function(block), []
    assert own is not None

    def counted(*args: object) -> object:
        calls.append(len(args))
        return own(*args)

    set_checkpoint_function(block, counted)
    model(inputs_embeds=torch.randn(1, 2, 8, requires_grad=True), use_cache=False)
    assert len(calls) == 1


def test_a_model_made_from_a_configuration_attends_by_pytorch() -> None:
    config = small_config()
    config._attn_implementation = "eager"
    assert LlamaModel(config).config._attn_implementation == "eager"
    use_sdpa(config)
    assert LlamaModel(config).config._attn_implementation == "sdpa"


def test_an_adapter_does_not_name_the_folder_of_its_base(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    # As transformers 4 wrote it.
    content = json.loads((tmp_path / "config.json").read_text()) | {
        "_name_or_path": "/home/me/llama"
    }
    (tmp_path / "config.json").write_text(json.dumps(content))

    def base_named(config: LlamaConfig) -> str | None:
        model = get_peft_model(LlamaModel(config), LoraConfig(target_modules=["q_proj"]))
        return model.peft_config["default"].base_model_name_or_path

    config = LlamaConfig.from_pretrained(tmp_path)
    assert base_named(config) == "/home/me/llama"
    forget_origin(config)
    assert not base_named(config)
