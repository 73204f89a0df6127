"""What a search file may say."""

from pathlib import Path
from typing import Any

import pytest

from timellama_dist.config.load import dump_settings
from timellama_dist.errors import ConfigError
from timellama_dist.tune.files import load_search
from timellama_dist.tune.settings import Distribution, SearchConfig

RANK = {"dlora.rank": {"choice": [2, 4]}}
RATE = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}


def test_a_search_file_is_read_and_written_alike(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "space:\n"
        "  dlora.rank: {choice: [2, 4]}\n"
        "  train.learning_rate: {loguniform: [1e-4, 1e-2]}\n"
        "  train.max_steps: 200\n"
        "searcher: random\nscheduler: pbt\n"
    )
    search = load_search(file)
    assert search.distributions == {
        "dlora.rank": Distribution("choice", (2, 4)),
        "train.learning_rate": Distribution("loguniform", (1e-4, 1e-2)),
    }
    assert search.fixed == {"train.max_steps": 200}
    assert list(search.mutated) == ["train.learning_rate"]
    assert search.most_trials == 16
    dump_settings(search, tmp_path / "again.yaml")
    assert load_search(tmp_path / "again.yaml") == search


def test_randint_leaves_its_upper_end_out_as_ray_tune_does() -> None:
    assert Distribution.parse("dlora.rank", {"randint": [1, 9]}).extremes == (1, 8)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, r"^space is empty"),
        ({"space": {"train.seed": 1}}, r"^space is empty"),
        ({"space": {"dlora.rank": {"chioce": [1]}}}, r"^space\.dlora\.rank must be one of choice,"),
        ({"space": {"dlora.rank": {"choice": []}}}, r"^space\.dlora\.rank\.choice must be a list"),
        (
            {"space": {"dlora.rank": {"randint": [1.5, 4]}}},
            r"^space\.dlora\.rank\.randint must be two whole numbers",
        ),
        (
            {"space": {"model.dropout": {"uniform": [0.2, 0.2]}}},
            r"^space\.model\.dropout\.uniform is empty: its lower end must be below its upper",
        ),
        (
            {"space": {"model.dropout": {"loguniform": [0, 0.2]}}},
            r"^space\.model\.dropout\.loguniform must begin above 0, got \[0, 0\.2\]$",
        ),
        (
            {"space": {"data.horizon": {"choice": [24, 96]}}},
            r"^space\.data\.horizon must be the same for all trials",
        ),
        ({"space": {"run.dir": "x"} | RANK}, r"^space\.run\.dir must be the same for all trials"),
        ({"space": RATE, "searcher": "grid"}, r"^space\.train\.learning_rate must be a choice in"),
        (
            {"space": RANK, "searcher": "grid", "num_trials": 3},
            r"^num_trials must be left out of a grid, which has 2 combinations; got 3$",
        ),
        (
            {"space": RANK, "scheduler": "pbt", "searcher": "random"},
            r"^scheduler: pbt needs a key in space that may",
        ),
        (
            {"space": RANK, "scheduler": "pbt"},
            r"^scheduler: pbt needs searcher: random or grid, got tpe$",
        ),
        (
            {
                "space": {"model.dropout": {"choice": [0.1]}},
                "scheduler": "pb2",
                "searcher": "random",
            },
            r"^space\.model\.dropout must be uniform or loguniform for pb2, got choice$",
        ),
        (
            {"space": RANK, "objectives": ["validation", "step_s"]},
            r"^objectives: several need searcher: tpe and scheduler: none, got tpe and asha$",
        ),
        ({"space": RANK, "objectives": ["step_s"]}, r"^objectives must hold validation"),
        ({"space": RANK, "num_trials": 0}, r"^num_trials must be at least 1, got 0$"),
        ({"space": RANK, "reduction": 1}, r"^reduction must be above 1 and finite, got 1$"),
        ({"space": RANK, "memory_gib": 0}, r"^memory_gib must be above 0 and finite, got 0$"),
    ],
)
def test_a_bad_search_is_refused_by_its_key(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**said)


def test_an_unknown_key_of_the_file_is_refused_by_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("space: {dlora.rank: {choice: [2]}}\nsheduler: asha\n")
    with pytest.raises(ConfigError, match=r"^mine\.yaml: unknown key sheduler; did you mean sched"):
        load_search(file)
    with pytest.raises(ConfigError, match=r"^--search must name a YAML file, there is no .*none"):
        load_search(tmp_path / "none.yaml")
