"""`timellama prepare`: dotted keys, and the options of version 0.1."""

import pytest

from timellama_dist.cli.prepare import read_arguments
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.errors import ConfigError

KEYS = {
    "--data.layout": "long",
    "--data.series": "channels",
    "--data.timestamps": "check",
    "--data.duplicates": "last",
    "--data.gaps": "reindex",
    "--data.missing": "mask",
    "--data.time_zone": "Europe/Paris",
    "--data.frequency": "h",
    "--data.start": "2001-01-01",
    "--data.split_by": "time",
    "--data.name": "shops",
    "--data.prompt": "sales of shops",
    "--rows_per_group": "64",
}


def former(key: str) -> str:
    return key.replace("--data.", "--").replace("_", "-")


def test_options_of_version_0_1_mean_the_same_and_one_note_names_the_new(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for pair in KEYS.items() for word in pair]
    many = ["--data.columns", "a", "b", "--data.split", "0", "48", "48.0", "--input", "x", "2024"]
    config = read_arguments([*words, *many, "--validate_only"])
    assert capsys.readouterr().err == ""
    assert config.input == ["x", "2024"]
    assert config.data.table_options == TableOptions(
        layout="long",
        series="channels",
        columns=("a", "b"),
        duplicates="last",
        gaps="reindex",
        missing="mask",
        time_zone="Europe/Paris",
        frequency="h",
        start="2001-01-01",
    )
    options = config.prepare_options
    assert (options.split, options.rows_per_group) == ((0, 48, 48), 64)
    assert (options.name, options.prompt) == ("shops", "sales of shops")

    old_words = [former(word) if word.startswith("--") else word for word in words]
    old_many = ["--columns", "a", "b", "--split", "0", "48", "48", "--input", "x", "2024"]
    assert read_arguments([*old_words, *old_many, "--validate-only"]) == config
    note = capsys.readouterr().err
    assert note.startswith("note: options have new names: --layout is --data.layout, ")
    assert "--validate-only is --validate_only" in note
    assert note.count("\n") == 1


def test_a_list_may_be_one_word_as_for_other_commands() -> None:
    words = ["--input=[a.csv,b.csv]", "--data.split", "[0.6,0.2,0.2]", "--output=out"]
    config = read_arguments(words)
    assert config.input == ["a.csv", "b.csv"]
    assert config.prepare_options.split == (0.6, 0.2, 0.2)
    assert config.output == "out"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"^input must be given"),
        (["--input", "a"], r"^give either output, .* or validate_only"),
        (["--input", "a", "--output", "b", "--validate_only"], r"^give either output"),
        (["--input", "a", "--output", "b", "--gaps", "fill"], r"^data\.gaps must be one of"),
        (["--input", "a", "--output", "b", "--data.gap", "fill"], r"^unknown key data\.gap"),
        (["--input", "a", "--output", "b", "--split", "a", "b", "c"], r"^data\.split must be"),
        (["--input", "a", "--output", "b", "--rows_per_group", "0"], r"^rows_per_group must be at"),
    ],
)
def test_a_mistake_is_named_by_its_key(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_arguments(words)
