"""The shipped recipes say what they are meant to."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from timellama_dist.config import former
from timellama_dist.config.load import load_config
from timellama_dist.config.schema import RunConfig

RECIPES = Path(__file__).parents[3] / "timellama_dist" / "recipes"
CHANGED = {f"{section}.{key}" for section, values in former.SECTIONS.items() for key in values}
"""Keys whose default is another since version 0.2."""


def recipe(name: str) -> RunConfig:
    return load_config(["--config", str(RECIPES / f"{name}.yaml")], prog="", description="")


def flat(values: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for name in values for key, value in values[name].items()}


def given(name: str) -> dict[str, Any]:
    return flat(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))


def test_the_generic_recipe_says_the_defaults_in_so_many_words() -> None:
    assert recipe("generic") == RunConfig()
    decided = {"data.fit_context", "data.missing", "model.shortcut", "train.max_steps"}
    assert decided <= given("generic").keys()


def test_the_recipe_of_the_paper_is_the_papers() -> None:
    config = recipe("paper").to_dict()
    values = flat({name: part for name, part in config.items() if isinstance(part, dict)})
    table_7 = {
        "data.context_len": 512,
        "data.fit_context": False,
        "backbone.num_blocks": 8,
        "backbone.attention": "causal",
        "dlora.num_experts": 1,
        "dlora.rank": 8,
        "dlora.top_n": 4,
        "dlora.gate": "binary",
        "dlora.pooling": "last",
        "model.alignment_heads": 8,
        "model.shortcut": "none",
        "model.centre": "mean",
        "train.loss": "mse",
        "train.learning_rate": 1e-3,
        "train.batch_size": 16,
        "train.epochs": 20,
        "train.max_steps": None,
        "train.average_steps": 0,
    }
    assert {key: values[key] for key in table_7} == table_7


@pytest.mark.parametrize("name", ["etth1", "ettm1", "illness", "weather", "m4_hourly", "m4_weekly"])
def test_a_recipe_of_published_figures_follows_no_default_that_changed(name: str) -> None:
    config, keys = recipe(name), given(name)
    assert not config.data.fit_context
    assert not config.train.fit_channels
    assert (config.data.duplicates, config.data.gaps, config.data.missing) == ("refuse",) * 3
    assert CHANGED - keys.keys() == set()
