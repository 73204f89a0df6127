import json
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest

from timellama_dist.config.load import config_from_flat, dump_config, load_config
from timellama_dist.config.reference import describe_schema
from timellama_dist.config.schema import MixturePart, RunConfig
from timellama_dist.errors import ConfigError

ROOT = Path(__file__).parents[3]
SECTIONS = ("data", "backbone", "dlora", "model", "train", "scaling", "run", "tracking")


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


def test_what_stands_later_on_the_command_line_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("data: {horizon: 24, context_len: 100}\n")
    second.write_text("data.context_len: 7\n")
    words = ["--config", str(first), "--data.horizon", "12", "--config", str(second)]
    assert load(*words).data == replace(RunConfig().data, horizon=12, context_len=7)
    assert load("--data.horizon", "12", "--config", str(first)).data.horizon == 24
    assert load("--data.horizon", "12", "--data.horizon=9").data.horizon == 9


def test_a_section_is_merged_not_replaced() -> None:
    config = load("--data.horizon", "12", "--data", "{context_len: 7}")
    assert (config.data.horizon, config.data.context_len) == (12, 7)
    base = config_from_flat({"dlora.rank": 8})
    assert config_from_flat({"dlora": {"alpha": 3}}, base).dlora == replace(base.dlora, alpha=3.0)


@pytest.mark.parametrize(
    ("word", "value"),
    [("null", None), ("true", "true"), ("3", "3"), ("1e-3", "1e-3"), ("a: b", "a: b"), ("", "")],
)
def test_text_on_the_command_line_stays_text_but_for_null(word: str, value: str | None) -> None:
    assert load("--data.prompt", word).data.prompt == value


def test_an_error_carries_key_bound_and_value() -> None:
    with pytest.raises(ConfigError, match=r"got x$") as caught:
        load("--data.mixture", "[{path: a}, {path: b, weight: x}]")
    error = caught.value
    assert (error.key, error.must) == ("data.mixture[1].weight", "be float or null")
    assert error.got == "x"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.key, again.got) == (str(error), error.key, "x")
    with pytest.raises(ConfigError, match=r"got 0$") as caught:
        load("--data.horizon", "0")
    assert (caught.value.key, caught.value.got) == ("data.horizon", 0)


def test_the_printed_configuration_is_what_is_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        load("--data.horizon", "12", "--print_config")
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert load("--config", str(file)) == load("--data.horizon", "12")


def test_a_bare_switch_means_true() -> None:
    assert load("--run.resume", "--run.dir", "x").run.resume
    assert load("--run.dir", "x", "--run.resume").run.resume
    assert load("--scaling.use_gpu", "--run.dir", "x").scaling.use_gpu is True
    assert not load("--model.alignment", "false").model.alignment
    assert load("--run.resume", "false", "--run.dir", "x").run.resume is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.pth", "x"], r"^unknown key data\.pth; did you mean data\.path\?$"),
        (["--data.hor", "3"], r"^unknown key data\.hor; did you mean data\.horizon\?$"),
        (["--seed", "3"], r"^unknown key seed; did you mean train\.seed\?$"),
        (
            ["--train.dropout", "0"],
            r"^unknown key train\.dropout; did you mean dlora\.dropout or model\.dropout\?$",
        ),
        (["--qqq", "3"], r"^unknown key qqq; see --help$"),
        (["--data.horzon=3"], r"^unknown key data\.horzon; did you mean data\.horizon\?$"),
        (["--data.path"], r"^data\.path must be given a value$"),
        (["--config"], r"^config must be given a value$"),
        (["x"], r"^unrecognized arguments: x; keys are given as --KEY VALUE$"),
        (["--data.horizon", "3", "4"], r"^unrecognized arguments: 4; keys are given as"),
        (["--data.horizon", "null"], r"^data\.horizon must be given a value, got null$"),
        (["--data", "3"], r"^data must be a section of keys, got 3$"),
        (["--scaling.num_workers", "x"], r"must be int or tuple\[int, int\], got x$"),
        (["--data.series", "x"], r"must be one of 'separate', 'channels' or null, got x$"),
        (["--data.split", "[0.7]"], r"^data\.split must be tuple\[.*\] or null, got \[0\.7\]$"),
        (["--data.columns", "a"], r"^data\.columns must be list\[str\] or null, got a$"),
        (["--data.horizon", "2.0"], r"^data\.horizon must be int, got 2\.0$"),
        (["--train.clip_norm", "nan"], r"^train\.clip_norm must be float, got nan$"),
        (["--data.horizon", "x"], r"^data\.horizon must be int, got x$"),
        (["--data.horizon", "0"], r"^data\.horizon must be at least 1, got 0$"),
        (
            ["--backbone.quantization", "int8"],
            r"^backbone\.quantization must be one of 'nf4', 'none', got int8$",
        ),
        (["--config", "/nowhere.yaml"], r"^config: File does not exist: '/nowhere\.yaml'$"),
        (["--run.resume"], r"^run\.dir must be given with run\.resume, got None$"),
        (
            ["--train.micro_batch_size", "32", "--train.batch_size", "33"],
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo: 3", r"^unknown key foo; see --help$"),
        ("seed: 3", r"^unknown key seed; did you mean train\.seed\?$"),
        ("data: null", r"^data must be a section of keys, got None$"),
        ("data: 3", r"^data must be a section of keys, got 3$"),
        ("data: {horizon: }", r"^data\.horizon must be given a value, got null$"),
        ("backbone: {name: null}", r"^backbone\.name must be given a value, got null$"),
        ("deepspeed: 3", r"^deepspeed must be str or null, got 3$"),
        ("train: {learning_rate: fast}", r"^train\.learning_rate must be float, got fast$"),
        ("data: [", r"^Problems parsing config .*run\.yaml, line 2: expected the node content"),
        ("data: {horizon: 1}\n\ndata: {path: x}", r"run\.yaml, line 3: key 'data' is given twice$"),
        ("data:\n  path: x\n  path: y", r"run\.yaml, line 3: key 'path' is given twice$"),
        ('data: {prompt: "\x01"}', r"run\.yaml, line 1: special characters are not allowed$"),
        ("- 3", r"^config: .*run\.yaml, line 1: must hold a mapping of keys, got a list$"),
        ("# nothing", r"^config: .*run\.yaml, line 1: must hold a mapping of keys, got nothing$"),
        ("3: x", r"^unknown key 3; see --help$"),
    ],
)
def test_a_file_that_says_nonsense_is_refused_by_key(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        load("--config", str(file))


def test_a_file_that_is_no_text_is_refused_by_name_and_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"data:\n  path: \xff\n")
    with pytest.raises(ConfigError, match=r"run\.yaml, line 2: not text in UTF-8$"):
        load("--config", str(file))
    with pytest.raises(ConfigError, match=r"^config: cannot read '.*': Is a directory$"):
        load("--config", str(tmp_path))


