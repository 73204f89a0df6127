"""Every bound that a section can judge alone, at the bound and just beyond it."""

import json
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    MixturePart,
    ModelSection,
    RunConfig,
    RunSection,
    ScalingSection,
    TrainSection,
)
from timellama_dist.dlora.settings import LLAMA_LINEARS
from timellama_dist.errors import ConfigError

A = MixturePart(path="a")

REFUSED = [
    ("data", {"context_len": 0}, "data.context_len must be at least 1, got 0"),
    ("data", {"horizon": -3}, "data.horizon must be at least 1, got -3"),
    ("data", {"train_fraction": 0.0}, "data.train_fraction must be in (0, 1], got 0.0"),
    ("data", {"train_fraction": 1.01}, "data.train_fraction must be in (0, 1], got 1.01"),
    (
        "data",
        {"split": (0.7, 0.0, 0.3)},
        "data.split must be three positive numbers, or [0, V, T] rows, got [0.7, 0.0, 0.3]",
    ),
    (
        "data",
        {"split": (0, 0.5, 0.5)},
        "data.split must be three positive numbers, or [0, V, T] rows, got [0, 0.5, 0.5]",
    ),
    ("data", {"mixture": []}, "data.mixture must be at least one data set, got []"),
    ("data", {"mixture": [A, MixturePart()]}, "data.mixture[1].path must be given, got ''"),
    (
        "data",
        {"mixture": [A, MixturePart(path="b", train_fraction=2.0)]},
        "data.mixture[1].train_fraction must be in (0, 1], got 2.0",
    ),
    (
        "data",
        {"mixture": [MixturePart(path="b", split=(1.0, 0.0, 1.0))]},
        "data.mixture[0].split must be three positive numbers, or [0, V, T] rows, got "
        "[1.0, 0.0, 1.0]",
    ),
    (
        "data",
        {"mixture": [MixturePart(path="a", weight=0.0)]},
        "data.mixture[0].weight must be above 0 and finite, got 0.0",
    ),
    (
        "data",
        {"mixture": [MixturePart(path="a", weight=float("inf"))]},
        "data.mixture[0].weight must be above 0 and finite, got inf",
    ),
    (
        "data",
        {"mixture": [A, MixturePart(path="b", weight=2.0)]},
        "data.mixture[1].weight must be given for all parts or for none, for weights are relative "
        "to each other, got 2.0",
    ),
    (
        "data",
        {"mixture": [A], "path": "epf"},
        "data.path must be left out beside data.mixture, whose parts have their own, got 'epf'",
    ),
    (
        "data",
        {"mixture": [A], "train_fraction": 0.5},
        "data.train_fraction must be left out beside data.mixture, whose parts have their own, "
        "got 0.5",
    ),
    ("backbone", {"num_blocks": 0}, "backbone.num_blocks must be at least 1, got 0"),
    ("dlora", {"balance_weight": -0.1}, "dlora.balance_weight must be >= 0, got -0.1"),
    ("model", {"alignment_heads": 0}, "model.alignment_heads must be at least 1, got 0"),
    ("model", {"dropout": -0.1}, "model.dropout must be in [0, 1), got -0.1"),
    ("model", {"dropout": 1.0}, "model.dropout must be in [0, 1), got 1.0"),
    ("train", {"epochs": 0}, "train.epochs must be at least 1, got 0"),
    ("train", {"batch_size": 0}, "train.batch_size must be at least 1, got 0"),
    ("train", {"micro_batch_size": 0}, "train.micro_batch_size must be at least 1, got 0"),
    ("train", {"log_every": 0}, "train.log_every must be at least 1, got 0"),
    ("train", {"max_steps": 0}, "train.max_steps must be at least 1, got 0"),
    ("train", {"validate_every": 0}, "train.validate_every must be at least 1, got 0"),
    ("train", {"save_every": 0}, "train.save_every must be at least 1, got 0"),
    ("train", {"max_skipped_steps": 0}, "train.max_skipped_steps must be at least 1, got 0"),
    ("train", {"rollback_on_spike": 1.0}, "train.rollback_on_spike must be above 1, got 1.0"),
    ("train", {"backoff_steps": -1}, "train.backoff_steps must be >= 0, got -1"),
    ("train", {"weight_decay": -1e-9}, "train.weight_decay must be >= 0, got -1e-09"),
    ("train", {"clip_norm": -1.0}, "train.clip_norm must be >= 0, got -1.0"),
    ("train", {"patience": -1}, "train.patience must be >= 0, got -1"),
    ("train", {"seed": -1}, "train.seed must be >= 0, got -1"),
    ("train", {"seed": 2**63}, f"train.seed must be below 2**63, got {2**63}"),
    ("train", {"learning_rate": 0.0}, "train.learning_rate must be above 0, got 0.0"),
    ("train", {"learning_rate": float("nan")}, "train.learning_rate must be above 0, got nan"),
    ("train", {"warmup_fraction": 1.0}, "train.warmup_fraction must be in [0, 1), got 1.0"),
    ("train", {"warmup_fraction": -0.1}, "train.warmup_fraction must be in [0, 1), got -0.1"),
    (
        "train",
        {"batch_size": 48, "micro_batch_size": 32},
        "train.batch_size must be a multiple of train.micro_batch_size=32, got 48",
    ),
    (
        "scaling",
        {"num_workers": 0},
        "scaling.num_workers must be at least 1, or [least, most], got 0",
    ),
    ("scaling", {"cpus_per_worker": 0.0}, "scaling.cpus_per_worker must be above 0, got 0.0"),
    ("scaling", {"max_failures": -2}, "scaling.max_failures must be >= -1, got -2"),
    ("run", {"keep_checkpoints": 0}, "run.keep_checkpoints must be at least 1, got 0"),
    ("run", {"max_failed_saves": 0}, "run.max_failed_saves must be at least 1, got 0"),
    ("run", {"resume": True}, "run.dir must be given with run.resume, got None"),
]


