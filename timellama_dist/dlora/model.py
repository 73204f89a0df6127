"""DLoraModel: wraps a transformer's linears and gives each of its blocks a router.

Its import makes PEFT know the method.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from timellama_dist.compat.peft import register_method
from timellama_dist.dlora.block import Routing, checkpoint_without_gates
from timellama_dist.dlora.config import PEFT_TYPE, DLoraConfig
from timellama_dist.dlora.layer import MERGE_REFUSAL, BlockRouter, DLoraLayer, DLoraLinear
from timellama_dist.dlora.router import RouterStatistics, balance_loss, entropy
from timellama_dist.dlora.slots import find_slots
from timellama_dist.errors import ConfigError

ROUTER = "dlora_router"


class DLoraModel(BaseTuner):
    """A model whose blocks choose, per sample, which LoRA experts act in their linears.

    `peft.get_peft_model(model, DLoraConfig())` builds it; the methods below are reached through
    the PeftModel. Of several active adapters each routes for itself and their outputs add up, as
    LoRA's do. Gradient checkpointing as transformers enables it, reentrant or not, gives the
    gradients of an ordinary pass, of the balance loss too (block.py says how). When a caller
    checkpoints whole blocks himself, use the non-reentrant variant: in the reentrant one the
    router's first run records no graph, so the balance loss has no gradient.
    """

    prefix: str = "dlora_"
    tuner_layer_cls = DLoraLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT reads the class)
    # The balance loss lives on the tuner, which PEFT's inject_adapter_in_model would throw away.
    uses_shared_state = True

    def balance_loss(self) -> Tensor:
        """Return the load-balance loss of the last forward pass with an active adapter (eq. 6-7).

        The sum over blocks, and over active adapters, of each router's loss: a perfectly even
        router gives 1.0 per block. With scope "module" a block's loss is the mean over its pools.
        Under data parallelism the shares are those of the local micro-batch, so the loss depends
        on how samples are grouped into micro-batches, not on which worker takes which of them.

        Returns:
            Scalar, float32, with its gradient to the routers.

        Raises:
            RuntimeError: when no forward pass with an active adapter came before.
        """
        losses = [
            balance_loss(routing.probs)
            for routings in self._last_routings("balance_loss()")
            for routing in routings.values()
        ]
        device = losses[0].device
        return torch.stack([loss.to(device) for loss in losses]).sum()

    def forget_graph(self) -> None:
        """Let go of the last forward pass's graph; call it once the backward pass is done.

        The routers' decisions stay for the statistics. Their graph would live until the next
        forward pass, and with it whatever its functions hold: bitsandbytes' keep each packed
        matrix, which under ZeRO-3 is a gathered copy that nobody else needs.
        """
        for _, router in self._routers():
            router.state.routings = {
                name: Routing(routing.probs.detach(), routing.chosen)
                for name, routing in router.state.routings.items()
            }

    @torch.no_grad()
    def router_statistics(
        self, adapter_name: str | None = None, *, counted: Tensor | None = None
    ) -> RouterStatistics:
        """Sum what the routers chose in the last forward pass with an active adapter.

        Args:
            adapter_name: the adapter to look at; may be left out when one is active.
            counted: which samples count, bool, shape (batch,), or one for each of equally many
                neighbours in the batch; all if not given.

        Raises:
            RuntimeError: when no forward pass with this adapter active came before.
            ValueError: when several adapters are active and none is named.
        """
        routings = self._last_routings("router_statistics()")
        if adapter_name is None:
            if len(routings[0]) > 1:
                raise ValueError(f"adapter_name must be one of {', '.join(routings[0])}, got None")
            adapter_name = next(iter(routings[0]))
        if adapter_name not in routings[0]:
            raise RuntimeError(
                f"adapter {adapter_name!r} was not active in the last forward pass; "
                f"active were: {', '.join(routings[0])}"
            )
        num_experts = self._config(adapter_name).num_experts
        blocks = [by_adapter[adapter_name] for by_adapter in routings]
        device = blocks[0].probs.device
        num_samples = len(blocks[0].probs)
        if counted is not None:
            kept = counted.repeat_interleave(num_samples // len(counted)).to(device)
            blocks = [
                Routing(
                    block.probs[kept.to(block.probs.device)],
                    block.chosen[kept.to(block.chosen.device)],
                )
                for block in blocks
            ]
            num_samples = len(blocks[0].probs)
        chosen_LPS = torch.stack([block.chosen.sum(dim=0).to(device) for block in blocks])
        probs_LPS = torch.stack([block.probs.sum(dim=0).to(device) for block in blocks])
        return RouterStatistics(
            num_samples=torch.tensor(num_samples, device=device),
            chosen=chosen_LPS.reshape(len(blocks), -1, num_experts).long(),
            probability_sum=probs_LPS.reshape(len(blocks), -1, num_experts),
            entropy_sum=torch.stack([entropy(block.probs).sum().to(device) for block in blocks]),
        )

    def active_parameters(self) -> int:
        """Count the active adapters' parameters that act on one input.

        A router acts on every input. Of the experts top_n of a block's (scope "block") or of each
        pool's (scope "module") do; since they differ in size, this counts that share of all
        experts' parameters, which is the mean when every expert is chosen equally often.
        """
        total = 0.0
        for module in self.model.modules():
            if not isinstance(module, DLoraLayer):
                continue
            for adapter_name in self.active_adapters:
                # Shapes, not numel(): ZeRO-3 leaves empty parameters behind.
                size = sum(
                    layers[adapter_name].in_features * layers[adapter_name].out_features
                    for layers in (getattr(module, name) for name in module.adapter_layer_names)
                    if adapter_name in layers
                )
                share = 1.0
                if isinstance(module, DLoraLinear) and adapter_name in module.expert_slot:
                    config = self._config(adapter_name)
                    pool = config.num_experts
                    if config.scope == "block":
                        pool *= module.num_modules[adapter_name]
                    share = config.top_n / pool
                total += share * size
        return round(total)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter with its routers."""
        super().delete_adapter(adapter_name)
        # PEFT skips modules whose name holds the prefix, and so the routers.
        for _, router in self._routers():
            router.delete_adapter(adapter_name)
            router.state.routings.pop(adapter_name, None)

    def unload(self) -> nn.Module:
        """Give back the base model without linears' wrappers, routers and hooks."""
        routers = list(self._routers())
        base_model = super().unload()
        for block, router in routers:
            router.remove_hooks()
            checkpoint_without_gates(block)
            delattr(block, ROUTER)
        return base_model

    def _config(self, adapter_name: str) -> DLoraConfig:
        config = self.peft_config[adapter_name]
        assert isinstance(config, DLoraConfig)
        return config

    def _routers(self) -> Iterator[tuple[nn.Module, BlockRouter]]:
        """Yield each block with its router, in the model's order."""
        for module in self.model.modules():
            router = module._modules.get(ROUTER)
            if isinstance(router, BlockRouter):
                yield module, router

    def _last_routings(self, caller: str) -> list[dict[str, Routing]]:
        routings = [router.state.routings for _, router in self._routers()]
        if not all(routings) or not routings:
            raise RuntimeError(f"{caller} needs a forward pass with an active adapter first")
        return routings

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Find every target's block before anything is replaced; PEFT calls this first.

        Raises:
            ConfigError: see `find_slots`.
        """
        assert isinstance(peft_config, DLoraConfig)
        hidden_size = getattr(getattr(model, "config", None), "hidden_size", None)
        if hidden_size is None:
            raise ConfigError(
                f"D-LoRA needs a model with config.hidden_size, got {type(model).__name__}"
            )
        self._hidden_size: int = hidden_size
        self._slots = find_slots(peft_config, model)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, DLoraConfig)
        slot = self._slots[current_key]
        base_layer = target.get_base_layer() if isinstance(target, DLoraLinear) else target
        if not isinstance(base_layer, nn.Linear):
            raise ConfigError(
                f"dlora.target_modules must name linears (torch.nn.Linear or a bitsandbytes "
                f"subclass of it), got {current_key}, a {type(target).__name__}"
            )
        block = self.model.get_submodule(slot.block)
        if ROUTER not in block._modules:
            block.add_module(ROUTER, BlockRouter(block, base_layer))
        router = block.get_submodule(ROUTER)
        assert isinstance(router, BlockRouter)
        if adapter_name not in router.configs:
            router.add_adapter(adapter_name, peft_config, self._hidden_size, slot.num_modules)
        if not isinstance(target, DLoraLinear):
            target = DLoraLinear(target, router.state)
            self._replace_module(parent, target_name, target, base_layer)
        target.add_adapter(adapter_name, peft_config, slot.position, slot.num_modules)

    def _check_merge_allowed(self) -> None:
        """Refuse, before PEFT's merge_adapter and merge_and_unload touch anything.

        Raises:
            ValueError: always, as PEFT asks of a method that cannot be merged.
        """
        raise ValueError(MERGE_REFUSAL)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse adapters mixed within a batch, which PEFT would otherwise ignore in silence.

        Raises:
            ValueError: when `adapter_names` is given.
        """
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "D-LoRA does not take adapter_names (another adapter for each sample of a batch); "
                "use set_adapter() and one batch per adapter"
            )
        yield


def register_with_peft() -> None:
    """Enter D-LoRA into PEFT's tables of methods; calling it again changes nothing."""
    register_method(PEFT_TYPE, DLoraConfig, DLoraModel)


register_with_peft()
