import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from timellama_dist.config.load import config_from_flat, dump_config, load_config
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError

ROOT = Path(__file__).parents[3]


def load(*argv: str) -> RunConfig:
    return load_config(argv, prog="train.py", description="")


def test_nothing_said_gives_the_defaults() -> None:
    assert load() == RunConfig()


def test_later_files_win_over_earlier_ones_and_flags_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("data: {horizon: 24, context_len: 100}\ntrain: {learning_rate: 1e-3}\n")
    second.write_text("data: {horizon: 48}\n")
    config = load("--config", str(first), "--config", str(second), "--dlora.rank", "8")
    assert (config.data.horizon, config.data.context_len, config.dlora.rank) == (48, 100, 8)
    assert config.train.learning_rate == 0.001
    assert load("--config", str(first), "--data.horizon", "12").data.horizon == 12


def test_a_bare_switch_means_true() -> None:
    assert load("--run.resume", "--run.dir", "x").run.resume
    assert load("--run.dir", "x", "--run.resume").run.resume
    assert not load("--model.alignment", "false").model.alignment


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.pth", "x"], r"^unknown key data\.pth; did you mean data\.path\?$"),
        (["--data.horizon", "x"], r"^data\.horizon must be int, got x$"),
        (["--data.horizon", "0"], r"^data\.horizon must be at least 1, got 0$"),
        (
            ["--backbone.quantization", "int8"],
            r"^backbone\.quantization must be one of 'nf4', 'none', got int8$",
        ),
        (["--config", "/nowhere.yaml"], r"^config: File does not exist: '/nowhere\.yaml'$"),
        (["--run.resume"], r"^run\.dir must be given with run\.resume, got None$"),
        (
            ["--train.batch_size", "33"],
            r"^train\.batch_size must be a multiple of train\.micro_batch_size=32, got 33$",
        ),
        (
            ["--scaling.num_workers", "3"],
            r"^scaling\.num_workers must be a divisor of the 2 micro-batches of a step",
        ),
        (["--train.learning_rate", "0"], r"^train\.learning_rate must be above 0, got 0\.0$"),
        (["--model.dropout", "1"], r"^model\.dropout must be in \[0, 1\), got 1\.0$"),
        (["--data.train_fraction", "0"], r"^data\.train_fraction must be in \(0, 1\], got 0\.0$"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*argv)


def test_an_unknown_key_in_a_file_is_refused_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {horzon: 3}\n")
    with pytest.raises(ConfigError, match=r"^unknown key data\.horzon; did you mean data\.horizon"):
        load("--config", str(file))


def test_the_resolved_file_reproduces_the_run(tmp_path: Path) -> None:
    config = load("--data.split", "[8640, 2880, 2880]", "--dlora.gate", "binary")
    dump_config(config, tmp_path / "config.yaml")
    assert load("--config", str(tmp_path / "config.yaml")) == config


def test_workers_rebuild_what_was_sent_as_plain_values() -> None:
    config = load("--data.split", "[0.6, 0.2, 0.2]")
    values: dict[str, Any] = config.to_dict()
    values["data"]["split"] = list(values["data"]["split"])  # what JSON makes of a tuple
    assert RunConfig.from_dict(values) == config


def test_dotted_keys_change_a_base_configuration() -> None:
    base = load("--data.horizon", "24")
    changed = config_from_flat({"dlora.rank": 8, "train.seed": 3}, base)
    assert (changed.dlora.rank, changed.train.seed, changed.data.horizon) == (8, 3, 24)
    with pytest.raises(ConfigError, match=r"dlora\.rnk"):
        config_from_flat({"dlora.rnk": 8})


@pytest.mark.parametrize("file", sorted((ROOT / "ray_jobs" / "configs").glob("*.yaml")), ids=str)
def test_every_shipped_configuration_is_valid_and_says_how_to_run_it(file: Path) -> None:
    load("--config", str(file))
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any("python ray_jobs/train.py" in line and file.name in line for line in head)


def test_help_teaches_every_key_and_exits_0() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "ray_jobs/train.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    for key in ("--data.path", "--dlora.num_experts", "--run.resume", "--deepspeed"):
        assert key in done.stdout
    assert "Experts per linear module" in done.stdout