@pytest.mark.parametrize(("section", "values", "message"), REFUSED)
def test_a_value_beyond_its_bound_is_refused_by_key_bound_and_value(
    section: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        type(getattr(RunConfig(), section))(**values)


@pytest.mark.parametrize(
    "section",
    [
        DataSection(context_len=1, horizon=1, train_fraction=1.0, split=(1.0, 1.0, 1.0)),
        DataSection(split=(0, 1, 1)),
        BackboneSection(num_blocks=1),
        ModelSection(dropout=0.0, alignment_heads=1),
        TrainSection(batch_size=1, micro_batch_size=1, epochs=1, max_steps=1, log_every=1),
        TrainSection(patience=0, clip_norm=0.0, weight_decay=0.0, warmup_fraction=0.0),
        TrainSection(seed=2**63 - 1, validate_every=1),
        TrainSection(save_every=1, max_skipped_steps=1, backoff_steps=0),
        ScalingSection(num_workers=1, max_failures=-1, cpus_per_worker=0.5),
        RunSection(dir="x", resume=True, keep_checkpoints=1, max_failed_saves=1),
    ],
    ids=repr,
)
def test_a_value_at_its_bound_is_accepted(section: Any) -> None:
    assert replace(section) == section


def test_workers_that_cannot_share_the_micro_batches_evenly_are_refused() -> None:
    train = TrainSection(batch_size=64, micro_batch_size=16)
    for num_workers in (1, 2, 4):
        RunConfig(train=train, scaling=ScalingSection(num_workers=num_workers))
    for num_workers in (3, 8):
        with pytest.raises(
            ConfigError,
            match=r"^scaling\.num_workers must be a divisor of the 4 micro-batches of a step "
            rf"\(train\.batch_size=64 / train\.micro_batch_size=16\), got {num_workers}$",
        ):
            RunConfig(train=train, scaling=ScalingSection(num_workers=num_workers))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, list(LLAMA_LINEARS)),
        ([], list(LLAMA_LINEARS)),
        (["up_proj", "self_attn.q_proj"], ["q_proj", "up_proj"]),
    ],
)
def test_linears_with_a_pool_stand_in_the_blocks_order(
    named: list[str] | None, expected: list[str]
) -> None:
    assert DLoraSection(target_modules=named, top_n=2).linears == expected


def test_a_configuration_survives_json_whole() -> None:
    config = RunConfig(
        data=DataSection(split=(8640.0, 2880.0, 2880.0), columns=["a", "b"], prompt='a "b"\nc'),
        train=TrainSection(max_steps=7, learning_rate=1e-5),
        scaling=ScalingSection(use_gpu=False),
        deepspeed="zero1.json",
        run=RunSection(dir="runs/x"),
    )
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_section_is_frozen_and_every_key_has_a_default() -> None:
    config = RunConfig()
    for field in fields(config):
        section = getattr(config, field.name)
        for part in (config, section) if is_dataclass(section) else (config,):
            name = fields(part)[0].name
            with pytest.raises(AttributeError, match="cannot assign to field"):
                setattr(part, name, None)


def test_a_run_over_one_set_is_a_mixture_of_one() -> None:
    alone = DataSection(path="a.csv", prompt="p", split=(6.0, 2.0, 2.0))
    (part,) = alone.parts
    assert part == MixturePart(path="a.csv", prompt="p", split=(6.0, 2.0, 2.0))
    assert DataSection().parts == [MixturePart(path="epf")]
    assert DataSection(mixture=[A]).parts == [A]


def test_every_key_of_a_data_set_is_also_that_of_a_part() -> None:
    keys = {field.name for field in fields(MixturePart)}
    alone = {field.name for field in fields(DataSection)}
    assert alone - keys == {"fit_context", "mixture"}
    assert keys - alone == {"name", "weight"}


def test_data_sets_are_replaced_where_they_stand() -> None:
    filled = MixturePart(path="/x/a.csv", prompt="p", name="a", weight=2.0)
    assert DataSection(path="a", horizon=7).with_parts([filled]) == DataSection(
        path="/x/a.csv", prompt="p", horizon=7
    )
    assert DataSection(mixture=[A], horizon=7).with_parts([filled]) == DataSection(
        mixture=[filled], horizon=7
    )


def test_a_mixture_survives_json_whole() -> None:
    other = MixturePart(path="b", split=(0.5, 0.2, 0.3), columns=["x"], name="other")
    config = RunConfig(data=DataSection(mixture=[A, other]))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("channels", "fitted"),
    [
        (7, (48, 16, 18_724)),
        (64, (48, 16, 2_048)),
        (321, (9, 3, 408)),
        (862, (3, 1, 152)),
        (200_000, (3, 1, 1)),
    ],
)
def test_many_channels_leave_few_windows(channels: int, fitted: tuple[int, int, int]) -> None:
    asked = TrainSection(batch_size=48, micro_batch_size=16, fit_channels=True)
    found = asked.fitted(channels)
    assert (found.batch_size, found.micro_batch_size, found.validate_windows) == fitted
    assert found.fitted(channels) == found
    fixed = replace(asked, fit_channels=False)
    assert fixed.fitted(channels) == fixed