def test_null_is_a_value_where_the_schema_says_so(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("deepspeed: null\ntrain: {max_steps: null}\n")
    config = RunConfig()
    assert load("--config", str(file)) == replace(
        config, train=replace(config.train, max_steps=None)
    )


@pytest.mark.parametrize("number", ["1e-3", "1.e-3", "0.001", "1E-03"])
def test_a_number_in_yaml_is_a_number_however_it_is_written(number: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"train: {{learning_rate: {number}}}\n")
    found = load("--config", str(file)).train.learning_rate
    assert (type(found), found) == (float, 0.001)


def test_every_key_set_to_something_else_survives_the_resolved_file(tmp_path: Path) -> None:
    config = config_from_flat(
        {
            "data.path": "null",
            "data.columns": ["1", "true", "a: b"],
            "data.prompt": "two\nlines: # no comment",
            "data.train_fraction": 0.05,
            "dlora.target_modules": ["q_proj"],
            "dlora.top_n": 2,
            "dlora.balance_weight": 1e-5,
            "train.max_steps": 3,
            "train.precision": "bf16",
            "scaling.use_gpu": False,
            "deepspeed": "ds_configs/zero1.json",
            "run.dir": "runs/1",
        }
    )
    dump_config(config, tmp_path / "config.yaml")
    assert load("--config", str(tmp_path / "config.yaml")) == config


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dlora.rank.x": 8}, r"^unknown key dlora\.rank\.x; did you mean dlora\.rank\?$"),
        ({"dlora": 8}, r"^dlora must be a section of keys, got 8$"),
        ({"foo.bar": 1}, r"^unknown key foo\.bar; see --help$"),
        ({"dlora.rank": 8.5}, r"^dlora\.rank must be int, got 8\.5$"),
        ({"data.horizon": None}, r"^data\.horizon must be given a value, got null$"),
        ({"train.batch_size": 33}, r"^train\.batch_size must be a multiple of"),
    ],
)
def test_bad_dotted_keys_are_refused_as_flags_are(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_flat(values)


def test_dotted_keys_may_change_together_what_only_fits_together() -> None:
    changed = config_from_flat({"train.batch_size": 48, "train.micro_batch_size": 24})
    assert (changed.train.batch_size, changed.train.micro_batch_size) == (48, 24)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "timellama_dist" / "recipes").glob("*.yaml")), ids=str
)
def test_every_shipped_configuration_is_valid_and_says_how_to_run_it(file: Path) -> None:
    load("--config", str(file))
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"timellama train --config {file.stem}" in line for line in head)


