"""Proposes the trials of a search to Ray Tune: only such as can be run, none twice."""

import itertools
import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from timellama_dist.errors import ConfigError
from timellama_dist.tune.space import Keys, Space

_MOST_DRAWS = 1000


class Proposals(Searcher):
    """Gives Ray Tune the next trial's keys; saved and restored with the search.

    Args:
        space: what may be drawn.
        pruned: file to which trials that don't fit the memory are appended, one JSON line each.
    """

    def __init__(self, space: Space, pruned: Path) -> None:
        search = space.search
        several = len(search.objectives) > 1
        # Lists where there are several, which Ray's annotations forget.
        metric: Any = list(search.objectives) if several else "validation"
        mode: Any = ["min"] * len(search.objectives) if several else "min"
        super().__init__(metric=metric, mode=mode)
        self._space, self._pruned = space, pruned
        self._seen: set[str] = set()
        self._rng = np.random.default_rng(search.seed)
        self._drawn = 0
        self._optuna = _optuna(space, self.metric, self.mode) if search.searcher == "tpe" else None
        self._names: dict[str, str] = {}
        """Optuna's name of each trial that it proposed."""

    def suggest(self, trial_id: str) -> Any:
        """The next trial's keys, or that there are no more."""
        for name, keys in self._candidates(trial_id):
            if self._accept(keys):
                if self._optuna is not None and name is not None:
                    self._names[trial_id] = name
                return keys
            if self._optuna is not None and name is not None:
                self._optuna.on_trial_complete(name, error=True)
        return Searcher.FINISHED

    def draw_all(self, count: int) -> list[Keys]:
        """That many trials' keys, or as many as there are."""
        drawn = (self.suggest(f"trial-{number}") for number in range(count))
        return list(itertools.takewhile(lambda keys: keys != Searcher.FINISHED, drawn))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell Optuna."""
        if self._optuna is not None and trial_id in self._names:
            self._optuna.on_trial_result(self._names[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna."""
        if self._optuna is not None and trial_id in self._names:
            self._optuna.on_trial_complete(self._names.pop(trial_id), result, error)

    def save(self, checkpoint_path: str) -> None:
        """Ray Tune saves the search."""
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        """Ray Tune goes on with it."""
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))

    def _candidates(self, trial_id: str) -> Iterator[tuple[str | None, Keys]]:
        """Keys in the order of trying, each with Optuna's name if it is Optuna's."""
        search = self._space.search
        if search.include_base and self._drawn == 0:
            self._drawn = 1
            yield None, self._space.base_keys()
        if search.searcher == "grid":
            combinations = list(self._space.grid())
            while (number := self._drawn - search.include_base) < len(combinations):
                self._drawn += 1
                yield None, combinations[number]
            return
        for _ in range(_MOST_DRAWS):
            self._drawn += 1
            if self._optuna is None:
                yield None, self._space.draw(self._rng)
                continue
            name = f"{trial_id}-{self._drawn}"
            keys = self._optuna.suggest(name)
            assert isinstance(keys, dict)
            yield name, keys

    def _accept(self, keys: Keys) -> bool:
        text = json.dumps(keys, sort_keys=True, default=str)
        if text in self._seen:
            return False
        self._seen.add(text)
        # Whether the whole space can't be run was checked before the search began.
        with suppress(ConfigError):
            excess = self._space.excess(self._space.config(keys))
            if excess is None:
                return True
            with self._pruned.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"keys": keys, "problem": excess}, default=str) + "\n")
        return False


def _optuna(space: Space, metric: Any, mode: Any) -> OptunaSearch:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = OptunaSearch.convert_search_space(space.domains())
    return OptunaSearch(distributions, metric=metric, mode=mode, seed=space.search.seed)
