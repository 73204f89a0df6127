"""What `timellama tune` is told, and what a resumed search may be told."""

from pathlib import Path

import pytest

from timellama_dist.cli.tune import read_arguments
from timellama_dist.config.load import dump_config, dump_settings
from timellama_dist.errors import ConfigError
from timellama_dist.recipes import SEARCHES
from timellama_dist.tune.files import BASE, SEARCH, load_search

SPACE = "space: {dlora.rank: {choice: [2, 4]}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def begun(file: Path, tmp_path: Path) -> Path:
    """A search's directory, as it is once it has begun."""
    search, base = read_arguments(["--search", str(file), "--train.seed", "3"])
    run_dir = tmp_path / "search"
    run_dir.mkdir()
    dump_config(base, run_dir / BASE)
    dump_settings(search, run_dir / SEARCH)
    return run_dir


def test_a_search_file_and_keys_of_a_run_are_read(file: Path) -> None:
    search, base = read_arguments(["--search", str(file), "--train.seed", "3"])
    assert search.distributions["dlora.rank"].values == (2, 4)
    assert base.train.seed == 3
    with pytest.raises(ConfigError, match=r"^--search must name a YAML file"):
        read_arguments(["--search", "nowhere.yaml"])


def test_a_search_is_the_small_one_unless_it_is_named() -> None:
    small, pareto = (load_search(SEARCHES.files[name]) for name in ("small", "pareto"))
    assert read_arguments([])[0] == small
    assert read_arguments(["--search", "pareto"])[0] == pareto


def test_a_resumed_search_is_what_it_was_begun_with(begun: Path, file: Path) -> None:
    again = ["--run.dir", str(begun), "--run.resume"]
    search, base = read_arguments(again)
    assert search == load_search(file)
    assert base.train.seed == 3
    assert base.run.resume
    assert read_arguments([*again, "--search", str(file)]) == (search, base)


def test_a_resumed_search_cannot_become_another(begun: Path, tmp_path: Path) -> None:
    again = ["--run.dir", str(begun), "--run.resume"]
    with pytest.raises(ConfigError, match=r"goes on with the configuration it was begun with"):
        read_arguments([*again, "--train.seed", "4"])
    other = tmp_path / "other.yaml"
    other.write_text(SPACE + "seed: 7\n")
    with pytest.raises(ConfigError, match=r"^--search cannot be changed in a resumed search"):
        read_arguments([*again, "--search", str(other)])
    with pytest.raises(ConfigError, match=r"does not exist: there is no search here$"):
        read_arguments(["--run.dir", str(tmp_path / "none"), "--run.resume"])
