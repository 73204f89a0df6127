"""The configuration of a D-LoRA adapter, as PEFT saves it in adapter_config.json."""

from dataclasses import dataclass, field
from typing import Any, get_args

from peft import PeftConfig

from timellama_dist.dlora.settings import (
    LLAMA_LINEARS,
    Activation,
    DLoraSection,
    Gate,
    Pooling,
    Scope,
    check_pools,
)
from timellama_dist.errors import ConfigError

PEFT_TYPE = "DLORA"


@dataclass
class DLoraConfig(PeftConfig):
    """Configuration of a D-LoRA adapter; its defaults are those of the section `dlora` of a run.

    The paper's setting is `num_experts=1, rank=8, top_n=4, gate="binary", pooling="last"`: the
    seven linears' LoRAs are themselves the experts.

    Raises:
        ConfigError: on a value out of its range; the message names the key as `dlora.<key>`.
    """

    num_experts: int = DLoraSection.num_experts
    """LoRA experts in each module's pool."""

    rank: int = DLoraSection.rank
    """Rank of one expert; a module's pool has the total rank num_experts * rank."""

    alpha: float = DLoraSection.alpha
    """An expert's output is scaled by alpha / rank."""

    dropout: float = DLoraSection.dropout
    """Dropout on the experts' input while training."""

    top_n: int = DLoraSection.top_n
    """Experts active per sample: of the whole block, or of each module's pool (see scope)."""

    scope: Scope = DLoraSection.scope
    """`block`: the router chooses top_n of the block's modules x num_experts experts.
    `module`: it chooses top_n inside each module's pool."""

    gate: Gate = DLoraSection.gate
    """`probability`: chosen experts are weighted by their probability, so that equal ones get 1.
    `straight_through`: 0 or 1 forward, the softmax's gradient backward.
    `binary`: 0 or 1; only the balance loss trains the router. So it is with `probability` where
    top_n is 1: a single expert's weight is always 1."""

    pooling: Pooling = DLoraSection.pooling
    """How the router reads a block's input: its last token, the tokens' mean, or a learned
    self-attention pooling. No mask is applied: all tokens count."""

    router_activation: Activation = DLoraSection.router_activation
    """Applied to the pooled hidden state before the router's linear map."""

    target_modules: list[str] | str = field(default_factory=lambda: list(LLAMA_LINEARS))
    """Names of the linears to adapt, or a regular expression, as PEFT matches them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # PEFT looks methods up by this key; a string does where its enum has no member.
        self.peft_type: Any = PEFT_TYPE
        for key, choices in (
            ("scope", Scope),
            ("gate", Gate),
            ("pooling", Pooling),
            ("router_activation", Activation),
        ):
            if getattr(self, key) not in get_args(choices):
                raise ConfigError(
                    key=f"dlora.{key}",
                    must=f"be one of {', '.join(get_args(choices))}",
                    got=getattr(self, key),
                )
        if self.target_modules == "all-linear":
            # PEFT would expand it after the blocks have been looked for.
            raise ConfigError(
                "dlora.target_modules must name the linears or be a regular expression for them, "
                "got PEFT's shorthand 'all-linear'"
            )
        check_pools(self, self.target_modules)
        if not isinstance(self.target_modules, str):
            self.target_modules = list(self.target_modules)
