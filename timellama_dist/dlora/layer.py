"""The modules that D-LoRA puts into a block: the adapted linear and the block's router.

Shapes: B batch, T tokens, D hidden, M modules of a block, E experts per module, R rank,
K = E * R total rank of a pool, X = M * E experts of a block, P pools, S experts per pool
(see router.py).
"""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from timellama_dist.dlora.block import BlockState, Routing, checkpoint_with_gates
from timellama_dist.dlora.config import DLoraConfig
from timellama_dist.dlora.router import attention_pool, choose_experts, gate_experts
from timellama_dist.dlora.settings import Activation

MERGE_REFUSAL = (
    "D-LoRA cannot be merged into the base weights: which experts act depends on each input. "
    "Keep the adapter next to the base model, or use unload() to get the base model back"
)

# The usual spread of a transformer's initial weights: logits small against 1, so no expert starts
# out favoured, yet all different, so that the untrained choice varies with the input.
ROUTER_INIT_STD = 0.02


class DLoraLayer(BaseTunerLayer):
    """A module that PEFT switches on and off: an adapted linear or a router."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see `MERGE_REFUSAL`."""
        raise ValueError(MERGE_REFUSAL)

    def unmerge(self) -> None:
        """Refuse: there never is anything merged."""
        raise ValueError(MERGE_REFUSAL)


