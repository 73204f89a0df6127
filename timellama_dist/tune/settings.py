"""The schema of a search file: which keys of a run are explored, how, and what is best.

What can be said without drawing a trial is checked here; `tune.space` checks draws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from timellama_dist.errors import ConfigError, require_at_least

Objective = Literal["validation", "active_parameters", "trainable_parameters", "step_s"]

KINDS = ("choice", "uniform", "loguniform", "randint", "lograndint")
"""Ray Tune's distributions of these names, with its meaning: randint leaves its upper end out."""

CHANGEABLE = (
    "train.learning_rate",
    "train.weight_decay",
    "train.clip_norm",
    "dlora.balance_weight",
    "dlora.dropout",
    "model.dropout",
)
"""Keys that may change between a checkpoint and what goes on from it, so that PBT may mutate them.
"""

# What decides on which windows a trial is judged, or where it lives, is the same for all.
_DATA = ("data.context_len", "data.train_fraction", "data.prompt")
_NOT_SEARCHED = ("data", "run", "tracking")
_MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Distribution:
    """What one key may be."""

    kind: str
    values: tuple[Any, ...]
    """All there are of a choice, lower and upper end of the others."""

    @classmethod
    def parse(cls, key: str, distribution: Mapping[str, Any]) -> Self:
        """Read `{loguniform: [1e-4, 1e-2]}`.

        Raises:
            ConfigError: an unknown kind, or nothing that it could draw.
        """
        kind = next(iter(distribution), None)
        if len(distribution) != 1 or kind not in KINDS:
            raise ConfigError(
                f"space.{key} must be one of {', '.join(KINDS)}, got {dict(distribution)!r}"
            )
        values = distribution[kind]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"space.{key}.{kind} must be a list of values, got {values!r}")
        if kind != "choice":
            _check_ends(f"space.{key}.{kind}", kind, values)
        return cls(kind, tuple(values))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are drawn, and between which all others lie."""
        if self.kind.endswith("randint"):
            return (self.values[0], self.values[1] - 1)
        return self.values


def _check_ends(key: str, kind: str, values: list[Any]) -> None:
    whole = kind.endswith("randint")
    number = int if whole else int | float
    if len(values) != 2 or not all(
        isinstance(end, number) and not isinstance(end, bool) and math.isfinite(end)
        for end in values
    ):
        raise ConfigError(
            f"{key} must be two {'whole ' if whole else ''}numbers, its lower and upper end, got "
            f"{values!r}"
        )
    if not values[0] < values[1]:
        raise ConfigError(f"{key} is empty: its lower end must be below its upper, got {values!r}")
    if kind.startswith("log") and values[0] <= 0:
        raise ConfigError(f"{key} must begin above 0, got {values!r}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A whole search."""

    space: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of a run, each with a distribution; a plain value holds for every trial."""
    searcher: Literal["random", "grid", "tpe"] = "tpe"
    """tpe: Optuna's, for one or several objectives; grid: every combination of choices."""
    scheduler: Literal["none", "asha", "pbt", "pb2"] = "asha"
    """asha stops trials early; pbt and pb2 let the worst go on from the best's checkpoint with
    other values of keys that may change."""
    num_trials: int | None = None
    """16 if not given; a grid has as many as combinations."""
    objectives: list[Objective] = field(default_factory=lambda: ["validation"])
    """What is made small; several only with tpe, and without a scheduler."""
    metric: Literal["mse", "mae"] = "mse"
    """Of the validation part, at the weights that the run itself chose: the objective `validation`.
    """
    include_base: bool = True
    """Is the configuration that the search starts from the first trial?"""
    grace_steps: int = 1
    """Steps before asha may stop a trial; it decides at the next validation."""
    reduction: float = 3.0
    """asha lets the best 1/reduction go on."""
    perturb_steps: int = 100
    """Steps between two looks of pbt and pb2."""
    max_concurrent: int | None = None
    """Trials at the same time; as many as the cluster holds if not given."""
    max_failures: int = 1
    """How often a trial that failed is tried again, from its last checkpoint."""
    memory_gib: float | None = None
    """Of a worker's device; trials that need more aren't begun."""
    gpu: str | None = None
    """Name of the workers' GPU that `timellama plan` knows, to say so instead."""
    seed: int = 0
    """Seeds what is drawn; train.seed is another key."""

    def __post_init__(self) -> None:
        for key, least in (
            ("num_trials", 1),
            ("grace_steps", 1),
            ("perturb_steps", 1),
            ("max_concurrent", 1),
            ("max_failures", 0),
            ("seed", 0),
        ):
            require_at_least(least, {key: getattr(self, key)})
        for key, bound in (("reduction", 1), ("memory_gib", 0)):
            value = getattr(self, key)
            if value is not None and not bound < value < math.inf:
                raise ConfigError(f"{key} must be above {bound} and finite, got {value}")
        for key in self.space:
            _check_key(key)
        if not self.distributions:
            raise ConfigError(
                "space is empty: give at least one key a distribution, such as "
                "dlora.rank: {choice: [2, 4, 8]}"
            )
        self._check_objectives()
        self._check_grid()
        self._check_mutations()

    @property
    def distributions(self) -> dict[str, Distribution]:
        """Of the keys that differ between trials."""
        return {
            key: Distribution.parse(key, value)
            for key, value in self.space.items()
            if isinstance(value, Mapping)
        }

    @property
    def fixed(self) -> dict[str, Any]:
        """Keys that hold for every trial."""
        return {key: value for key, value in self.space.items() if not isinstance(value, Mapping)}

    @property
    def mutated(self) -> dict[str, Distribution]:
        """What pbt and pb2 change."""
        return {
            key: distribution
            for key, distribution in self.distributions.items()
            if key in CHANGEABLE
        }

    @property
    def most_trials(self) -> int:
        """Trials, if all that is drawn can be run."""
        if self.searcher == "grid":
            return self._num_combinations() + self.include_base
        return 16 if self.num_trials is None else self.num_trials

    def _num_combinations(self) -> int:
        return math.prod(len(choice.values) for choice in self.distributions.values())

    def _check_objectives(self) -> None:
        given = self.objectives
        if not given or len(set(given)) < len(given):
            raise ConfigError(f"objectives must be one or several, each once, got {given!r}")
        if "validation" not in given:
            raise ConfigError(f"objectives must hold validation, got {given!r}")
        if len(given) > 1 and (self.searcher, self.scheduler) != ("tpe", "none"):
            raise ConfigError(
                "objectives: several need searcher: tpe and scheduler: none, got "
                f"{self.searcher} and {self.scheduler}"
            )

    def _check_grid(self) -> None:
        if self.searcher != "grid":
            return
        if self.num_trials is not None:
            raise ConfigError(
                f"num_trials must be left out of a grid, which has {self._num_combinations()} "
                f"combinations; got {self.num_trials}"
            )
        for key, distribution in self.distributions.items():
            if distribution.kind != "choice":
                raise ConfigError(
                    f"space.{key} must be a choice in a grid, got {distribution.kind}"
                )
        if self._num_combinations() > _MOST_TRIALS:
            raise ConfigError(
                f"space has {self._num_combinations()} combinations, a grid at most {_MOST_TRIALS}"
            )

    def _check_mutations(self) -> None:
        if self.scheduler not in ("pbt", "pb2"):
            return
        if self.searcher == "tpe":
            raise ConfigError(
                f"scheduler: {self.scheduler} needs searcher: random or grid, got {self.searcher}"
            )
        if not self.mutated:
            raise ConfigError(
                f"scheduler: {self.scheduler} needs a key in space that may change while a trial "
                f"goes on: {', '.join(CHANGEABLE)}"
            )
        for key, distribution in self.mutated.items():
            kind = distribution.kind
            if self.scheduler == "pb2" and kind not in ("uniform", "loguniform"):
                raise ConfigError(f"space.{key} must be uniform or loguniform for pb2, got {kind}")


def _check_key(key: str) -> None:
    if key.split(".")[0] in _NOT_SEARCHED and key not in _DATA:
        raise ConfigError(
            f"space.{key} must be the same for all trials: give it on the command line or by "
            f"--config (of data, {', '.join(_DATA)} can be searched)"
        )
