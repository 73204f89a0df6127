"""Calls of transformers (5) that its documentation doesn't promise."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import LlamaConfig

_CHECKPOINT = "_gradient_checkpointing_func"

CheckpointFunction = Callable[..., Any]


def checkpoint_function(block: nn.Module) -> CheckpointFunction | None:
    """Return the function that a block checkpoints itself by, if gradient checkpointing is on.

    D-LoRA's gates must count among what that function restores, and `gradient_checkpointing_enable`
    takes none of ours: it leaves its own in this attribute of each block.
    """
    checkpoint: CheckpointFunction | None = block.__dict__.get(_CHECKPOINT)
    return checkpoint


def set_checkpoint_function(block: nn.Module, checkpoint: CheckpointFunction) -> None:
    """Let a block checkpoint itself by another function; see `checkpoint_function`."""
    setattr(block, _CHECKPOINT, checkpoint)


def use_sdpa(config: LlamaConfig) -> None:
    """Choose PyTorch's attention for a model that is made from a configuration.

    `attn_implementation` is an argument of `from_pretrained`, which reads a whole model; a model
    made by `LlamaModel(config)` takes this attribute alone.
    """
    config._attn_implementation = "sdpa"


def forget_origin(config: LlamaConfig) -> None:
    """Take out of a configuration where its model once came from.

    Files of transformers 4 hold a `_name_or_path`, often a folder of the machine that wrote them.
    PEFT copies it into every adapter that it saves, and reads it there as the base model's name.
    """
    config._name_or_path = ""
