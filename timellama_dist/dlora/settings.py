"""The bounds of a D-LoRA adapter's values, whoever gives them; imports nothing that takes time."""

from collections.abc import Sequence
from typing import Literal, Protocol

from timellama_dist.errors import ConfigError, require, require_at_least

Scope = Literal["block", "module"]
Gate = Literal["probability", "straight_through", "binary"]
Pooling = Literal["last", "mean", "attention"]
Activation = Literal["gelu", "relu", "tanh", "none"]

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Pools(Protocol):
    """What says how many experts there are and how many of them act: a schema's section, or PEFT's
    configuration."""

    @property
    def num_experts(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def top_n(self) -> int: ...
    @property
    def scope(self) -> Scope: ...


def check_pools(pools: Pools, targets: Sequence[str] | str) -> None:
    """Check an adapter's values.

    Args:
        pools: the values.
        targets: names of the linears that get a pool, or a regular expression for them.

    Raises:
        ConfigError: on a value out of its range; the message names the key as `dlora.<key>`.
    """
    require_at_least(1, {"dlora.num_experts": pools.num_experts, "dlora.rank": pools.rank})
    require(pools.alpha > 0, "dlora.alpha", "above 0", pools.alpha)
    require(0 <= pools.dropout < 1, "dlora.dropout", "at least 0 and below 1", pools.dropout)
    if not targets:
        raise ConfigError("dlora.target_modules must name at least one linear, got none")
    if isinstance(targets, str):
        # The upper bound is known once the expression has met a model.
        require_at_least(1, {"dlora.top_n": pools.top_n})
    else:
        check_top_n(pools, len(set(targets)))


def check_top_n(pools: Pools, num_modules: int) -> None:
    """Check that a router over `num_modules` linears per block can choose top_n experts.

    Raises:
        ConfigError: when top_n is outside the pool.
    """
    if pools.scope == "module":
        bound, pool = pools.num_experts, f"dlora.num_experts={pools.num_experts}"
    else:
        bound = num_modules * pools.num_experts
        pool = f"{num_modules} modules x dlora.num_experts={pools.num_experts}"
    if not 1 <= pools.top_n <= bound:
        raise ConfigError(f"dlora.top_n must be between 1 and {bound} ({pool}), got {pools.top_n}")
