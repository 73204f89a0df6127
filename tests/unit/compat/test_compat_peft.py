"""PEFT still has what `compat.peft` takes of it."""

import warnings

import peft
import pytest
from torch import nn
from transformers import LlamaConfig, LlamaModel

from timellama_dist.compat.peft import is_targeted, register_method, wrap_with_adapter


def llama() -> LlamaModel:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    # As `compat.transformers.forget_origin` leaves it.
    config._name_or_path = ""
    return LlamaModel(config)


def test_a_registered_method_is_built_by_get_peft_model() -> None:
    tables = (
        peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    )

    class OwnConfig(peft.LoraConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.peft_type = "OWN"

    class OwnModel(peft.tuners.lora.LoraModel):
        pass

    try:
        register_method("OWN", OwnConfig, OwnModel)
        wrapped = peft.get_peft_model(llama(), OwnConfig(target_modules=["q_proj"]))
        assert type(wrapped.base_model) is OwnModel
        assert tables[2]["OWN"] == "lora_"
    finally:
        for table in tables:
            table.pop("OWN", None)


@pytest.mark.parametrize(
    ("targets", "targeted"),
    [(["q_proj"], True), (["proj"], False), (".*q_proj", True), (".*k_proj", False)],
)
def test_targets_are_matched_as_peft_matches_them(targets: list[str] | str, targeted: bool) -> None:
    config = peft.LoraConfig(target_modules=targets)
    name = "layers.0.self_attn.q_proj"
    assert is_targeted(config, name) == targeted
    model = llama()
    if not targeted and isinstance(targets, list):
        with pytest.raises(ValueError, match="not found in the base model"):
            peft.get_peft_model(model, config)
    else:
        peft.get_peft_model(model, config)
        adapted = model.get_submodule(name)
        assert isinstance(adapted, peft.tuners.lora.LoraLayer) == targeted


def test_wrapping_warns_of_nothing() -> None:
    config = peft.LoraConfig(target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = wrap_with_adapter(llama(), config)
    assert isinstance(wrapped.base_model.model.layers[0].self_attn.q_proj, nn.Module)
    # The reason to suppress it is gone as soon as PEFT itself is silent.
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        peft.get_peft_model(llama(), config)
