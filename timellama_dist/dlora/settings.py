"""The values of a D-LoRA adapter, their defaults and their bounds, whoever gives them.

Imports nothing that takes time: the command line reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class DLoraSection:
    """The trainable expert pools and routers (eq. 9-11)."""

    enabled: bool = True
    """False trains without adapters: the backbone stays as it was pretrained."""
    num_experts: int = 4
    """Experts per linear module (E); 1 is the paper's case."""
    rank: int = 4
    """Rank of one expert (R)."""
    alpha: float = 8.0
    """An expert's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the experts' input."""
    top_n: int = 16
    """Experts active for one input: of the block's 7 x num_experts, or of each module's pool."""
    scope: Scope = "block"
    """Do all experts of a block compete, or those of each module?"""
    gate: Gate = "probability"
    """How a chosen expert is weighted, and so how the task loss reaches the router."""
    pooling: Pooling = "mean"
    """How the router summarises the tokens before its block."""
    router_activation: Activation = "gelu"
    """Activation between the router's pooling and its linear map."""
    target_modules: list[str] | None = None
    """Linear modules that get a pool; all seven of a block if not given."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (lambda; eq. 6-7)."""

    def __post_init__(self) -> None:
        require(self.balance_weight >= 0, "dlora.balance_weight", ">= 0", self.balance_weight)
        if self.enabled:
            check_pools(self, self.targets)

    @property
    def targets(self) -> list[str]:
        """The linear modules that get a pool."""
        return self.target_modules or list(LLAMA_LINEARS)

    @property
    def linears(self) -> list[str]:
        """Names of a block's linears with a pool, in the order of the routers' modules."""
        named = {target.rpartition(".")[2] for target in self.targets}
        return [name for name in LLAMA_LINEARS if name in named]


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
        raise ConfigError(key="dlora.target_modules", must="name at least one linear", got=targets)
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
    require(
        1 <= pools.top_n <= bound, "dlora.top_n", f"between 1 and {bound} ({pool})", pools.top_n
    )
