"""The configuration refuses what cannot run and survives PEFT's adapter_config.json."""

import json
from dataclasses import fields

import peft
import pytest

from timellama_dist.dlora import DLoraConfig, register_with_peft
from timellama_dist.dlora.settings import DLoraSection
from timellama_dist.errors import ConfigError


def test_top_n_above_the_block_pool_is_refused():
    message = r"dlora\.top_n must be between 1 and 28 \(7 modules x dlora\.num_experts=4\), got 29"
    with pytest.raises(ConfigError, match=message):
        DLoraConfig(num_experts=4, top_n=29)


def test_top_n_above_a_module_pool_is_refused_with_scope_module():
    message = r"dlora\.top_n must be between 1 and 4 \(dlora\.num_experts=4\), got 5"
    with pytest.raises(ConfigError, match=message):
        DLoraConfig(scope="module", num_experts=4, top_n=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_n": 0}, r"dlora\.top_n must be between 1 and 28"),
        ({"top_n": 0, "target_modules": ".*_proj"}, r"dlora\.top_n must be at least 1, got 0"),
        ({"num_experts": 0}, r"dlora\.num_experts must be at least 1, got 0"),
        ({"rank": 0}, r"dlora\.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, r"dlora\.alpha must be above 0, got 0\.0"),
        ({"dropout": 1.0}, r"dlora\.dropout must be at least 0 and below 1, got 1\.0"),
        ({"scope": "model"}, r"dlora\.scope must be one of block, module, got 'model'"),
        ({"gate": "soft"}, r"dlora\.gate must be one of probability, straight_through, binary"),
        ({"pooling": "max"}, r"dlora\.pooling must be one of last, mean, attention, got 'max'"),
        ({"router_activation": "silu"}, r"dlora\.router_activation must be one of gelu, relu"),
        ({"target_modules": "all-linear"}, r"got PEFT's shorthand 'all-linear'"),
        ({"target_modules": []}, r"dlora\.target_modules must name at least one linear"),
    ],
)
def test_a_value_out_of_range_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        DLoraConfig(**values)


def test_the_configuration_survives_adapter_config_json(tmp_path):
    config = DLoraConfig(
        num_experts=2,
        rank=3,
        alpha=5.0,
        dropout=0.25,
        top_n=2,
        scope="module",
        gate="straight_through",
        pooling="attention",
        router_activation="tanh",
        target_modules=["q_proj", "up_proj"],
    )
    config.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "DLORA"
    assert peft.PeftConfig.from_pretrained(str(tmp_path)) == config


def test_registering_twice_changes_nothing():
    tables = (
        peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    )
    before = [dict(table) for table in tables]
    register_with_peft()
    assert [dict(table) for table in tables] == before
    assert before[2]["DLORA"] == "dlora_"


def test_its_defaults_are_those_of_the_section():
    adapter, section = DLoraConfig(), DLoraSection()
    shared = {field.name for field in fields(section)} & set(vars(adapter))
    assert len(shared) == 10
    ours = {name: getattr(section, name) for name in shared} | {"target_modules": section.targets}
    assert {name: getattr(adapter, name) for name in shared} == ours
