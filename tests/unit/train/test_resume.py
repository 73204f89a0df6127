"""What a resumed run may change."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.runs import plain, plain_run
from timellama_dist.cli.train import read_arguments
from timellama_dist.config.load import dump_config
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ScalingSection,
    TrainSection,
)
from timellama_dist.errors import ConfigError
from timellama_dist.train.resume import check_resumed


def test_workers_steps_and_rates_may_change() -> None:
    check_resumed(
        plain_run(),
        plain_run(
            train=plain(TrainSection, max_steps=20, learning_rate=1e-5, micro_batch_size=16),
            scaling=ScalingSection(num_workers=1),
            deepspeed="ds_configs/zero1.json",
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": plain(DataSection, horizon=24)},
            "data.horizon cannot be changed in a resumed run: it ",
        ),
        ({"dlora": DLoraSection(rank=8)}, "dlora.rank cannot be changed in a resumed run: it was "),
        (
            {"train": plain(TrainSection, seed=1)},
            "train.seed cannot be changed in a resumed run: it was ",
        ),
    ],
)
def test_what_makes_it_another_run_may_not(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check_resumed(plain_run(), replace(plain_run(), **change))


def test_a_path_may_be_given_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv", "llama.gguf", "other.gguf"):
        (tmp_path / name).touch()
    begun = plain_run(
        data=plain(DataSection, path=str(tmp_path / "a.csv")),
        backbone=plain(BackboneSection, name=str(tmp_path / "llama.gguf")),
    )
    dump_config(begun, tmp_path / "config.yaml")
    words = ["--run.dir", ".", "--run.resume"]
    words += ["--data.path", "a.csv", "--backbone.name", "llama.gguf"]
    resumed = read_arguments(words)
    assert (resumed.data, resumed.backbone) == (begun.data, begun.backbone)
    with pytest.raises(ConfigError, match=r"^data\.path cannot be changed"):
        read_arguments([*words, "--data.path", "b.csv"])
    with pytest.raises(ConfigError, match=r"^backbone\.name cannot be changed"):
        read_arguments([*words, "--backbone.name", "other.gguf"])


def test_what_is_given_again_goes_with_what_the_run_was_begun_with(tmp_path: Path) -> None:
    begun = plain_run(train=plain(TrainSection, batch_size=100, micro_batch_size=10))
    dump_config(begun, tmp_path / "config.yaml")
    words = ["--run.dir", str(tmp_path), "--run.resume"]
    # 50 is none of the default batch size.
    resumed = read_arguments([*words, "--train.micro_batch_size", "50"])
    assert (resumed.train.batch_size, resumed.train.micro_batch_size) == (100, 50)
    with pytest.raises(ConfigError, match=r"^train\.batch_size cannot be changed in a resumed run"):
        read_arguments([*words, "--train.batch_size", "200"])
    with pytest.raises(ConfigError, match=r"train\.micro_batch"):
        read_arguments([*words, "--train.micro_batches", "50"])
