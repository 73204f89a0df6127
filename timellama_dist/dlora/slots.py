"""Finds where in a model's blocks the linears stand that a configuration targets."""

from typing import NamedTuple

from torch import nn

from timellama_dist.compat.peft import is_targeted
from timellama_dist.dlora.config import DLoraConfig
from timellama_dist.dlora.layer import DLoraLayer
from timellama_dist.dlora.settings import check_top_n
from timellama_dist.errors import ConfigError


class Slot(NamedTuple):
    """A linear's place: its block's name, its position in it, the number of the block's linears."""

    block: str
    position: int
    num_modules: int


def find_slots(config: DLoraConfig, model: nn.Module) -> dict[str, Slot]:
    """Find the block of each linear that the configuration targets.

    A block is the innermost entry of an `nn.ModuleList` around a linear, as `model.layers.3`.

    Args:
        config: the adapter's configuration.
        model: the model, with or without other D-LoRA adapters.

    Returns:
        By name of the target module. Empty when nothing matches, which PEFT reports.

    Raises:
        ConfigError: when a target is in no ModuleList, when blocks differ in the number of their
            targets or from the number configured, or when top_n is out of range.
    """
    blocks: dict[str, list[str]] = {}
    adapted: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, DLoraLayer):
            adapted.append(f"{name}.")
        inside_adapter = name.startswith(tuple(adapted))
        if inside_adapter or not is_targeted(config, name):
            continue
        blocks.setdefault(find_block(model, name), []).append(name)
    counts = {block: len(targets) for block, targets in blocks.items()}
    if not counts:
        return {}
    by_name = not isinstance(config.target_modules, str)
    num_modules = len(set(config.target_modules)) if by_name else next(iter(counts.values()))
    for block, count in counts.items():
        if count != num_modules:
            raise ConfigError(
                f"dlora.target_modules must match {num_modules} linears in every block, "
                f"got {count} in {block}: {', '.join(blocks[block])}"
            )
    check_top_n(config, num_modules)
    return {
        target: Slot(block, position, num_modules)
        for block, targets in blocks.items()
        for position, target in enumerate(targets)
    }


def find_block(model: nn.Module, target: str) -> str:
    """Name the innermost `nn.ModuleList` entry that holds the module named `target`.

    Raises:
        ConfigError: when there is none.
    """
    parts = target.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(parts[: depth - 1])), nn.ModuleList):
            return ".".join(parts[:depth])
    raise ConfigError(
        f"dlora.target_modules must name linears inside a block (an entry of an nn.ModuleList "
        f"such as model.layers.3), got {target}"
    )
