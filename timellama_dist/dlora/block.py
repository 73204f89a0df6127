"""The state that a block's router and linears share in a forward pass, also under checkpointing.

Gradient checkpointing runs a block's forward twice, the second time during backward. The router
runs before the block, outside of what is checkpointed, hence once; its gates must then reach the
second run as well. Left in a shared place they would not do: another forward pass may have
overwritten them by then, and the reentrant variant, which backpropagates through the second run
on its own, would go on through the router into earlier blocks and traverse those twice. So the
gates are handed to the checkpointing function as inputs, like the hidden states: both variants
then restore them, and their gradient comes back to the one router call, which the balance loss
also reads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from timellama_dist.compat.transformers import checkpoint_function, set_checkpoint_function


@dataclass(frozen=True)
class Routing:
    """A router's decision on one batch, kept for the balance loss and the statistics."""

    probs: Tensor
    """Shape (batch, pools, experts of a pool), with its graph."""

    chosen: Tensor
    """1.0 for the chosen experts, same shape."""


class BlockState:
    """The current gates and the last decisions of a block, by adapter.

    It belongs to a forward pass, not to the model: copies and pickles of it are empty.
    """

    def __init__(self) -> None:
        self.gates: dict[str, Tensor] = {}
        self.routings: dict[str, Routing] = {}

    def __reduce__(self) -> tuple[type["BlockState"], tuple[()]]:
        return BlockState, ()

    def gates_of(self, adapter_name: str) -> Tensor:
        """Return the gates of an adapter, shape (modules, batch, 1, experts * rank).

        Raises:
            RuntimeError: when no forward pass of the block is under way.
        """
        try:
            return self.gates[adapter_name]
        except KeyError:
            raise RuntimeError(
                f"no gates for adapter {adapter_name!r}: an adapted linear can only be called "
                "inside its block, whose router chooses the experts"
            ) from None


class CheckpointWithGates:
    """A checkpointing function that counts the block's gates among the inputs it restores."""

    def __init__(self, checkpoint: Callable[..., Any], state: BlockState) -> None:
        self.checkpoint = checkpoint
        self.state = state

    def __call__(self, run_block: Callable[..., Any], *args: Any) -> Any:
        names = list(self.state.gates)

        def run_with_gates(*inputs: Any) -> Any:
            self.state.gates = dict(zip(names, inputs[: len(names)], strict=True))
            try:
                return run_block(*inputs[len(names) :])
            finally:
                self.state.gates = {}

        return self.checkpoint(run_with_gates, *self.state.gates.values(), *args)


def checkpoint_with_gates(block: nn.Module, state: BlockState) -> None:
    """Let the block's checkpointing function, if transformers has set one, carry the gates.

    transformers sets it anew whenever checkpointing is enabled, possibly after the adapter was
    added, so this is looked at before each forward pass.
    """
    checkpoint = checkpoint_function(block)
    if checkpoint is not None and not isinstance(checkpoint, CheckpointWithGates):
        set_checkpoint_function(block, CheckpointWithGates(checkpoint, state))


def checkpoint_without_gates(block: nn.Module) -> None:
    """Give the block its own checkpointing function back."""
    checkpoint = checkpoint_function(block)
    if isinstance(checkpoint, CheckpointWithGates):
        set_checkpoint_function(block, checkpoint.checkpoint)
