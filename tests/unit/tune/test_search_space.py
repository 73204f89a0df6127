"""Which trials a search may draw."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import plain, plain_run
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import BackboneSection, ModelSection, RunConfig
from timellama_dist.errors import ConfigError
from timellama_dist.tune.files import load_search
from timellama_dist.tune.proposals import Proposals
from timellama_dist.tune.settings import SearchConfig
from timellama_dist.tune.space import Space, find_memory

SEARCHES = sorted((Path(__file__).parents[3] / "timellama_dist/recipes/searches").glob("*.yaml"))
SPACE = {
    "dlora.num_experts": {"choice": [1, 2]},
    "dlora.top_n": {"choice": [2, 8, 14]},
    "dlora.rank": {"choice": [2, 4]},
}


@pytest.fixture
def base(tiny_llama: Path) -> RunConfig:
    return plain_run(
        backbone=plain(BackboneSection, name=str(tiny_llama), num_blocks=2),
        model=plain(ModelSection, alignment_heads=4),
    )


def space(base: RunConfig, keys: dict[str, Any] | None = None, **search: Any) -> Space:
    said = SearchConfig(space=SPACE if keys is None else keys, **search)
    return Space(search=said, base=base, num_channels=3)


def proposed(proposals: Proposals) -> list[Any]:
    found: list[Any] = []
    while True:
        keys = proposals.suggest(f"trial-{len(found)}")
        if keys == "FINISHED":
            return found
        proposals.on_trial_complete(f"trial-{len(found)}", {"validation": 1.0 + len(found)})
        found.append(keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dlora.rnak": {"choice": [2]}}, r"^space\.dlora\.rnak: unknown key dlora\.rnak; did you"),
        ({"dlora.rank": {"randint": [0, 4]}}, r"^space\.dlora\.rank: dlora\.rank must be at least"),
        (
            {"dlora.scope": {"choice": ["block", "blok"]}},
            r"^space\.dlora\.scope: dlora\.scope",
        ),
        (
            {"train.learning_rate": {"uniform": [-1, 1]}},
            r"^space\.train\.learning_rate: .*above",
        ),
        ({"backbone.num_blocks": {"choice": [1, 3]}}, r"num_blocks must be between 1 and 2"),
        (
            SPACE | {"dlora.top_n": {"choice": [2, 15]}},
            # Beside the base's four experts it could be; beside those searched it never can.
            r"^space\.dlora\.top_n: dlora\.top_n must be between 1 and (7|14) .*, got 15$",
        ),
    ],
)
def test_a_value_that_no_trial_can_have_is_refused_by_its_key(
    base: RunConfig, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        space(base, keys).check()


@pytest.mark.parametrize("file", SEARCHES, ids=lambda file: file.stem)
def test_every_shipped_search_can_be_run(base: RunConfig, file: Path) -> None:
    assert f"timellama tune --search {file.stem}" in file.read_text()
    searched = load_search(file)
    started = config_from_flat(searched.fixed, base)
    Space(search=searched, base=started, num_channels=3).check()


def test_a_grid_leaves_out_what_cannot_be_run_and_says_so(base: RunConfig, tmp_path: Path) -> None:
    searched = space(base, searcher="grid", scheduler="none", include_base=False)
    note = searched.check()
    assert note is not None
    assert "combinations drawn can't be run" in note
    assert "dlora.top_n must be between 1 and 7 (7 modules x dlora.num_experts=1)" in note
    found = proposed(Proposals(searched, tmp_path / "pruned"))
    pairs = {(one["dlora.num_experts"], one["dlora.top_n"]) for one in found}
    assert pairs == {(1, 2), (2, 2), (2, 8), (2, 14)}
    assert len(found) == 8


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_trials_are_possible_none_twice_and_the_base_comes_first(
    base: RunConfig, tmp_path: Path, searcher: str
) -> None:
    searched = space(base, searcher=searcher, scheduler="none")
    found = proposed(Proposals(searched, tmp_path / "pruned"))
    assert found[0] == {"dlora.num_experts": 4, "dlora.top_n": 16, "dlora.rank": 4}
    texts = [json.dumps(one, sort_keys=True) for one in found]
    assert len(set(texts)) == len(texts) == 9  # all that can be run, and the base


def test_a_restored_search_proposes_what_the_uninterrupted_one_does(
    base: RunConfig, tmp_path: Path
) -> None:
    searched = space(base, {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}, searcher="random")
    whole, first = (Proposals(searched, tmp_path / "pruned") for _ in range(2))
    expected = [whole.suggest(str(number)) for number in range(6)]
    before = [first.suggest(str(number)) for number in range(3)]
    first.save(str(tmp_path / "state"))
    second = Proposals(searched, tmp_path / "pruned")
    second.restore(str(tmp_path / "state"))
    assert before + [second.suggest(str(number)) for number in range(3, 6)] == expected


def test_trials_that_need_more_memory_than_there_is_are_pruned_and_written_down(
    base: RunConfig, tmp_path: Path
) -> None:
    keys = {"train.micro_batch_size": {"choice": [1, 32]}}
    searched = space(
        base, keys, searcher="grid", scheduler="none", include_base=False, memory_gib=0.85
    )
    memory = find_memory(searched.search, use_gpu=False, workers_per_node=2)
    searched = Space(search=searched.search, base=base, num_channels=500, hardware=memory)
    searched.check_memory()
    assert proposed(Proposals(searched, tmp_path / "pruned")) == [{"train.micro_batch_size": 1}]
    (line,) = (tmp_path / "pruned").read_text().splitlines()
    assert json.loads(line)["keys"] == {"train.micro_batch_size": 32}
    assert "GiB for each worker, there are 0.85" in json.loads(line)["problem"]


def test_a_space_of_which_nothing_fits_is_refused(base: RunConfig) -> None:
    searched = space(base, memory_gib=0.01)
    memory = find_memory(searched.search, use_gpu=False, workers_per_node=2)
    tight = Space(search=searched.search, base=base, num_channels=3, hardware=memory)
    with pytest.raises(
        ConfigError, match=r"^space: none of 50 draws fits the memory: a trial needs"
    ):
        tight.check_memory()


def test_the_memory_of_an_unknown_gpu_is_not_guessed() -> None:
    search = SearchConfig(space=SPACE)
    assert find_memory(search, use_gpu=True, workers_per_node=2) is None
    named = SearchConfig(space=SPACE, gpu="l4-24g")
    hardware = find_memory(named, use_gpu=True, workers_per_node=2)
    assert hardware is not None
    assert hardware.memory_bytes == 24 * 10**9
    with pytest.raises(ConfigError, match=r"^gpu must be one of a100-40g, "):
        find_memory(SearchConfig(space=SPACE, gpu="a100"), use_gpu=True, workers_per_node=2)
