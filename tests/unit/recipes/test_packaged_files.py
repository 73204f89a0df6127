"""Recipes, searches and policies by name, and the paths that scripts of version 0.1 have."""

import subprocess
from pathlib import Path

import pytest

from timellama_dist.errors import ConfigError
from timellama_dist.recipes import (
    POLICIES,
    RECIPES,
    SEARCHES,
    Shelf,
    policy_name,
    summary,
    with_paths,
)

ROOT = Path(__file__).parents[3]
ALL = [(shelf, name) for shelf in (RECIPES, SEARCHES, POLICIES) for name in shelf.files]


@pytest.mark.parametrize(("shelf", "name"), ALL, ids=[name for _, name in ALL])
def test_a_name_and_its_path_of_version_0_1_find_the_packaged_file(
    shelf: Shelf, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shelf.find(name, "--key") == shelf.files[name]
    assert capsys.readouterr().err == ""
    former = f"{tmp_path}/{shelf.former}/{name}{shelf.suffix}"
    assert shelf.find(former, "--key") == shelf.files[name]
    assert capsys.readouterr().err == f"note: {former} is packaged now: --key {name}\n"


def test_every_kind_of_file_is_packaged() -> None:
    assert {"etth1", "generic", "m4_weekly"} <= RECIPES.files.keys()
    assert SEARCHES.files.keys() == {"pareto", "population", "small"}
    assert POLICIES.files.keys() == {"zero1", "zero2", "zero3", "zero3_offload"}


def test_a_word_with_a_suffix_or_a_separator_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("etth1.yaml", "./etth1", "configs/etth1.yaml"):
        assert RECIPES.find(word, "--config") == Path(word)
    (tmp_path / "ray_jobs" / "configs").mkdir(parents=True)
    own = Path("ray_jobs/configs/etth1.yaml")
    own.touch()
    assert RECIPES.find(str(own), "--config") == own
    # Even where a file has that name.
    Path("etth1").touch()
    assert RECIPES.find("etth1", "--config") == RECIPES.files["etth1"]


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"^--config must .* got 'ettth1'; did you mean etth1\?"):
        with_paths(["--config", "ettth1"])
    with pytest.raises(ConfigError, match=r"\(zero1, .*\), got 'mine'; .* is \./mine$"):
        POLICIES.find("mine", "deepspeed")


def test_only_the_words_after_these_options_are_names() -> None:
    words = ["--config", "etth1", "--search=small", "--data.path", "etth1", "--config", "./a.yaml"]
    assert with_paths(words) == [
        *("--config", str(RECIPES.files["etth1"])),
        f"--search={SEARCHES.files['small']}",
        *("--data.path", "etth1", "--config", "./a.yaml"),
    ]


def test_a_run_names_a_packaged_policy_and_has_the_path_of_another(tmp_path: Path) -> None:
    assert policy_name(None) is None
    assert policy_name("zero2") == "zero2"
    # Of a checkout, and of a job's copy of one.
    assert policy_name(str(ROOT / "ds_configs" / "zero2.json")) == "zero2"
    copy = tmp_path / "ds_configs" / "zero2.json"
    copy.parent.mkdir()
    copy.write_bytes(POLICIES.files["zero2"].read_bytes())
    assert policy_name(str(copy)) == "zero2"
    copy.write_text("{}")
    assert policy_name(str(copy)) == str(copy.resolve())


def test_there_is_one_copy_of_each() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("no repository")
    for shelf, name in ALL:
        same = [file for file in tracked if file.endswith(f"/{name}{shelf.suffix}")]
        assert same == [str(shelf.files[name].relative_to(ROOT))]


def test_a_summary_is_the_first_sentence_of_the_opening_comment(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# Hourly loads of\n# my town: 3 meters. Nothing else.\n#\n#   a command\nx: 1\n"
    )
    assert summary(file) == "Hourly loads of my town"
    for shelf in (RECIPES, SEARCHES):
        assert all(5 < len(summary(packaged)) < 140 for packaged in shelf.files.values())