def test_help_teaches_every_key_and_exits_0() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "ray_jobs/train.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    sections = RunConfig().to_dict()
    keys = [
        f"--{name}.{key}"
        for name, section in sections.items()
        if isinstance(section, dict)
        for key in section
    ]
    assert len(keys) > 50
    assert [key for key in ("--config", "--deepspeed", *keys) if key not in done.stdout] == []
    assert "Experts per linear module" in done.stdout


def test_help_opens_with_the_description_and_one_line_of_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        load_config(["--help"], prog="timellama train", description="Train.\n\n  an example %s")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "Train.",
        "",
        "  an example %s",
        "",
        "usage: timellama train [--config FILE] [--KEY VALUE ...]",
    ]
    assert "backbone: The frozen LLaMA." in lines
    number = lines.index("  --backbone.quantization nf4|none")
    assert lines[number + 1].startswith("        nf4: 4 bits with double quantisation")
    assert lines[number + 1].endswith("(default: nf4)")
    assert max(map(len, lines)) <= 100


def test_every_key_of_the_schema_is_explained_under_its_section() -> None:
    sections = describe_schema(RunConfig)
    assert [section.name for section in sections] == ["", *SECTIONS]
    assert all(section.title for section in sections)
    assert [key.key for section in sections for key in section.keys if not key.text] == []
    values = RunConfig().to_dict()
    for section in sections:
        own = values[section.name] if section.name else values
        for key in section.keys:
            assert key.default == own[key.key.rpartition(".")[2]]


def test_reading_the_schema_needs_neither_pydantic_nor_yaml() -> None:
    code = "import sys, timellama_dist.config.schema as s; s.RunConfig(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "yaml", "torch", "ray", "pandas"} & set(done.stdout.split())


README = (ROOT / "README.md").read_text(encoding="utf-8")
MIXTURE = """
data:
  horizon: 24
  mixture:
    - {path: a.csv, weight: 1}
    - {path: b, name: other, weight: 2.5e0, split: [80, 10, 10], columns: ["1", x]}
"""


def test_a_mixture_is_read_from_yaml_and_from_the_command_line_alike(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(MIXTURE)
    config = load("--config", str(file))
    assert config.data.mixture == [
        MixturePart(path="a.csv", weight=1.0),
        MixturePart(path="b", name="other", weight=2.5, split=(80, 10, 10), columns=["1", "x"]),
    ]
    words = json.dumps([asdict(part) for part in config.data.parts])
    assert load("--data.mixture", words, "--data.horizon", "24") == config
    dump_config(config, tmp_path / "config.yaml")
    assert load("--config", str(tmp_path / "config.yaml")) == config
    assert config_from_flat({"train.seed": 0}, config) == config


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("3", r"^data\.mixture must be list\[MixturePart\] or null, got 3$"),
        ("[{path: a}, 3]", r"^data\.mixture\[1\] must be a section of keys, got 3$"),
        (
            "[{path: a}, {path: b, weight: x}]",
            r"^data\.mixture\[1\]\.weight must be float or null, got x$",
        ),
        (
            "[{path: a}, {path: b, split: [1, 2]}]",
            r"^data\.mixture\[1\]\.split must be tuple\[.*\] or null, got \[1, 2\]$",
        ),
        (
            "[{path: a, timestamps: no}]",
            r"^data\.mixture\[0\]\.timestamps must be one of 'check', 'ignore', got False$",
        ),
        (
            "[{path: a, timestamps: }]",
            r"^data\.mixture\[0\]\.timestamps must be given a value, got null$",
        ),
        (
            "[{path: a}, {path: b, wieght: 1}]",
            r"^unknown key data\.mixture\[1\]\.wieght; did you mean data\.mixture\[1\]\.weight\?$",
        ),
        ("[{weight: 3}]", r"^data\.mixture\[0\]\.path must be given, got ''$"),
        ("[{path: a}, {path: b, weight: 0}]", r"^data\.mixture\[1\]\.weight must be above 0"),
    ],
)
def test_a_bad_part_of_a_mixture_is_refused_by_its_key(
    mixture: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{mixture: {mixture}}}\n")
    with pytest.raises(ConfigError, match=message):
        load("--config", str(file))


def test_a_configuration_is_replaced_whole_or_not_at_all(small_disk: Path) -> None:
    path = small_disk / "config.yaml"
    dump_config(RunConfig(), path)
    before = path.read_text()
    (small_disk / "filling").write_bytes(bytes(disk_usage(small_disk).free))
    with pytest.raises(OSError, match="No space left on device"):
        dump_config(RunConfig(), path)
    assert path.read_text() == before
