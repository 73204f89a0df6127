"""Configurations that an older version stored mean what they meant then."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.runs import PLAIN
from timellama_dist.config.former import SECTIONS
from timellama_dist.config.load import config_from_flat, dump_config, load_begun, load_config
from timellama_dist.config.schema import DataSection, MixturePart, RunConfig
from timellama_dist.errors import ConfigError

FORMER: dict[str, Any] = {
    "data.horizon": 96,
    "data.fit_context": False,
    "data.duplicates": "refuse",
    "data.gaps": "refuse",
    "data.missing": "refuse",
    "data.short_series": "skip",
    "backbone.num_blocks": 4,
    "backbone.attention": "full",
    "model.shortcut": "none",
    "model.centre": "mean",
    "model.dropout": 0.1,
    "train.loss": "mse",
    "train.learning_rate": 1e-3,
    "train.warmup_fraction": 0.05,
    "train.batch_size": 64,
    "train.micro_batch_size": 32,
    "train.fit_channels": False,
    "train.epochs": 2,
    "train.max_steps": None,
    "train.validate_every": None,
    "train.patience": 3,
    "train.average_steps": 0,
}
"""What these keys did in version 0.1 where nothing was said of them."""


def without(values: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    left = {name: dict(section) for name, section in values.items() if isinstance(section, dict)}
    for key in keys:
        section, _, leaf = key.partition(".")
        del left[section][leaf]
    return values | left


def test_every_default_that_changed_has_a_former_one() -> None:
    assert PLAIN == FORMER
    now = RunConfig().to_dict()
    for name, section in SECTIONS.items():
        for key, value in section.items():
            assert now[name][key] != value


def test_a_key_that_a_stored_configuration_lacks_has_its_former_default() -> None:
    stored = without(RunConfig().to_dict(), FORMER)
    assert RunConfig.from_dict(stored) == config_from_flat(FORMER)
    assert RunConfig.from_dict({}) == config_from_flat(FORMER)


def test_a_key_that_it_holds_is_kept() -> None:
    assert RunConfig.from_dict(RunConfig().to_dict()) == RunConfig()


def test_a_part_of_a_stored_mixture_refuses_what_it_refused() -> None:
    part = RunConfig.from_dict({"data": {"mixture": [{"path": "a"}]}}).data.parts[0]
    assert part == MixturePart(
        path="a", duplicates="refuse", gaps="refuse", missing="refuse", short_series="skip"
    )


def test_a_run_directory_of_before_is_gone_on_with_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(without(RunConfig().to_dict(), FORMER)))
    words = {"prog": "", "description": ""}
    assert load_begun(str(file), [], **words) == config_from_flat(FORMER)
    changed = load_begun(str(file), ["--train.max_steps", "7"], **words)
    assert changed == config_from_flat(FORMER | {"train.max_steps": 7})


def test_a_resolved_mixture_of_before_still_reproduces_its_run(tmp_path: Path) -> None:
    parts = [MixturePart(path="a", gaps="refuse"), MixturePart(path="b")]
    before = RunConfig(
        data=DataSection(
            mixture=parts, duplicates="refuse", gaps="refuse", missing="refuse", short_series="skip"
        )
    )
    dump_config(before, tmp_path / "config.yaml")
    words = ["--config", str(tmp_path / "config.yaml")]
    assert load_config(words, prog="", description="") == before
    assert RunConfig.from_dict(before.to_dict()) == before
    with pytest.raises(ConfigError, match=r"^data\.duplicates must be left out beside"):
        replace(before.data, duplicates="first")