class DLoraLinear(nn.Module, DLoraLayer):
    """A linear, plain or of bitsandbytes, with each adapter's pool of LoRA experts beside it.

    The experts lie stacked, so a pool costs one GEMM, one multiplication by the gates and one
    GEMM, whatever the samples choose: every rank runs the same graph. They are `nn.Linear`
    modules because ZeRO-3 gathers parameters as a module's forward begins.
    """

    adapter_layer_names = ("dlora_A", "dlora_B")
    other_param_names = ("expert_slot", "num_modules", "dropout")

    def __init__(self, base_layer: nn.Module, block_state: BlockState) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.block_state = block_state
        self.dlora_A = nn.ModuleDict()
        self.dlora_B = nn.ModuleDict()
        self.expert_slot: dict[str, int] = {}
        self.num_modules: dict[str, int] = {}
        self.dropout: dict[str, float] = {}

    def add_adapter(
        self, adapter_name: str, config: DLoraConfig, slot: int, num_modules: int
    ) -> None:
        """Create an adapter's experts.

        Args:
            adapter_name: PEFT's name of the adapter.
            config: its configuration.
            slot: this linear's position among the block's adapted linears.
            num_modules: how many those are.
        """
        base_layer: Any = self.get_base_layer()
        total_rank = config.num_experts * config.rank
        # A's rows start as nn.Linear's do: uniform by the fan-in, which is the same for the stack
        # as for one expert, and is PEFT's initialisation of LoRA.
        self.dlora_A[adapter_name] = nn.Linear(base_layer.in_features, total_rank, bias=False)
        lora_B = nn.Linear(total_rank, base_layer.out_features, bias=False)
        nn.init.zeros_(lora_B.weight)
        self.dlora_B[adapter_name] = lora_B
        self.expert_slot[adapter_name] = slot
        self.num_modules[adapter_name] = num_modules
        self.dropout[adapter_name] = config.dropout
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gated experts' output to the base's, shape (batch, tokens, out features)."""
        result = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return result
        dtype = result.dtype
        for adapter_name in self.active_adapters:
            if adapter_name not in self.expert_slot:
                continue
            lora_A: Any = self.dlora_A[adapter_name]
            dropout = self.dropout[adapter_name]
            adapter_x = self._cast_input_dtype(x, lora_A.weight.dtype)
            if dropout and self.training:
                adapter_x = F.dropout(adapter_x, dropout)
            gates_B1K = self.block_state.gates_of(adapter_name)[self.expert_slot[adapter_name]]
            # The gates carry alpha / R, which saves a pass over the (larger) output.
            experts_BTO = self.dlora_B[adapter_name](lora_A(adapter_x) * gates_B1K)
            if torch.is_grad_enabled() or experts_BTO.dtype != dtype:
                result = result + experts_BTO
            else:
                # Memory of its own would cost the sum more than its additions do.
                result.add_(experts_BTO)
        return result.to(dtype)


class BlockRouter(nn.Module, DLoraLayer):
    """Chooses a block's experts from the hidden states right before the block, per sample.

    It is called by a hook on the block and leaves its decision in the block's state, where the
    block's linears find it. Every call of the model routes anew.
    """

    adapter_layer_names = ("dlora_score", "dlora_pool")
    other_param_names = ("configs",)

    def __init__(self, block: nn.Module, neighbour: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the router doesn't own the linear as a submodule.
        self._neighbour = (neighbour,)
        self.state = BlockState()
        self.dlora_score = nn.ModuleDict()
        self.dlora_pool = nn.ModuleDict()
        self.configs: dict[str, DLoraConfig] = {}
        self._handles = [
            block.register_forward_pre_hook(self.before_block, with_kwargs=True),
            block.register_forward_hook(self.after_block),
        ]

    def get_base_layer(self) -> nn.Module:
        """Return the block's linear, whose device and dtype PEFT gives to new routers."""
        return self._neighbour[0]

    def add_adapter(
        self, adapter_name: str, config: DLoraConfig, hidden_size: int, num_modules: int
    ) -> None:
        """Create an adapter's router for `num_modules` linears.

        It has no bias: an expert is to be chosen for the input, not whatever the input is.
        """
        score = nn.Linear(hidden_size, num_modules * config.num_experts, bias=False)
        nn.init.normal_(score.weight, std=ROUTER_INIT_STD)
        self.dlora_score[adapter_name] = score
        if config.pooling == "attention":
            pool = nn.Linear(hidden_size, 1, bias=False)
            nn.init.normal_(pool.weight, std=ROUTER_INIT_STD)
            self.dlora_pool[adapter_name] = pool
        self.configs[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, hidden_BTD: Tensor, adapter_name: str) -> Tensor:
        """Compute probabilities of an adapter's experts.

        Args:
            hidden_BTD: the block's input, shape (batch, tokens, hidden).
            adapter_name: PEFT's name of the adapter.

        Returns:
            Shape (batch, pools, experts of a pool), float32, summing to 1 over each pool.
        """
        config = self.configs[adapter_name]
        score: Any = self.dlora_score[adapter_name]
        if config.pooling == "last":
            hidden_BD = hidden_BTD[:, -1].to(score.weight.dtype)
        elif config.pooling == "mean":
            hidden_BD = hidden_BTD.mean(dim=1).to(score.weight.dtype)
        else:
            adapter_hidden_BTD = hidden_BTD.to(score.weight.dtype)
            pool = self.dlora_pool[adapter_name]
            hidden_BD = attention_pool(adapter_hidden_BTD, pool(adapter_hidden_BTD))
        scores_BX = score(activate(hidden_BD, config.router_activation)).float()
        pool_size = config.num_experts if config.scope == "module" else scores_BX.shape[-1]
        return scores_BX.unflatten(-1, (-1, pool_size)).softmax(dim=-1)

    def before_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Route this input: the hook that runs before the block's forward."""
        if self._disable_adapters:
            return
        hidden_BTD = args[0] if args else kwargs["hidden_states"]
        active = [name for name in self.active_adapters if name in self.configs]
        self.state.gates, self.state.routings = {}, {}
        for adapter_name in active:
            config = self.configs[adapter_name]
            probs_BPS = self(hidden_BTD, adapter_name)
            chosen_BPS = choose_experts(probs_BPS, config.top_n)
            gates_BPS = gate_experts(probs_BPS, chosen_BPS, config.gate)
            score: Any = self.dlora_score[adapter_name]
            gates_MB1K = spread_gates(gates_BPS, config).to(score.weight.dtype)
            self.state.gates[adapter_name] = gates_MB1K
            self.state.routings[adapter_name] = Routing(probs_BPS, chosen_BPS)
        checkpoint_with_gates(block, self.state)

    def after_block(self, block: nn.Module, args: Any, output: Any) -> None:
        """Forget the gates: the hook that runs after the block's forward."""
        self.state.gates = {}

    def remove_hooks(self) -> None:
        """Take the router's hooks off its block."""
        for handle in self._handles:
            handle.remove()


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the router's activation."""
    if activation == "none":
        return x
    return torch.tanh(x) if activation == "tanh" else getattr(F, activation)(x)


def spread_gates(gates_BPS: Tensor, config: DLoraConfig) -> Tensor:
    """Repeat gates times alpha / R for each rank, shape (modules, batch, 1, total rank)."""
    num_experts, rank = config.num_experts, config.rank
    gates_BME1 = (gates_BPS * (config.alpha / rank)).reshape(len(gates_BPS), -1, num_experts, 1)
    return gates_BME1.expand(-1, -1, -1, rank).flatten(2).transpose(0, 1).unsqueeze(2)
