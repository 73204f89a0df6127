"""Which trials a search may draw: all that the schema, the backbone and the memory allow."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.config.deepspeed import load_policy
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError
from timellama_dist.planning.estimate import estimate
from timellama_dist.planning.hardware import GPUS, Hardware, find_hardware
from timellama_dist.planning.shape import LlamaShape
from timellama_dist.train.plan import check_model
from timellama_dist.tune.settings import SearchConfig

Keys = dict[str, Any]

# To judge a whole space by; one is checked in some 40 ms.
MOST_DRAWS = 50
# To find out whether a value can be run at all.
MOST_FORCED = 100
_SAME = 12


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is drawn from, over a base configuration that holds what is the same for all trials."""

    search: SearchConfig
    base: RunConfig
    num_channels: int
    hardware: Hardware | None = None
    """Of one worker; None if its memory isn't known."""

    def config(self, keys: Mapping[str, Any]) -> RunConfig:
        """The run of a trial.

        Raises:
            ConfigError: it can't be run.
        """
        config = config_from_flat(keys, self.base)
        check_model(config)
        return config

    def excess(self, config: RunConfig) -> str | None:
        """What a trial needs more than there is, by the planner's estimate; None if it fits."""
        if self.hardware is None:
            return None
        shape = LlamaShape.from_file(
            resolve_backbone(config.backbone.name, config.backbone.revision) / "config.json"
        )
        needs = estimate(
            config,
            shape,
            policy=load_policy(config.deepspeed),
            world_size=config.scaling.most_workers,
            hardware=self.hardware,
            num_channels=self.num_channels,
        )
        if needs.fits:
            return None
        return (
            f"needs {needs.needed_bytes / 2**30:.2f} GiB for each worker, there are "
            f"{needs.available_bytes / 2**30:.2f}"
        )

    def draw(self, rng: np.random.Generator) -> Keys:
        """One value for each key, whether they can be run together or not."""
        return {
            key: _plain(domain.sample(random_state=rng)) for key, domain in self.domains().items()
        }

    def domains(self) -> dict[str, Any]:
        """Ray Tune's distribution of each key."""
        from ray import tune

        domains: dict[str, Any] = {}
        for key, distribution in self.search.distributions.items():
            values = (
                (list(distribution.values),)
                if distribution.kind == "choice"
                else distribution.values
            )
            domains[key] = getattr(tune, distribution.kind)(*values)
        return domains

    def grid(self) -> Iterator[Keys]:
        """Every combination of choices, the last key's changing first."""
        choices = self.search.distributions
        for values in itertools.product(*(choice.values for choice in choices.values())):
            yield dict(zip(choices, values, strict=True))

    def base_keys(self) -> Keys:
        """What the base configuration has for each key."""
        values = self.base.to_dict()
        keys = {}
        for key in self.search.distributions:
            section, _, leaf = key.rpartition(".")
            keys[key] = (values[section] if section else values)[leaf]
        return keys

    def check(self) -> str | None:
        """Refuse a value that no trial could have.

        Returns:
            A note on combinations that can't be run, if there are such.

        Raises:
            ConfigError: the value is never possible, or no combination is.
        """
        rng = np.random.default_rng(self.search.seed)
        for key, distribution in self.search.distributions.items():
            for value in distribution.extremes:
                self._check_value(key, value, rng)
        drawn = [self._problem(self.draw(rng)) for _ in range(MOST_DRAWS)]
        impossible = [str(problem) for problem in drawn if problem is not None]
        if len(impossible) == len(drawn):
            raise ConfigError(f"space: none of {len(drawn)} draws can be run: {impossible[0]}")
        if not impossible:
            return None
        return (
            f"{len(impossible)} of {len(drawn)} combinations drawn can't be run and won't be "
            f"proposed: {impossible[0]}"
        )

    def check_memory(self) -> None:
        """Refuse a space whose trials all need more memory than there is.

        Raises:
            ConfigError: they do, as far as some draws show.
        """
        rng, excess = np.random.default_rng(self.search.seed), None
        for _ in range(MOST_DRAWS):
            with suppress(ConfigError):
                excess = self.excess(self.config(self.draw(rng)))
                if excess is None:
                    return
        raise ConfigError(f"space: none of {MOST_DRAWS} draws fits the memory: a trial {excess}")

    def _check_value(self, key: str, value: Any, rng: np.random.Generator) -> None:
        """Refuse a value that stands beside no values drawn for the other keys."""
        refused: list[str] = []
        for _ in range(MOST_FORCED):
            problem = self._problem(self.draw(rng) | {key: value})
            if problem is None:
                return
            refused.append(str(problem))
            # Whatever stands beside it: not the others' fault.
            if len(refused) >= _SAME and len(set(refused)) == 1:
                break
        raise ConfigError(f"space.{key}: {refused[-1]}")

    def _problem(self, keys: Keys) -> ConfigError | None:
        try:
            self.config(keys)
        except ConfigError as error:
            return error
        return None


def find_memory(search: SearchConfig, *, use_gpu: bool, workers_per_node: int) -> Hardware | None:
    """What a worker of a trial has.

    Args:
        search: may say so.
        use_gpu: do workers have GPUs?
        workers_per_node: of all trials that run at the same time.

    Raises:
        ConfigError: `gpu` is unknown.
    """
    if search.gpu is not None:
        if search.gpu not in GPUS:
            raise ConfigError(f"gpu must be one of {', '.join(GPUS)}, got {search.gpu!r}")
        hardware = GPUS[search.gpu]
    elif not use_gpu:
        hardware = find_hardware("cpu", workers_per_node)
    elif search.memory_gib is None:
        return None
    else:
        # Of any, for what the framework takes: its memory is given.
        hardware = next(iter(GPUS.values()))
    if search.memory_gib is None:
        return hardware
    return replace(hardware, memory_bytes=int(search.memory_gib * 2**30))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
